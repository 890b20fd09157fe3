"""One HTTP request within a time and a size, and nothing more: no redirects, no proxies, no kept connections."""

from __future__ import annotations

import time
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from urllib.parse import urlsplit

from ...errors import InputError
from ..readings import ReadingError

MAX_PAGE_BYTES = 8 * 2**20
"""A longer answer is none: a page of metrics has some 100 kB."""


def fetch(
    url: str, timeout_s: float, method: str = "GET", max_bytes: int = MAX_PAGE_BYTES, body: bytes = b""
) -> tuple[int, bytes]:
    """Status and body of an answer.

    Args:
        url: What to ask.
        timeout_s: Time for all of it, seconds; only headers that trickle in may take longer.
        method: HTTP method.
        max_bytes: Length of the answer at most.
        body: What to send along, JSON.

    Raises:
        ReadingError: There is no answer in time, it is too long, or it is none.
    """
    until_s = time.monotonic() + timeout_s
    parts = urlsplit(url)
    connection = (HTTPSConnection if parts.scheme == "https" else HTTPConnection)(parts.netloc, timeout=timeout_s)
    try:
        target = (parts.path or "/") + ("?" + parts.query if parts.query else "")
        connection.request(method, target, body or None, {"Content-Type": "application/json"} if body else {})
        answer = connection.getresponse()
        return answer.status, _body(connection, answer, url, until_s, max_bytes)
    except TimeoutError:
        raise ReadingError(f"{url} does not answer within {timeout_s:g} s; look whether it is overloaded") from None
    except (OSError, HTTPException) as fault:
        told = str(fault) or type(fault).__name__
        raise ReadingError(f"{url} does not answer ({told}); look whether it runs and listens there") from fault
    finally:
        connection.close()


def _body(connection: HTTPConnection, answer: HTTPResponse, url: str, until_s: float, max_bytes: int) -> bytes:
    body = bytearray()
    while True:
        left_s = until_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        if connection.sock is not None:  # it is gone once the answer is complete
            connection.sock.settimeout(left_s)
        part = answer.read1(65536)
        if not part:
            if answer.length:
                raise ReadingError(f"{url} breaks off; look whether the server has died")
            return bytes(body)
        body += part
        if len(body) > max_bytes:
            raise ReadingError(f"{url} answers more than {max_bytes} bytes; look what is there")


def checked_url(url: str) -> str:
    """The URL without a slash at its end.

    Raises:
        InputError: It is none of HTTP.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"url '{url}'", "is no address of an HTTP server", "Write it like http://127.0.0.1:8000")
    return url.rstrip("/")
