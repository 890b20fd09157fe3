"""The way of a request: from the client to a backend, and of the answer back."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import replace

from starlette.types import Receive, Scope, Send

from .config import GatewayConfig
from .dispatch import Ask, Dispatcher
from .downstream import ClientGoneError, Downstream, Header
from .journey import CLIENT_GONE, Journey
from .metrics import Metrics
from .prompts import Asked, parse
from .refusal import RefusalError
from .sse import Events
from .tokens import TokenFile
from .upstream import NOT_SENT_ON, Answer, BrokenOffError, Upstream, UpstreamError, pass_on

REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
GIVE_UP_S = 1.0
"""How long a client that does not read has to take the news that its answer broke off."""


class Proxy:
    """Serves one path of the API, as an ASGI application.

    Args:
        path: The path.
        config: The settings.
        dispatcher: Chooses backends.
        upstream: Asks them.
        metrics: Counts.
        clients: Who may ask; none for everybody.
        clock: Monotonic time, seconds.
    """

    def __init__(
        self,
        path: str,
        config: GatewayConfig,
        dispatcher: Dispatcher,
        upstream: Upstream,
        metrics: Metrics,
        clients: TokenFile | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path, self._config, self._dispatcher, self._upstream = path, config, dispatcher, upstream
        self._metrics, self._clients, self._clock = metrics, clients, clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        began_s = self._clock()
        client = Downstream(scope, receive, send)
        given = client.headers.get(b"x-request-id", b"")
        about = [(b"x-request-id", given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex.encode())]
        try:
            asked, slo_class = await self._read(client)
        except RefusalError as refusal:
            await client.refuse(refusal, about)
            return
        except ClientGoneError:
            return
        journey = Journey(asked, slo_class, self._config.slo[slo_class], began_s)
        self._metrics.came(journey)
        try:
            async with client.watched():
                await self._serve(journey, client, about)
        except ClientGoneError:
            journey.status = CLIENT_GONE
        except asyncio.CancelledError:  # the gateway ends, and the request has not done so in the time that it had
            news = RefusalError(503, "shutting_down", "The gateway ends.", {"retry-after": "1"})
            await self._break_off(news, journey, client, about)
        finally:
            self._metrics.went(journey, self._clock())

    async def _read(self, client: Downstream) -> tuple[Asked, str]:
        """The request and its SLO class, if all is well."""
        if self._clients is not None:
            self._clients.demand(client.headers.get(b"authorization"))
        kind = client.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind != b"application/json":
            # Besides, web pages cannot send this without asking, which keeps them away from a gateway on loopback.
            raise RefusalError(415, "not_json", "The header 'Content-Type' must be application/json.")
        slo_class = client.headers.get(b"x-slo-class", b"").decode("latin-1") or next(iter(self._config.slo))
        if slo_class not in self._config.slo:
            raise RefusalError(400, "unknown_slo_class", f"x-slo-class must be one of {', '.join(self._config.slo)}.")
        asked = parse(await client.body(self._config.limits.body_bytes, self._config.timeouts.body_s))
        if asked.model not in self._dispatcher.models:
            raise RefusalError(404, "model_not_found", f"There is no model '{asked.model}'; see /v1/models.")
        return asked, slo_class

    async def _serve(self, journey: Journey, client: Downstream, about: list[Header]) -> None:
        try:
            await self._attempts(journey, client, about)
        except RefusalError as refusal:
            journey.status = refusal.status
            await client.refuse(refusal, about)
        except BrokenOffError as fault:
            await self._break_off(RefusalError(502, "answer_broken_off", str(fault)), journey, client, about)

    async def _break_off(self, news: RefusalError, journey: Journey, client: Downstream, about: list[Header]) -> None:
        """Ends an answer that cannot be ended as it should."""
        journey.broken = True
        if not client.started:
            journey.status = news.status
            await client.refuse(news, about)
            return
        try:
            async with asyncio.timeout(GIVE_UP_S):
                await client.end(b"event: error\ndata: " + news.body + b"\n\n")
        except TimeoutError:
            return

    async def _attempts(self, journey: Journey, client: Downstream, about: list[Header]) -> None:
        """Asks backends until one answers, or no other may be asked.

        Raises:
            RefusalError: None has answered.
            BrokenOffError: One has, and has not come to the end.
        """
        asked = journey.asked
        sent = {name.decode("latin-1"): value.decode("latin-1") for name, value in [*client.headers.items(), *about]}
        headers = dict(pass_on(sent, NOT_SENT_ON))
        affine = self._dispatcher.router == "prefix-affinity"
        ask = Ask(asked.model, asked.prompt.units(self._config.prefix_tokens) if affine else ())
        until_s = asyncio.get_running_loop().time() + self._config.timeouts.total_s
        while True:
            backend = await self._dispatcher.acquire(ask)
            try:
                async with self._upstream.ask(backend, self._path, asked, headers, until_s) as answer:
                    await self._pass_on(answer, journey, client, about)
                return
            except UpstreamError as failure:
                ask = replace(ask, tried=ask.tried | {backend.spec.name})
                elsewhere = self._dispatcher.has_other(ask) or (failure.again and self._dispatcher.has_any(ask))
                if not failure.retry or not elsewhere or journey.retries >= self._config.retries:
                    raise
                journey.retries += 1
            finally:
                self._dispatcher.release(backend)

    async def _pass_on(self, answer: Answer, journey: Journey, client: Downstream, about: list[Header]) -> None:
        journey.streamed = answer.streamed
        if not answer.streamed:
            body = await answer.whole()
            journey.usage.read_answer(body[: len(body) if len(body) <= LOOKED_AT_BYTES else 0])
            journey.status = answer.status
            length = (b"content-length", str(len(body)).encode())
            await client.start(answer.status, [*answer.headers(), *about, length])
            await client.end(body)
            return
        journey.status, events = answer.status, Events()
        await client.start(answer.status, [*answer.headers(), *about])
        async for chunk in answer.chunks():
            whole = events.feed(chunk)
            if whole:
                journey.pass_events(whole, self._clock())
                await client.write(whole)
        rest = events.flush()
        journey.pass_events(rest, self._clock())
        await client.end(rest)


LOOKED_AT_BYTES = 2**18
"""Answers in one piece beyond this are not parsed for their `usage`: they are embeddings, whose tokens are not told."""
