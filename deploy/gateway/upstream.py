"""The backend's side of a request."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import aiohttp
from yarl import URL

from .backends import Backend
from .config import GatewayConfig
from .downstream import Header
from .prompts import Asked
from .refusal import RefusalError

HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
)
"""RFC 9110, section 7.6.1; with them goes what `Connection` names."""
NOT_SENT_ON = HOP_BY_HOP | {
    "accept-encoding",  # the gateway reads what it passes on
    "api-key",
    "authorization",
    "content-length",
    "cookie",
    "expect",
    "host",
    "proxy-authorization",
    "x-api-key",
    "x-slo-class",
}
NOT_SENT_BACK = HOP_BY_HOP | {"content-length", "date", "proxy-authenticate", "server", "set-cookie", "x-request-id"}
LOOK_BYTES = 2**20
ELSEWHERE = (502, 503, 504)
KEPT_ALIVE_S = 4.0
"""Idle connections are dropped before uvicorn, which serves vLLM, drops them at 5 s."""


class UpstreamError(RefusalError):
    """A backend gave no answer; what the client is told unless another one does.

    Args:
        status: As of :class:`RefusalError`.
        code: As of :class:`RefusalError`.
        message: As of :class:`RefusalError`.
        retry: Whether another backend may be asked.
        again: Whether the same one may: it closed a connection, perhaps one that had idled too long.
    """

    def __init__(self, status: int, code: str, message: str, retry: bool = True, again: bool = False) -> None:
        super().__init__(status, code, message, {"retry-after": "1"} if status == 503 else None)
        self.retry, self.again = retry, again


class BrokenOffError(Exception):
    """An answer has begun and does not come to its end."""


class Answer:
    """An answer of which the first chunk is here.

    Args:
        response: The response.
        first: Its first chunk.
        patience: The timeout in force.
        config: The settings.

    Attributes:
        status: Its status.
        streamed: Whether it is a stream of events.
    """

    def __init__(
        self, response: aiohttp.ClientResponse, first: bytes, patience: Patience, config: GatewayConfig
    ) -> None:
        self.status = response.status
        self.streamed = response.content_type == "text/event-stream"
        self._response, self._first, self._patience, self._config = response, first, patience, config

    def headers(self) -> list[Header]:
        """Headers for the client."""
        kept = pass_on(self._response.headers, NOT_SENT_BACK)
        return [(name.lower().encode(), value.encode("utf-8", "surrogateescape")) for name, value in kept]

    async def chunks(self) -> AsyncIterator[bytes]:
        """The answer as it comes.

        Raises:
            BrokenOffError: It does not come to its end.
        """
        chunk = self._first
        try:
            while chunk:
                yield chunk
                self._patience.wait(self._config.timeouts.between_chunks_s)
                chunk = await self._response.content.readany()
        except (aiohttp.ClientError, OSError) as fault:
            raise BrokenOffError("The backend's answer broke off.") from fault

    async def whole(self) -> bytes:
        """All of the answer.

        Raises:
            BrokenOffError: It does not come to its end, or has none in sight.
        """
        parts, length = [], 0
        async for chunk in self.chunks():
            parts.append(chunk)
            length += len(chunk)
            if length > self._config.limits.answer_bytes:
                raise BrokenOffError("The backend's answer is too long.")
        return b"".join(parts)


class Patience:
    """One timeout for all of an exchange: each phase has its time, and none goes beyond the whole.

    Args:
        timeout: The timeout to set.
        until_s: When all of it must have ended, on the loop's clock.
    """

    def __init__(self, timeout: asyncio.Timeout, until_s: float) -> None:
        self._timeout, self._until_s, self._set_s = timeout, until_s, math.inf
        self._now = asyncio.get_running_loop().time

    def wait(self, within_s: float) -> None:
        """The next step has so long, or up to an eighth more: setting a timer for every chunk would cost too much."""
        earliest_s = self._now() + within_s
        if not earliest_s <= self._set_s <= earliest_s + within_s / 8:
            self._set_s = earliest_s + within_s / 8
            self._timeout.reschedule(min(self._set_s, self._until_s))


class Upstream:
    """Asks backends.

    Args:
        config: The settings.
    """

    def __init__(self, config: GatewayConfig) -> None:
        self._config = config
        self._session: aiohttp.ClientSession | None = None
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=config.timeouts.connect_s)
        self._urls: dict[tuple[str, str], URL] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Connections are kept while in here: as many as are needed, without cookies."""
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEPT_ALIVE_S)
        async with aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
        ) as self._session:
            yield

    async def look(self, backend: Backend, path: str, within_s: float) -> bytes | None:
        """What a backend answers to a GET; None where it does not, or says no."""
        timeout = aiohttp.ClientTimeout(total=within_s)
        try:
            async with self._open.get(
                self._url(backend, path), headers=_headers(backend, {}), allow_redirects=False, timeout=timeout
            ) as response:
                content = await response.content.read(LOOK_BYTES)
                return content if response.status == 200 else None
        except (aiohttp.ClientError, OSError, TimeoutError):
            return None

    @asynccontextmanager
    async def ask(
        self, backend: Backend, path: str, asked: Asked, headers: Mapping[str, str], until_s: float
    ) -> AsyncIterator[Answer]:
        """Sends a request to a backend, and waits for the first chunk of the answer.

        Raises:
            UpstreamError: There is none; nothing has reached the client.
            BrokenOffError: A chunk after the first did not come in time.
        """
        answer: Answer | None = None
        try:
            async with asyncio.timeout(None) as timeout:
                patience = Patience(timeout, until_s)
                patience.wait(self._config.timeouts.first_byte_s)
                response = await self._begin(backend, path, asked, headers)
                try:
                    answer = Answer(response, await self._first(backend, response), patience, self._config)
                    yield answer
                finally:
                    response.close()  # unless all of it is read, the backend sees the connection close
        except TimeoutError as fault:
            if answer is not None:
                raise BrokenOffError("The backend's answer took too long.") from fault
            backend.failed()
            raise UpstreamError(504, "backend_timeout", "The backend did not answer in time.", False) from fault

    async def _begin(
        self, backend: Backend, path: str, asked: Asked, headers: Mapping[str, str]
    ) -> aiohttp.ClientResponse:
        try:
            return await self._open.post(
                self._url(backend, path),
                data=asked.body_for(backend.spec.upstream_model),
                headers=_headers(backend, headers),
                allow_redirects=False,
                timeout=self._timeout,
            )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as fault:
            backend.failed(certain=True)
            raise UpstreamError(502, "backend_unreachable", "The backend cannot be reached.") from fault
        except (aiohttp.ClientError, OSError) as fault:
            raise _reset(backend, fault) from fault

    async def _first(self, backend: Backend, response: aiohttp.ClientResponse) -> bytes:
        if response.status in ELSEWHERE:
            backend.failed()
            message = f"The backend answered with status {response.status}."
            raise UpstreamError(response.status, "backend_unavailable", message)
        if response.status < 200 or 300 <= response.status < 400:
            message = f"The backend answered with status {response.status}, which says nothing here."
            raise UpstreamError(502, "backend_answer", message, False)
        try:
            first = await response.content.readany()
        except (aiohttp.ClientError, OSError) as fault:
            raise _reset(backend, fault) from fault
        backend.answered()
        return first

    @property
    def _open(self) -> aiohttp.ClientSession:
        assert self._session is not None
        return self._session

    def _url(self, backend: Backend, path: str) -> URL:
        key = (backend.spec.name, path)
        if key not in self._urls:
            self._urls[key] = URL(backend.spec.url + path)
        return self._urls[key]


def _headers(backend: Backend, headers: Mapping[str, str]) -> dict[str, str]:
    own = {"Authorization": f"Bearer {backend.api_key}"} if backend.api_key else {}
    return {**headers, **own, "Accept-Encoding": "identity"}


def _reset(backend: Backend, fault: Exception) -> UpstreamError:
    backend.failed()
    return UpstreamError(502, "backend_reset", "The backend closed the connection.", again=True)


def pass_on(headers: Mapping[str, str], without: frozenset[str]) -> list[tuple[str, str]]:
    """Headers that a proxy sends on: not those named here, nor those that `Connection` names."""
    named = {token.strip().lower() for token in headers.get("connection", "").split(",")}
    return [(name, value) for name, value in headers.items() if name.lower() not in without | named]
