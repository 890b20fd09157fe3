"""What the gateway answers when it says no: a status, and a body in the shape of OpenAI's errors."""

from __future__ import annotations

import json
from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ExceptionHandler

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    502: "upstream_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class RefusalError(Exception):
    """A request is not served.

    Args:
        status: HTTP status.
        code: Short name of the reason, for programs.
        message: The reason and the remedy, for people.
        headers: Further headers of the answer.
    """

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.headers = dict(headers or {})

    @property
    def body(self) -> bytes:
        """The answer as JSON."""
        kind = KINDS.get(self.status, "invalid_request_error")
        error = {"message": self.message, "type": kind, "param": None, "code": self.code}
        return json.dumps({"error": error}).encode()

    def response(self) -> Response:
        """The answer."""
        return Response(self.body, self.status, self.headers, "application/json")


CODES = {404: "not_found", 405: "method_not_allowed"}


async def _on_http_exception(request: Request, fault: Exception) -> Response:
    assert isinstance(fault, HTTPException)
    code = CODES.get(fault.status_code, "http_error")
    message = f"{request.method} {request.url.path}: {fault.detail}."
    return RefusalError(fault.status_code, code, message, fault.headers).response()


async def _on_refusal(request: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, RefusalError)
    return refusal.response()


async def _on_fault(request: Request, fault: Exception) -> Response:
    return RefusalError(500, "internal_error", "The server failed at this; its log says how.").response()


HANDLERS: dict[int | type[Exception], ExceptionHandler] = {
    HTTPException: _on_http_exception,
    RefusalError: _on_refusal,
    Exception: _on_fault,
}
"""For Starlette: whatever goes wrong is told in the same shape."""
