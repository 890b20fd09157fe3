"""The HTTP protocol of uvicorn with bounds on what comes before a body: path, headers, and the time for them."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from .config import LimitSpec, TimeoutSpec
from .refusal import RefusalError


class _TooMuchError(Exception):
    """Ends the parsing."""


class BoundedProtocol(HttpToolsProtocol):
    """One connection of a client."""

    limits: ClassVar[LimitSpec]
    timeouts: ClassVar[TimeoutSpec]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._refusal: RefusalError | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._in_head, self._unparsed_bytes, self._header_bytes = True, 0, 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As of asyncio."""
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """As of asyncio."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """As of asyncio."""
        if self.transport.is_closing():
            return
        if self._in_head:
            self._unparsed_bytes += len(data)
        super().data_received(data)
        # The parser tells of a path or a header once it has all of it; what never ends is counted here.
        most = self.limits.path_bytes + self.limits.header_bytes
        if self._in_head and self._unparsed_bytes > most and not self.transport.is_closing():
            self._refusal = self._headers_too_large()
            self.send_400_response("")

    def on_message_begin(self) -> None:
        """As of httptools."""
        super().on_message_begin()
        self._in_head, self._header_bytes = True, 0
        if self._timer is None:
            self._start_timer()

    def on_url(self, url: bytes) -> None:
        """As of httptools."""
        super().on_url(url)
        if len(self.url) > self.limits.path_bytes:
            message = f"Path and query may have {self.limits.path_bytes} bytes at most."
            self._stop(RefusalError(414, "path_too_long", message))

    def on_header(self, name: bytes, value: bytes) -> None:
        """As of httptools."""
        super().on_header(name, value)
        self._header_bytes += len(name) + len(value) + len(b": \r\n")
        if self._header_bytes > self.limits.header_bytes:
            self._stop(self._headers_too_large())

    def on_headers_complete(self) -> None:
        """As of httptools."""
        self._in_head = False
        self._stop_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """As of httptools."""
        super().on_message_complete()
        self._in_head, self._unparsed_bytes = True, 0

    def send_400_response(self, msg: str) -> None:
        """Answers what is no request, or too large a one, in the shape of the other refusals."""
        refusal = self._refusal or RefusalError(400, "invalid_http", msg)
        body = refusal.body
        about = f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(STATUS_LINE[refusal.status] + about.encode() + body)
        self.transport.close()

    def _headers_too_large(self) -> RefusalError:
        message = f"Headers may have {self.limits.header_bytes} bytes together at most."
        return RefusalError(431, "headers_too_large", message)

    def _stop(self, refusal: RefusalError) -> None:
        self._refusal = refusal
        raise _TooMuchError

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(self.timeouts.head_s, self._too_late)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_late(self) -> None:
        if not self.transport.is_closing():
            self._refusal = RefusalError(408, "head_timeout", f"No request came within {self.timeouts.head_s:g} s.")
            self.send_400_response("")


def bounded(limits: LimitSpec, timeouts: TimeoutSpec) -> type[asyncio.Protocol]:
    """The protocol with these bounds."""
    return type("Bounded", (BoundedProtocol,), {"limits": limits, "timeouts": timeouts})
