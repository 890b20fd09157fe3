"""Vidur traces: `arrived_at,num_prefill_tokens,num_decode_tokens`, time in seconds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa

from ..table import RequestTable
from .columns import Clock, ps_decimal, read_columns, write_columns

TYPES = {"arrived_at": pa.string(), "num_prefill_tokens": pa.int64(), "num_decode_tokens": pa.int64()}


def read_vidur(path: Path, rows: int | None = None) -> Iterator[RequestTable]:
    """Reads a Vidur trace, to the picosecond."""
    clock = Clock("arrived_at")
    for columns in read_columns(path, TYPES, rows):
        yield RequestTable.from_columns(
            clock.read(columns, columns.decimal_ps("arrived_at")),
            columns.tokens("num_prefill_tokens"),
            columns.tokens("num_decode_tokens"),
            source=str(path),
        )


def write_vidur(parts: Iterable[RequestTable], path: Path) -> None:
    """Writes arrivals and lengths; the format has no place for anything else."""
    write_columns((_columns(part) for part in parts), path)


def _columns(part: RequestTable) -> pa.Table:
    return pa.table(
        {
            "arrived_at": ps_decimal(part.arrival_ps),
            "num_prefill_tokens": part.prompt_tokens,
            "num_decode_tokens": part.output_tokens,
        }
    )
