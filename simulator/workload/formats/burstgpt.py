"""BurstGPT traces: `Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type`, time in seconds."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...errors import InputError
from ..table import RequestTable
from .columns import decimal_ps, from_first, positive_tokens, read_columns

log = logging.getLogger(__name__)


def read_burstgpt(path: Path) -> RequestTable:
    """Reads a BurstGPT file; rows with 0 response tokens are failures: they are dropped and counted in the log."""
    types = {
        "Timestamp": pa.string(),
        "Model": pa.string(),
        "Request tokens": pa.int64(),
        "Response tokens": pa.int64(),
    }
    columns = read_columns(path, types)
    time_ps = from_first(path, decimal_ps(path, columns, "Timestamp"), "Timestamp")
    served = columns["Response tokens"].to_numpy() != 0
    if not served.all():
        log.warning("%s: dropped %d failed requests (0 response tokens)", path, np.count_nonzero(~served))
    if not served.any():
        raise InputError(str(path), "every request failed", "Give a trace with response tokens")
    # A failed request may have no prompt tokens either; it is dropped below, so any count will do for the check.
    prompts = pc.if_else(pa.array(served), columns["Request tokens"].combine_chunks(), 1)
    outputs = pc.if_else(pa.array(served), columns["Response tokens"].combine_chunks(), 1)
    filled = pa.table({"Request tokens": prompts, "Response tokens": outputs})
    names = columns["Model"].combine_chunks().dictionary_encode()
    return RequestTable.from_columns(
        (time_ps - time_ps[served][0])[served],
        positive_tokens(path, filled, "Request tokens")[served],
        positive_tokens(path, filled, "Response tokens")[served],
        source=str(path),
        model=names.indices.to_numpy()[served],
        models=tuple(names.dictionary.to_pylist()),
    )
