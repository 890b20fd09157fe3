"""`nvidia-smi --query-gpu=… --format=csv`: with and without header, units and GPU index."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from .clock import epoch_s
from .options import Options
from .resample import Samples, telemetry_of
from .rows import Rows, read_rows
from .series import Telemetry

STAMP = re.compile(r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d(\.\d+)?$")
POWER = ("power.draw.average", "power.draw", "power.draw.instant")
"""Queries of power, the one that is taken first where there are several: what the others average over varies."""
CHANNEL = ("index", "uuid", "gpu_uuid", "gpu_bus_id", "pci.bus_id", "serial", "gpu_serial")
COVARIATE_QUERIES = {
    "power.limit": "cap_w",
    "enforced.power.limit": "cap_w",
    "temperature.gpu": "temperature_c",
    "clocks.sm": "sm_clock_mhz",
    "clocks.current.sm": "sm_clock_mhz",
}
BURST = 0.05
"""Readings this much closer than usual, as a share, come from several GPUs in a row."""


def looks_like(first: list[str]) -> bool:
    """Whether a first line is of this layout: a header with ``timestamp`` and a power, or a stamp in a cell."""
    names = [_query(cell) for cell in first]
    return ("timestamp" in names and any(name in names for name in POWER)) or any(map(STAMP.match, first))


def read_nvidia_smi(path: Path, options: Options) -> Telemetry:
    """Reads the output of ``nvidia-smi``.

    Without a header the columns are told by their units, or by ``options.columns``, the queries by comma.
    """
    rows = read_rows(path)
    names, rows = _columns(rows, options.columns)
    stamps = _stamps(rows, names.index("timestamp"))
    time_s = epoch_s(stamps, options.zone, str(path))
    power = next((name for name in POWER if name in names), None)
    if power is None:
        raise InputError(str(path), f"no power among {', '.join(names)}", "Query power.draw as well")
    lines = np.array(rows.lines, np.int64)
    power_w = rows.numbers(names.index(power), power, "W")
    covariates = {
        COVARIATE_QUERIES[name]: rows.numbers(column, name)
        for column, name in enumerate(names)
        if name in COVARIATE_QUERIES
    }
    warnings = rows.warnings
    if unread := int(np.isnan(power_w).sum()):
        warnings += (f"{path}: {unread} lines without a reading of power, counted as gaps",)
    key = next((name for name in CHANNEL if name in names), None)
    labels = np.array(["gpu0"] * len(time_s) if key is None else _labels(rows, names.index(key)))
    if key is None and _in_bursts(time_s):
        warnings += (f"{path}: readings come in bursts, as of several GPUs in one; query index as well",)
    samples = {}
    for label in dict.fromkeys(labels.tolist()):
        own = labels == label
        chosen = {name: values[own] for name, values in covariates.items()}
        samples[label] = Samples(time_s[own], power_w[own], chosen, lines[own])
    return telemetry_of(samples, str(path), options.max_gap_s, warnings)


def _query(cell: str) -> str:
    """A header's cell without its unit."""
    return re.sub(r"\s*\[.*\]$", "", cell).strip().lower()


def _columns(rows: Rows, given: tuple[str, ...]) -> tuple[list[str], Rows]:
    """Names of the columns, and the rows without the header."""
    if any(_query(cell) == "timestamp" for cell in rows.cells[0]):
        header, rest = rows.split_header()
        if not rest.cells:
            raise InputError(str(rows.path), "holds a header and no readings", "Record for longer")
        return [_query(cell) for cell in header], rest
    first = rows.cells[0]
    if given:
        if len(given) != len(first):
            raise InputError("--columns", f"names {len(given)} columns, the file has {len(first)}", "Name every column")
        if "timestamp" not in given:
            raise InputError("--columns", "names no timestamp", "Query timestamp as well, and name every column")
        return list(given), rows
    names = ["" for _ in first]
    watts = [i for i, cell in enumerate(first) if re.fullmatch(r"[\d.]+ W", cell)]
    others = [i for i, cell in enumerate(first) if not STAMP.match(cell)]
    power = watts if watts else others
    plain = [i for i in others if re.fullmatch(r"\d+", first[i])]
    if len(power) != 1 or (watts and len(plain) > 1):
        raise InputError(
            str(rows.path),
            "has no header, and the columns cannot be told by their units",
            "Name the queries by --columns timestamp,index,power.draw, or record without noheader",
        )
    names[next(i for i, cell in enumerate(first) if STAMP.match(cell))] = "timestamp"
    names[power[0]] = "power.draw"
    if watts and plain:
        names[plain[0]] = "index"
    return names, rows


def _stamps(rows: Rows, column: int) -> NDArray[np.datetime64]:
    stamps = np.empty(len(rows.cells), "datetime64[us]")
    for i, row in enumerate(rows.cells):
        if not STAMP.match(row[column]):
            raise InputError(
                f"{rows.path}:{rows.lines[i]}",
                f"the time stamp is {row[column]!r}",
                "Stamps look like 2026/03/29 13:05:07.123; mend or remove the line",
            )
        date, _, clock = row[column].partition(" ")
        try:
            stamps[i] = datetime.fromisoformat(f"{date.replace('/', '-')} {clock}")
        except ValueError:
            raise InputError(
                f"{rows.path}:{rows.lines[i]}", f"there is no {row[column]}", "Mend or remove the line"
            ) from None
    return stamps


def _labels(rows: Rows, column: int) -> list[str]:
    return [f"gpu{row[column]}" if row[column].isdigit() else row[column] for row in rows.cells]


def _in_bursts(time_s: NDArray[np.float64]) -> bool:
    """Whether every other reading follows closely on the one before."""
    apart_s = np.diff(time_s)
    return len(apart_s) > 3 and float(np.quantile(apart_s, 0.4)) < BURST * float(np.quantile(apart_s, 0.9))
