"""An agent behind HTTP, for planners and schedulers of others: `POST /decide`, `GET /spaces`."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..envs.scenario import load_scenario
from ..envs.spec import Spec
from ..errors import InputError
from .gateway.config import LimitSpec, TimeoutSpec, is_loopback
from .gateway.downstream import ClientGoneError, Downstream
from .gateway.refusal import HANDLERS, RefusalError
from .gateway.server import listen, make_server
from .gateway.tokens import TokenFile, authorization
from .policy import Policy

_log = logging.getLogger(__name__)


class SidecarConfig(Spec):
    """The sidecar: which agent, for which cluster, and who may ask it."""

    agent: str = Field(description="Name of an agent, or the folder of a trained one.")
    scenario: str = Field(default="default", description="Name or file of the scenario that describes the cluster.")
    host: str = Field(default="127.0.0.1", description="Address to listen at; beyond loopback only with tokens.")
    port: int = Field(default=8090, ge=0, le=65535, description="Port; 0 for a free one.")
    tokens: Path | None = Field(default=None, description="File of bearer tokens, a line each.")
    decide_s: float = Field(default=60.0, gt=0, description="Time for a decision, seconds (504).")
    waiting: int = Field(default=8, ge=1, description="Decisions under way and waiting at most (429).")
    timeouts: TimeoutSpec = Field(default=TimeoutSpec(), description="How long it waits for callers.")
    limits: LimitSpec = Field(default=LimitSpec(body_bytes=4 * 2**20), description="What it refuses for its size.")

    @model_validator(mode="after")
    def _is_guarded(self) -> SidecarConfig:
        if not is_loopback(self.host) and self.tokens is None:
            raise ValueError(f"host: '{self.host}' is open to others. Give a file of tokens, or listen at 127.0.0.1")
        return self


class Sidecar:
    """Answers to requests; one decision after the other, since agents remember.

    Args:
        config: The settings.

    Raises:
        InputError: There is no such agent or scenario, or the file of tokens does not hold.
    """

    def __init__(self, config: SidecarConfig) -> None:
        self._config = config
        self._tokens = None if config.tokens is None else TokenFile(config.tokens)
        self._policy = Policy(config.agent, load_scenario(config.scenario))
        self._worker = ThreadPoolExecutor(1)
        self._under_way = 0

    async def health(self, request: Request) -> Response:
        """`GET /health`."""
        return JSONResponse({"status": "ok"})

    async def spaces(self, request: Request) -> Response:
        """`GET /spaces`."""
        self._demand(request)
        return JSONResponse(self._policy.spaces())

    async def decide(self, request: Request) -> Response:
        """`POST /decide`."""
        self._demand(request)
        client = Downstream(request.scope, request.receive, request._send)
        client.demand_json()
        try:
            body = await client.body(self._config.limits.body_bytes, self._config.timeouts.body_s)
        except ClientGoneError:
            return Response(status_code=204)
        asked = _parse(body)
        if self._under_way >= self._config.waiting:
            raise RefusalError(429, "busy", "Too many decisions are under way; try again later.", {"retry-after": "1"})
        self._under_way += 1
        work = asyncio.get_running_loop().run_in_executor(self._worker, self._policy.decide, asked)
        work.add_done_callback(self._done)
        try:
            return JSONResponse(await asyncio.wait_for(asyncio.shield(work), self._config.decide_s))
        except TimeoutError as fault:
            message = f"The agent did not decide within {self._config.decide_s:g} s."
            raise RefusalError(504, "decision_timeout", message) from fault
        except InputError as fault:
            raise RefusalError(400, "invalid_observation", str(fault)) from fault
        except Exception as fault:
            _log.exception("the agent failed")
            raise RefusalError(503, "agent_failed", "The agent failed at this; the log says how.") from fault

    @asynccontextmanager
    async def running(self, app: Starlette) -> AsyncIterator[None]:
        """The worker lives while in here."""
        yield
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _demand(self, request: Request) -> None:
        if self._tokens is not None:
            self._tokens.demand(authorization(request))

    def _done(self, work: asyncio.Future[dict[str, Any]]) -> None:
        self._under_way -= 1
        if not work.cancelled():
            work.exception()  # whoever asked may have gone


def _parse(body: bytes) -> dict[str, Any]:
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as fault:
        raise RefusalError(400, "invalid_json", f"The body is not JSON: {fault}") from fault
    if not isinstance(asked, dict):
        raise RefusalError(400, "invalid_json", "The body must be a JSON object.")
    return asked


def make_sidecar(config: SidecarConfig) -> Starlette:
    """The application.

    Raises:
        InputError: There is no such agent or scenario, or the file of tokens does not hold.
    """
    sidecar = Sidecar(config)
    app = Starlette(
        routes=[
            Route("/decide", sidecar.decide, methods=["POST"]),
            Route("/spaces", sidecar.spaces),
            Route("/health", sidecar.health),
        ],
        lifespan=sidecar.running,
        exception_handlers=HANDLERS,
    )
    app.router.redirect_slashes = False
    return app


def run(config: SidecarConfig) -> None:
    """Runs the sidecar until SIGTERM or SIGINT.

    Raises:
        InputError: There is no such agent or scenario, or it cannot listen where it shall.
    """
    app = make_sidecar(config)
    with listen(config.host, config.port) as made:
        make_server(app, config.limits, config.timeouts).run(sockets=[made])


def main() -> None:
    """Runs the sidecar until it is told to end."""
    parser = argparse.ArgumentParser(prog="python -m llmcluster.deploy.sidecar", description="An agent behind HTTP.")
    parser.add_argument("--agent", required=True, help="name of an agent, or the folder of a trained one")
    parser.add_argument("--scenario", default="default", help="name or file of the scenario")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; beyond loopback only with --tokens")
    parser.add_argument("--port", type=int, default=8090)
    parser.add_argument("--tokens", type=Path, metavar="FILE", help="bearer tokens, a line each")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        run(SidecarConfig(**vars(parser.parse_args())))
    except ValidationError as fault:
        sys.exit("error: " + "; ".join(problem["msg"].removeprefix("Value error, ") for problem in fault.errors()))
    except InputError as fault:
        sys.exit(f"error: {fault}")


if __name__ == "__main__":
    main()
