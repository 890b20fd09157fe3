"""Vidur traces: `arrived_at,num_prefill_tokens,num_decode_tokens`, time in seconds."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pv

from ...files import whole
from ..table import RequestTable
from .columns import decimal_ps, from_first, positive_tokens, ps_decimal, read_columns


def read_vidur(path: Path) -> RequestTable:
    """Reads a Vidur trace, to the picosecond."""
    types = {"arrived_at": pa.string(), "num_prefill_tokens": pa.int64(), "num_decode_tokens": pa.int64()}
    columns = read_columns(path, types)
    return RequestTable.from_columns(
        from_first(path, decimal_ps(path, columns, "arrived_at"), "arrived_at"),
        positive_tokens(path, columns, "num_prefill_tokens"),
        positive_tokens(path, columns, "num_decode_tokens"),
        source=str(path),
    )


def write_vidur(table: RequestTable, path: Path) -> None:
    """Writes arrivals and lengths; the format has no place for anything else."""
    columns = {
        "arrived_at": ps_decimal(table.arrival_ps),
        "num_prefill_tokens": table.prompt_tokens,
        "num_decode_tokens": table.output_tokens,
    }
    with whole(path) as partial:
        pv.write_csv(pa.table(columns), partial, pv.WriteOptions(quoting_style="none", quoting_header="none"))
