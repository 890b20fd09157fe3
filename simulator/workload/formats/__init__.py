"""Trace formats: one reader or writer a file, chosen by name or by what the file looks like."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ...errors import InputError
from ...files import readable
from ..combine import concatenate
from ..table import RequestTable
from .azure import read_azure
from .burstgpt import read_burstgpt
from .mooncake import read_mooncake
from .parquet import read_parquet, write_parquet
from .splitwise import read_splitwise, write_splitwise
from .vidur import read_vidur, write_vidur

Reader = Callable[[Path, int | None], Iterator[RequestTable]]
"""Yields a file in parts of so many rows at most, or whole; one part at least, and all with the same names."""
Writer = Callable[[Iterable[RequestTable], Path], None]
"""Writes a file out of parts, one at least, in order of time."""

READERS: dict[str, Reader] = {
    "azure": read_azure,
    "burstgpt": read_burstgpt,
    "mooncake": read_mooncake,
    "parquet": read_parquet,
    "splitwise": read_splitwise,
    "vidur": read_vidur,
}
WRITERS: dict[str, Writer] = {
    "parquet": write_parquet,
    "splitwise": write_splitwise,
    "vidur": write_vidur,
}
SUFFIXES = {".parquet": "parquet", ".jsonl": "mooncake"}
FIRST_COLUMNS = {"TIMESTAMP": "azure", "Timestamp": "burstgpt", "arrived_at": "vidur", "request_id": "splitwise"}


def read_parts(path: Path, format: str | None = None, rows: int | None = None) -> Iterator[RequestTable]:
    """Reads a trace, with time counted from its first arrival.

    Args:
        path: The file.
        format: A key of ``READERS``; by default told from the suffix or the first column's name.
        rows: Rows of a part at most; the whole file at once by default.

    Returns:
        The requests in parts, one at least; faults further on in the file are found when that part is due.

    Raises:
        InputError: The file is absent, of no known format, or a line of it does not hold.
    """
    readable(path)
    name = detect(path) if format is None else format
    if name not in READERS:
        raise InputError("format", f"no reader for {name!r}", f"Give one of {', '.join(READERS)}")
    return READERS[name](path, rows)


def read_workload(path: Path, format: str | None = None) -> RequestTable:
    """Reads a whole trace; see :func:`read_parts`."""
    return concatenate(list(read_parts(path, format)))


def write_workload(requests: RequestTable | Iterable[RequestTable], path: Path, format: str) -> None:
    """Writes a trace, whole or in parts, in a format of ``WRITERS``; a partial file never bears the name."""
    if format not in WRITERS:
        raise InputError("format", f"no writer for {format!r}", f"Give one of {', '.join(WRITERS)}")
    WRITERS[format]([requests] if isinstance(requests, RequestTable) else requests, path)


def detect(path: Path) -> str:
    """Tells the format from the suffix, or from the first column of the header."""
    if path.suffix in SUFFIXES:
        return SUFFIXES[path.suffix]
    with path.open("rb") as file:
        header = file.readline(4096).decode("utf-8", "replace").strip()
    first = header.split(",")[0].strip('"\ufeff')
    if first not in FIRST_COLUMNS:
        raise InputError(
            f"{path}:1",
            f"the header {header[:60]!r} is of no known format",
            f"Name the format: one of {', '.join(READERS)}",
        )
    return FIRST_COLUMNS[first]
