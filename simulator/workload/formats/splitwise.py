"""splitwise-sim traces: `request_id,request_type,…,arrival_timestamp,batch_size,prompt_size,token_size`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pv

from ...files import whole
from ..table import RequestTable
from .columns import ps_decimal

LLM_INFERENCE = 2
"""What splitwise-sim calls the request type of LLM inference."""


def write_splitwise(table: RequestTable, path: Path) -> None:
    """Writes arrivals (seconds) and lengths, as one application's unbatched requests."""
    n = len(table)
    columns = {
        "request_id": np.arange(n),
        "request_type": np.full(n, LLM_INFERENCE),
        "application_id": np.zeros(n, np.int64),
        "arrival_timestamp": ps_decimal(table.arrival_ps),
        "batch_size": np.ones(n, np.int64),
        "prompt_size": table.prompt_tokens,
        "token_size": table.output_tokens,
    }
    with whole(path) as partial:
        pv.write_csv(pa.table(columns), partial, pv.WriteOptions(quoting_style="none", quoting_header="none"))
