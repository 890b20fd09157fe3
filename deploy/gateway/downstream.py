"""The client's side of a request: its body, its answer, and its going away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from starlette.types import Receive, Scope, Send

from .refusal import RefusalError

Header = tuple[bytes, bytes]


class ClientGoneError(Exception):
    """The client has closed its connection."""


class Downstream:
    """One request as ASGI gives it.

    Args:
        scope: Its scope.
        receive: Where its body comes from.
        send: Where its answer goes.

    Attributes:
        headers: Its headers; of those that come twice, the last.
        started: Whether the answer has begun.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.started, self._finished, self._gone = False, False, False
        self._receive, self._send = receive, send

    async def body(self, most_bytes: int, within_s: float) -> bytes:
        """The whole body.

        Raises:
            RefusalError: It is too long, or does not come in time.
            ClientGoneError: It does not come to an end.
        """
        too_long = RefusalError(413, "body_too_large", f"The body may have {most_bytes} bytes at most.")
        told = self.headers.get(b"content-length", b"")
        if told.isdigit() and int(told[:20]) > most_bytes:
            raise too_long
        chunks, length, more = [], 0, True
        try:
            async with asyncio.timeout(within_s):
                while more:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGoneError
                    chunks.append(message.get("body", b""))
                    length += len(chunks[-1])
                    more = message.get("more_body", False)
                    if length > most_bytes:
                        raise too_long
        except TimeoutError as fault:
            raise RefusalError(408, "body_timeout", f"The body did not come within {within_s:g} s.") from fault
        return b"".join(chunks)

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """While in here, the going of the client ends what is under way.

        Raises:
            ClientGoneError: It has gone away.
        """
        task = asyncio.current_task()
        assert task is not None
        watcher = asyncio.create_task(self._watch(task))
        try:
            yield
        except asyncio.CancelledError:
            if self._gone and task.uncancel() == 0:
                raise ClientGoneError from None
            raise
        finally:
            watcher.cancel()

    async def start(self, status: int, headers: Sequence[Header]) -> None:
        """The answer begins."""
        self.started = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, chunk: bytes) -> None:
        """A chunk of the answer."""
        await self._send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def end(self, chunk: bytes = b"") -> None:
        """The last chunk of the answer."""
        self._finished = True
        await self._send({"type": "http.response.body", "body": chunk, "more_body": False})

    async def refuse(self, refusal: RefusalError, headers: Sequence[Header] = ()) -> None:
        """Answers with a refusal."""
        body = refusal.body
        own = [(name.encode(), value.encode()) for name, value in refusal.headers.items()]
        about = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if refusal.status in (408, 413):  # the rest of the body is not read
            about.append((b"connection", b"close"))
        await self.start(refusal.status, [*about, *own, *headers])
        await self.end(body)

    async def _watch(self, task: asyncio.Task[object]) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self._finished:
            self._gone = True
            task.cancel()
