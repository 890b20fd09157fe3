"""The other side of :mod:`.launch`: emulated servers are started and stopped over HTTP."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from ...errors import InputError
from ...simulator.kernels.state import EMPTY
from ...simulator.lifecycle import Target
from .live import LiveMachine


def control_app(machine: LiveMachine) -> Starlette:
    """What the command asks: `POST /load?slot=NAME&model=NAME` and `POST /stop?slot=NAME`."""

    async def load(request: Request) -> Response:
        try:
            slot = machine.number(request.query_params.get("slot", ""))
            machine.serve(slot, request.query_params.get("model"))
        except InputError as fault:
            return PlainTextResponse(str(fault), 400)
        return Response()

    async def stop(request: Request) -> Response:
        try:
            slot = machine.number(request.query_params.get("slot", ""))
        except InputError as fault:
            return PlainTextResponse(str(fault), 400)
        machine.command(slot, Target.OFF)
        await machine.until(slot, EMPTY)
        return Response()

    return Starlette(routes=[Route("/load", load, methods=["POST"]), Route("/stop", stop, methods=["POST"])])
