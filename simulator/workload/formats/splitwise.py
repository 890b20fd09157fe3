"""splitwise-sim traces: `request_id,request_type,…,arrival_timestamp,batch_size,prompt_size,token_size`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from ...errors import InputError
from ..table import RequestTable
from .columns import Clock, ps_decimal, read_columns, write_columns

LLM_INFERENCE = 2
"""What splitwise-sim calls the request type of LLM inference; it knows no other."""

TYPES = {
    "arrival_timestamp": pa.string(),
    "batch_size": pa.int64(),
    "prompt_size": pa.int64(),
    "token_size": pa.int64(),
}


def read_splitwise(path: Path, rows: int | None = None) -> Iterator[RequestTable]:
    """Reads a splitwise-sim trace, to the picosecond; it takes unbatched requests only."""
    clock = Clock("arrival_timestamp")
    for columns in read_columns(path, TYPES, rows):
        batched = np.flatnonzero(columns.table["batch_size"].to_numpy() != 1)
        if len(batched):
            size = columns.table["batch_size"][batched[0]].as_py()
            raise InputError(columns.place(batched[0]), f"batch_size is {size}", "Give each request a line of its own")
        yield RequestTable.from_columns(
            clock.read(columns, columns.decimal_ps("arrival_timestamp")),
            columns.tokens("prompt_size"),
            columns.tokens("token_size"),
            source=str(path),
        )


def write_splitwise(parts: Iterable[RequestTable], path: Path) -> None:
    """Writes arrivals (seconds) and lengths, as one application's unbatched requests."""
    write_columns(_columns(parts), path)


def _columns(parts: Iterable[RequestTable]) -> Iterator[pa.Table]:
    first = 0
    for part in parts:
        n = len(part)
        yield pa.table(
            {
                "request_id": np.arange(first, first + n),
                "request_type": np.full(n, LLM_INFERENCE),
                "application_id": np.zeros(n, np.int64),
                "arrival_timestamp": ps_decimal(part.arrival_ps),
                "batch_size": np.ones(n, np.int64),
                "prompt_size": part.prompt_tokens,
                "token_size": part.output_tokens,
            }
        )
        first += n
