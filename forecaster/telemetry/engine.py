"""Counters of a vLLM engine, joined to the power of its GPUs by the time since 1970."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from ...errors import InputError
from .resample import Samples, in_order, second_counts, second_means
from .rows import read_rows
from .series import Telemetry

GAUGES = {"num_requests_running": "running", "num_requests_waiting": "waiting"}
COUNTERS = {"prompt_tokens_total": "prompt_tokens", "generation_tokens_total": "output_tokens"}


def with_engine(telemetry: Telemetry, path: Path, max_gap_s: float) -> Telemetry:
    """Adds requests running and waiting and tokens per second, the same to every channel.

    Raises:
        InputError: The file does not hold, or has no second in common with the power.
    """
    header, rows = read_rows(path).split_header()
    if "epoch_s" not in header:
        raise InputError(f"{path}:1", "no column epoch_s", "Give counters with the time since 1970")
    names = {**GAUGES, **COUNTERS}
    raw = {names[name]: rows.numbers(i, name) for i, name in enumerate(header) if name in names}
    time_s = rows.numbers(header.index("epoch_s"), "epoch_s")
    samples, warnings = in_order(Samples(time_s, time_s, raw, np.array(rows.lines, np.int64)), str(path))
    grid_s = telemetry.bounds_s
    covariates = dict(telemetry.covariates)
    for name, values in samples.covariates.items():
        resample = second_counts if name in COUNTERS.values() else second_means
        column = resample(samples.time_s, values, grid_s, max_gap_s)
        if np.isnan(column).all():
            raise InputError(str(path), f"has no second in common with {telemetry.source}", "Give files of one run")
        covariates[name] = np.repeat(column[:, None], len(telemetry.channels), axis=1)
    return replace(telemetry, covariates=covariates, warnings=telemetry.warnings + rows.warnings + warnings)
