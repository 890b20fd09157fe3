"""One emulated OpenAI/vLLM server: the HTTP of it, over a slot of the live machine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing, suppress
from itertools import count
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from ...simulator.kernels.state import EMPTY, FAILED, FINISHED, LOADING, LOST, SERVING, SLEEPING
from ...simulator.lifecycle import Target
from .answers import Answer
from .faults import Faults
from .live import LiveMachine
from .metrics_page import MetricsPage
from .prompts import Ask, RefusedError, parse
from .requests import LiveRequest, NotServingError

MAX_BODY_BYTES = 16 * 2**20
"""A longer body is refused, 413."""

GONE = 499
"""What nobody gets: the client has gone (a status of nginx)."""


class ServerApp:
    """The application of one server.

    While the model is loaded, everything but `/ping` answers 503; so do completions of a server that sleeps or is
    about to. (vLLM does not listen while it loads, and a sleeping one may hold or fail what it gets.)

    Args:
        machine: The machine.
        slot: The slot that it runs on.

    Attributes:
        app: For an ASGI server.
        faults: What it does wrong; may be changed at any time.
        metrics: Its page of metrics.
        wakes: Whether the load under way is a waking.
    """

    def __init__(self, machine: LiveMachine, slot: int) -> None:
        self._machine, self._slot = machine, slot
        self.faults = Faults()
        self.metrics = MetricsPage(machine, slot)
        self.wakes = False
        self._numbers = count()
        self.app = Starlette(
            routes=[
                self._route("/v1/completions", self._completions, "POST"),
                self._route("/v1/chat/completions", self._chat, "POST"),
                self._route("/v1/models", self._models),
                self._route("/health", self._health),
                self._route("/metrics", self._metrics),
                self._route("/sleep", self._sleep, "POST"),
                self._route("/wake_up", self._wake, "POST"),
                self._route("/is_sleeping", self._is_sleeping),
                self._route("/collective_rpc", self._reload, "POST"),
                self._route("/reset_prefix_cache", self._health, "POST"),
            ]
        )

    def restart(self) -> None:
        """Another process takes the place of the server: it counts from 0."""
        self.metrics = MetricsPage(self._machine, self._slot)

    # ------------------------------------------------------------------------------------------------------ completions

    async def _completions(self, request: Request) -> Response:
        return await self._complete(request, chat=False)

    async def _chat(self, request: Request) -> Response:
        return await self._complete(request, chat=True)

    async def _complete(self, request: Request, *, chat: bool) -> Response:
        ask = parse(await _body(request), chat=chat, max_tokens=self._machine.max_tokens(self._slot))
        if ask.model != self._model:
            raise RefusedError(f"The model `{ask.model}` does not exist.", 404, "NotFoundError")
        if self.faults.delay_s:
            await asyncio.sleep(self.faults.delay_s)
        live = self._submit(ask)
        name = f"{'chatcmpl' if chat else 'cmpl'}-{self._slot}-{next(self._numbers)}"
        answer = Answer(ask, chat, name, int(time.time()))
        if ask.stream:
            return StreamingResponse(self._stream(live, answer), media_type="text/event-stream")
        return await _unless_gone(request, self._whole(live, answer))

    def _submit(self, ask: Ask) -> LiveRequest:
        try:
            return self._machine.submit(self._slot, ask.prompt_tokens, ask.output_tokens)
        except NotServingError as refusal:
            raise RefusedError(str(refusal), 503, "ServiceUnavailableError") from None

    async def _whole(self, live: LiveRequest, answer: Answer) -> Response:
        tokens = 0
        reason: str | None = None
        async with aclosing(self._tokens(live)) as pieces:
            async for tokens, reason in pieces:  # noqa: B007
                pass
        return Response(answer.whole(tokens, reason or "abort"), media_type="application/json")

    async def _stream(self, live: LiveRequest, answer: Answer) -> AsyncIterator[bytes]:
        told = 0
        yield answer.first()
        async with aclosing(self._tokens(live)) as pieces:
            async for tokens, reason in pieces:
                while told < tokens:
                    told += 1
                    if self.faults.token_delay_s:
                        await asyncio.sleep(self.faults.token_delay_s)
                    yield answer.token(reason if told == tokens and reason == "length" else None)
                if reason == "abort":
                    yield answer.stop(reason)
        yield answer.last(told)

    async def _tokens(self, live: LiveRequest) -> AsyncGenerator[tuple[int, str | None], None]:
        """Tokens so far whenever there are more, and at the end why it is one; a client that goes cancels it."""
        seen = 0
        try:
            while True:
                before, seen = seen, await live.move(seen)
                if live.status == LOST:
                    await asyncio.Event().wait()  # the server has died, and whoever cuts the connection ends this
                reason = ("length" if live.status == FINISHED else "abort") if live.is_over else None
                if not before and seen:
                    self.metrics.note_first(live)
                yield seen, reason
                if reason:
                    return
        finally:
            self._machine.cancel(live)
            if live.status != LOST:
                self.metrics.note_end(live, "length" if live.status == FINISHED else "abort")

    # ---------------------------------------------------------------------------------------------------------- others

    @property
    def _model(self) -> str:
        return self._machine.model(self._slot)

    async def _models(self, request: Request) -> Response:
        longest = self._machine.max_tokens(self._slot)
        own = {"id": self._model, "object": "model", "created": 0, "owned_by": "llmcluster", "root": self._model}
        return JSONResponse({"object": "list", "data": [own | {"parent": None, "max_model_len": longest}]})

    async def _health(self, request: Request) -> Response:
        return Response()

    async def _metrics(self, request: Request) -> Response:
        if self.faults.metrics_down:
            return Response(status_code=500)
        return Response(self.metrics.text(self.faults.lies), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _sleep(self, request: Request) -> Response:
        level, mode = request.query_params.get("level", "1"), request.query_params.get("mode", "abort")
        if level not in ("1", "2") or mode not in ("abort", "wait"):
            raise RefusedError(
                f"cannot sleep at level {level}, mode {mode}: levels 1 and 2, abort and wait are emulated"
            )
        if mode == "abort":
            for live in self._machine.in_flight(self._slot):
                self._machine.cancel(live)
        self._machine.command(self._slot, Target.SLEEP)
        return await self._when(SLEEPING)

    async def _wake(self, request: Request) -> Response:
        if self._machine.status(self._slot) == SLEEPING:
            self.wakes = True
        self._machine.serve(self._slot)
        try:
            return await self._when(SERVING)
        finally:
            self.wakes = False

    async def _reload(self, request: Request) -> Response:
        """Reads the weights again, which a sleeper of level 2 needs; it has them as soon as it is awake."""
        if b"reload_weights" not in await _body(request):
            raise RefusedError("only reload_weights is emulated")
        return JSONResponse({"results": [None]})

    async def _when(self, state: int) -> Response:
        """Answers once the slot has come to a state; 500 where something else became of it."""
        reached = await self._machine.until(self._slot, state, EMPTY, FAILED)
        return Response(status_code=200 if reached == state else 500)

    async def _is_sleeping(self, request: Request) -> Response:
        return JSONResponse({"is_sleeping": self._machine.status(self._slot) == SLEEPING or self.wakes})

    # ------------------------------------------------------------------------------------------------------------ parts

    def _route(self, path: str, handler: Callable[[Request], Awaitable[Response]], method: str = "GET") -> Route:
        async def guarded(request: Request) -> Response:
            if self.faults.silent:
                await asyncio.Event().wait()
            if self._machine.status(self._slot) == LOADING and not self.wakes:
                return JSONResponse(RefusedError("the model is being loaded", 503, "ServiceUnavailableError").body, 503)
            try:
                return await handler(request)
            except RefusedError as refusal:
                return JSONResponse(refusal.body, refusal.code)

        return Route(path, guarded, methods=[method])


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise RefusedError(f"the body is longer than {MAX_BODY_BYTES} bytes", 413, "RequestEntityTooLargeError")
    return bytes(body)


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """The answer, unless the client goes before; then the work is cancelled."""
    answer, gone = asyncio.create_task(work), asyncio.create_task(_gone(request))
    try:
        await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
        return answer.result() if answer.done() else Response(status_code=GONE)
    finally:
        for task in (answer, gone):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
