"""BurstGPT traces: `Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type`, time in seconds."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...errors import InputError
from ..table import RequestTable
from .columns import I64, Clock, Columns, read_columns

TYPES = {
    "Timestamp": pa.string(),
    "Model": pa.string(),
    "Request tokens": pa.int64(),
    "Response tokens": pa.int64(),
}
log = logging.getLogger(__name__)


def read_burstgpt(path: Path, rows: int | None = None) -> Iterator[RequestTable]:
    """Reads a BurstGPT file; rows with 0 response tokens are failures: they are dropped and counted in the log.

    Parts share the names of all models: a file that is read in parts is read once for the names, and once more.
    """
    at_once = list(read_columns(path, TYPES)) if rows is None else None
    models = _models(at_once or read_columns(path, TYPES, rows))
    clock = Clock("Timestamp")
    failed, served_any = 0, False
    for columns in at_once or read_columns(path, TYPES, rows):
        # A failed request may have no prompt tokens either, which is no fault: it is dropped.
        served = columns.table["Response tokens"].to_numpy() != 0
        time_ps = clock.read(columns, columns.decimal_ps("Timestamp"), served)
        failed += int(np.count_nonzero(~served))
        served_any |= bool(served.any())
        yield RequestTable.from_columns(
            time_ps,
            columns.tokens("Request tokens", served),
            columns.tokens("Response tokens", served),
            source=str(path),
            model=_codes(columns, models)[served],
            models=tuple(models.to_pylist()),
        )
    if failed:
        log.warning("%s: dropped %d failed requests (0 response tokens)", path, failed)
    if not served_any:
        raise InputError(str(path), "every request failed", "Give a trace with response tokens")


def _models(parts: Iterable[Columns]) -> pa.Array:
    """All names in the order of their first appearance."""
    return pc.unique(pa.chunked_array([pc.unique(columns.table["Model"]) for columns in parts]))


def _codes(columns: Columns, models: pa.Array) -> I64:
    """Index of each row's model."""
    return np.asarray(pc.index_in(columns.table["Model"].combine_chunks(), models).to_numpy(), np.int64)
