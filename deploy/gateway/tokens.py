"""Who may come in: bearer tokens in a file."""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from collections.abc import Callable
from pathlib import Path

from starlette.requests import Request

from ...errors import InputError
from .refusal import RefusalError

CHECK_S = 1.0
SHORTEST = 16
REMEDY = "Make one with `openssl rand -hex 32`"
_log = logging.getLogger(__name__)


class TokenFile:
    """Tokens, one to a line; empty lines and those that start with ``#`` do not count.

    The file is read again when it has changed, and looked at once a second at most. While it cannot be read, or is
    empty, nobody is let in.

    Args:
        path: The file.
        clock: Monotonic time, seconds.

    Raises:
        InputError: It cannot be read at the start, holds no token, or one that is easy to guess.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = path, clock
        self._checked_s = clock()
        try:
            self._mark, tokens = self._look(), self._read()
        except (OSError, UnicodeDecodeError) as fault:
            raise InputError(str(path), f"cannot be read ({fault})", "Give a file with a token to a line") from fault
        if not tokens or min(map(len, tokens)) < SHORTEST:
            raise InputError(str(path), f"needs tokens of {SHORTEST} characters and more, a line each", REMEDY)
        self._digests = [_digest(token) for token in tokens]

    def admits(self, authorization: bytes | None) -> bool:
        """Whether the header ``Authorization`` bears one of the tokens; how long it takes does not tell which."""
        self._refresh()
        scheme, _, token = (authorization or b"").partition(b" ")
        given = _digest(token.strip())
        matches = [hmac.compare_digest(given, known) for known in self._digests]
        return any(matches) and scheme.lower() == b"bearer"

    def demand_no_other(self, other: TokenFile) -> None:
        """Raises :class:`InputError` where a token is in both files."""
        if not set(self._digests).isdisjoint(other._digests):
            raise InputError(str(self._path), "has a token that clients have too", REMEDY)

    def demand(self, authorization: bytes | None) -> None:
        """Raises :class:`RefusalError` unless the header bears one of the tokens."""
        if not self.admits(authorization):
            message = "This needs a valid token in the header 'Authorization: Bearer TOKEN'."
            raise RefusalError(401, "invalid_api_key", message, {"www-authenticate": "Bearer"})

    def _refresh(self) -> None:
        if self._clock() - self._checked_s < CHECK_S:
            return
        self._checked_s = self._clock()
        try:
            mark = self._look()
            if mark == self._mark:
                return
            tokens = self._read()
        except (OSError, UnicodeDecodeError) as fault:
            if self._digests:
                _log.error("%s cannot be read (%s); nobody is let in", self._path, fault)
            self._mark, self._digests = (), []
            return
        usable = [token for token in tokens if len(token) >= SHORTEST]
        if len(usable) < len(tokens):
            _log.error("%s: tokens of less than %d characters are left out", self._path, SHORTEST)
        self._mark, self._digests = mark, [_digest(token) for token in usable]
        _log.info("%s: %d tokens read", self._path, len(usable))

    def _look(self) -> tuple[int, ...]:
        state = self._path.stat()
        return state.st_mtime_ns, state.st_size, state.st_ino

    def _read(self) -> list[bytes]:
        return [token.encode() for token in tokens_in(self._path)]


def tokens_in(path: Path) -> list[str]:
    """The tokens of a file: its lines but for empty ones and those that start with ``#``."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def authorization(request: Request) -> bytes | None:
    """The header ``Authorization``."""
    value = request.headers.get("authorization")
    return None if value is None else value.encode("latin-1")


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
