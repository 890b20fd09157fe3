"""CSV with a column of watts per channel: `t_s,gpu0_w,…`, `t_s,epoch_s,power_w,…`, and `power_w,…` without time."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from ...errors import InputError
from .engine import with_engine
from .options import Options
from .resample import Samples, telemetry_of
from .rows import read_rows
from .series import Telemetry

TIME = ("epoch_s", "t_s")
"""Columns of time, the one that is taken first: the engine's counters are joined by the calendar."""
WATTS = re.compile(r"(?P<channel>\w+)_w$")
NO_POWER = {"cap_w"}
COVARIATES = {
    "temp_c": "temperature_c",
    "temperature_c": "temperature_c",
    "sm_clock_mhz": "sm_clock_mhz",
    "cap_w": "cap_w",
}
ONLY = "gpu0"
"""The channel of a column called ``power_w``."""


def looks_like(first: list[str]) -> bool:
    """Whether a first line is of this layout."""
    return bool(_watts(first))


def read_columns(path: Path, options: Options) -> Telemetry:
    """Reads watts by column; without time stamps, readings are ``options.period_s`` apart, and a warning says so."""
    header, rows = read_rows(path).split_header()
    watts = _watts(header)
    if not watts:
        raise InputError(f"{path}:1", f"no column of watts among {', '.join(header)}", "Name it power_w or gpu0_w")
    if not rows.cells:
        raise InputError(str(path), "holds a header and no readings", "Record for longer")
    warnings = rows.warnings
    time = next((name for name in TIME if name in header), None)
    if time is None:
        if not options.period_s > 0:
            raise InputError("--period", f"{options.period_s:g} s is not positive", "Give the time between readings")
        time_s = options.period_s * np.arange(len(rows.cells), dtype=np.float64)
        warnings += (f"{path}: no time stamps; readings are taken to be {options.period_s:g} s apart",)
    else:
        time_s = rows.numbers(header.index(time), time)
        if np.isnan(time_s).any():
            line = rows.lines[int(np.argmax(np.isnan(time_s)))]
            raise InputError(f"{path}:{line}", f"no {time}", "Mend or remove the line")
    lines = np.array(rows.lines, np.int64)
    shared = {COVARIATES[name]: rows.numbers(column, name) for column, name in enumerate(header) if name in COVARIATES}
    if len(watts) > 1:
        shared = {}  # whose they are is not said
    samples = {
        channel: Samples(time_s, rows.numbers(header.index(name), name), shared, lines)
        for channel, name in watts.items()
    }
    for channel, read in samples.items():
        if unread := int(np.isnan(read.power_w).sum()):
            warnings += (f"{path}: {unread} lines without a reading of {watts[channel]}, counted as gaps",)
    telemetry = telemetry_of(samples, str(path), options.max_gap_s, warnings)
    if options.engine is None:
        return telemetry
    if time != "epoch_s":
        raise InputError(str(path), "has no epoch_s to join the engine's counters by", "Give the power file alone")
    return with_engine(telemetry, options.engine, options.max_gap_s)


def _watts(header: list[str]) -> dict[str, str]:
    """Columns of watts by channel."""
    found = {}
    for name in header:
        if (match := WATTS.match(name)) and name not in NO_POWER:
            found[ONLY if name == "power_w" else match["channel"]] = name
    return found
