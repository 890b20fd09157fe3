"""The audit log: every decision and every write as a JSON line that is only ever appended."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from ..simulator.errors import InputError


class AuditError(Exception):
    """A line could not be written: the disk is full, or gone. Nothing may be written to GPUs without it."""


class Audit:
    """Appends JSON lines to a file.

    Each has ``kind``, ``time`` (the wall clock, for people), ``monotonic_s`` (which never jumps) and ``line`` (a number
    that rises by one, so that a gap shows). A line that was cut short is ended before the next one.

    Args:
        path: The file.
        fsync: Whether a line is on the disk when :meth:`write` returns.
        max_bytes: Then the file is renamed to ``.1``, ``.1`` to ``.2`` and so on.
        keep: So many old files are kept.
        clock: Monotonic seconds.

    Raises:
        InputError: The file cannot be opened.
    """

    def __init__(
        self,
        path: Path,
        *,
        fsync: bool = False,
        max_bytes: int = 64 * 2**20,
        keep: int = 5,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path, self._fsync, self._max_bytes, self._keep, self._clock = path, fsync, max_bytes, keep, clock
        self._lines, self._cut = 0, False
        try:
            self._file = self._open()
            self._cut = _is_unfinished(path)
        except OSError as fault:
            raise InputError(f"audit.path {path}", f"cannot be written ({fault.strerror})", "Choose another") from fault

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)

    def write(self, kind: str, **facts: Any) -> None:
        """Appends a line.

        Raises:
            AuditError: It is not, or not wholly, in the file.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        record = {"kind": kind, "time": now, "monotonic_s": round(self._clock(), 3), "line": self._lines, **facts}
        text = json.dumps(_plain(record), separators=(",", ":"), allow_nan=False) + "\n"
        data = (("\n" if self._cut else "") + text).encode()
        try:
            self._rotate(len(data))
            self._cut = True
            written = os.write(self._file, data)
            if written < len(data):
                raise AuditError(f"{self._path} took {written} of {len(data)} bytes; make room on its disk")
            if self._fsync:
                os.fsync(self._file)
        except OSError as fault:
            raise AuditError(f"{self._path} cannot be written ({fault.strerror}); make room on its disk") from fault
        self._cut = False
        self._lines += 1

    def _rotate(self, coming: int) -> None:
        size = os.fstat(self._file).st_size
        if size == 0 or size + coming <= self._max_bytes:
            return
        for number in range(self._keep, 0, -1):
            old = self._path if number == 1 else self._numbered(number - 1)
            if old.exists():
                old.replace(self._numbered(number))
        os.close(self._file)
        self._file, self._cut = self._open(), False

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)

    def __enter__(self) -> Self:
        """The log itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, at: TracebackType | None) -> None:
        """Closes the file."""
        self.close()


def _is_unfinished(path: Path) -> bool:
    """Whether the last line has no end: a run that was killed, or a full disk, may have left it so."""
    if not path.is_file() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _plain(value: Any) -> Any:
    """What JSON knows: arrays as lists, and null for what is no number."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
