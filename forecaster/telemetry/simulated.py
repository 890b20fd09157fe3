"""The Parquet file of seconds that a simulation writes: a row per second and slot."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...errors import InputError
from ...files import readable
from .options import Options
from .resample import Samples, telemetry_of
from .series import Telemetry

COVARIATES = ("running", "waiting", "prompt_tokens", "output_tokens", "temperature_c", "kv_used")
NEEDED = ("second", "slot")
POWER = ("metered_w", "energy_j")
"""What the meter said, or where there is no meter the joules of the second."""


def read_simulated(path: Path, options: Options) -> Telemetry:
    """Reads ``seconds.parquet``; a channel is a slot."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    readable(path)
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as fault:
        raise InputError(
            str(path), f"cannot be read as Parquet ({str(fault).splitlines()[0]})", "Write it anew"
        ) from None
    missing = [name for name in NEEDED if name not in table.column_names]
    power = next((name for name in POWER if name in table.column_names), None)
    if missing or power is None:
        raise InputError(
            str(path),
            f"no column {', '.join(missing) or ' or '.join(POWER)}",
            "Give seconds.parquet as `llmcluster simulate --out` writes it",
        )
    slots = np.array(table["slot"].to_pylist())
    columns = {
        name: table[name].to_numpy().astype(np.float64)
        for name in ("second", power, *COVARIATES)
        if name in table.column_names
    }
    samples = {}
    for slot in dict.fromkeys(slots.tolist()):
        own = slots == slot
        second_s, watts = columns["second"][own], columns[power][own]
        covariates = {name: values[own] for name, values in columns.items() if name in COVARIATES}
        # The last row holds for its second, too.
        end_s = np.append(second_s, second_s[-1] + 1.0)
        held = {name: np.append(values, values[-1]) for name, values in covariates.items()}
        samples[slot] = Samples(end_s, np.append(watts, watts[-1]), held)
    return telemetry_of(samples, str(path), options.max_gap_s)
