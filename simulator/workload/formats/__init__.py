"""Trace formats: one reader or writer a file, chosen by name or by what the file looks like."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ...errors import InputError
from ...files import readable
from ..table import RequestTable
from .azure import read_azure
from .burstgpt import read_burstgpt
from .mooncake import read_mooncake
from .splitwise import write_splitwise
from .vidur import read_vidur, write_vidur

Reader = Callable[[Path], RequestTable]
Writer = Callable[[RequestTable, Path], None]

READERS: dict[str, Reader] = {
    "azure": read_azure,
    "burstgpt": read_burstgpt,
    "mooncake": read_mooncake,
    "parquet": RequestTable.from_parquet,
    "vidur": read_vidur,
}
WRITERS: dict[str, Writer] = {
    "parquet": RequestTable.to_parquet,
    "splitwise": write_splitwise,
    "vidur": write_vidur,
}
SUFFIXES = {".parquet": "parquet", ".jsonl": "mooncake"}
FIRST_COLUMNS = {"TIMESTAMP": "azure", "Timestamp": "burstgpt", "arrived_at": "vidur"}


def read_workload(path: Path, format: str | None = None) -> RequestTable:
    """Reads a trace, with time counted from its first arrival.

    Args:
        path: The file.
        format: A key of ``READERS``; by default told from the suffix or the first column's name.

    Returns:
        The requests.

    Raises:
        InputError: The file is absent, of no known format, or a line of it does not hold.
    """
    readable(path)
    name = detect(path) if format is None else format
    if name not in READERS:
        raise InputError("format", f"no reader for {name!r}", f"Give one of {', '.join(READERS)}")
    return READERS[name](path)


def write_workload(table: RequestTable, path: Path, format: str) -> None:
    """Writes a trace in a format of ``WRITERS``; a partial file never bears the name."""
    if format not in WRITERS:
        raise InputError("format", f"no writer for {format!r}", f"Give one of {', '.join(WRITERS)}")
    WRITERS[format](table, path)


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
