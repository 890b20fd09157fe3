"""Azure LLM inference traces of 2023 and 2024: `TIMESTAMP,ContextTokens,GeneratedTokens`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from ...errors import InputError
from ...units import MAX_TIME_S, PS_PER_S
from ..table import RequestTable
from .columns import Clock, read_columns

PS_PER_NS = 1_000


def read_azure(path: Path, rows: int | None = None) -> Iterator[RequestTable]:
    """Reads either year: 2023 stamps have seven decimals and no zone, 2024 stamps an offset from UTC."""
    with path.open("rb") as file:
        file.readline()
        stamp = file.readline().split(b",")[0]
    zone = "UTC" if b"+" in stamp or stamp.endswith(b"Z") else None
    types = {"TIMESTAMP": pa.timestamp("ns", zone), "ContextTokens": pa.int64(), "GeneratedTokens": pa.int64()}
    clock = Clock("TIMESTAMP")
    for columns in read_columns(path, types, rows):
        time_ns = clock.read(columns, columns.table["TIMESTAMP"].to_numpy().astype(np.int64))
        if time_ns[-1] > MAX_TIME_S * (PS_PER_S // PS_PER_NS):
            raise InputError(str(path), "the trace spans more than 106 days", "Split it")
        yield RequestTable.from_columns(
            time_ns * PS_PER_NS,
            columns.tokens("ContextTokens"),
            columns.tokens("GeneratedTokens"),
            source=str(path),
        )
