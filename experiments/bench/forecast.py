"""What a forecast costs in the loop: the time of one update, by number of slots and of seconds it takes in."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from ...forecaster import make_forecaster

SLOTS = (8, 64)
SECONDS = (1, 10)
"""Metered seconds that an update takes in: those of a tick of 1 s, and of 10 s."""
TDP_W = 700.0


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Times updates with numbers of about the size that meters give: power of every second, all else once a tick.

    Args:
        name: Name of a forecaster, or a file of weights.
        rounds: Updates that are timed; their median counts, for now and then the machine does something else.

    Returns:
        Microseconds of an update, by slots and by seconds; the cluster's own series is in.
    """
    forecaster = make_forecaster(name, Path())
    rng = np.random.default_rng(0)
    found: dict[str, dict[str, float]] = {}
    for slots in SLOTS:
        found[str(slots)] = {}
        for seconds in SECONDS:
            power_w = rng.uniform(100.0, TDP_W, (seconds, slots + 1))
            beside = {covariate: rng.uniform(0.0, 100.0, slots + 1) for covariate in forecaster.covariates}
            forecaster.reset(slots + 1, np.full(slots + 1, TDP_W))
            forecaster.update(power_w, beside)  # compiles
            times_s = []
            for _ in range(rounds):
                began = time.perf_counter()
                forecaster.update(power_w, beside)
                times_s.append(time.perf_counter() - began)
            found[str(slots)][str(seconds)] = statistics.median(times_s) * 1e6
    return {"forecaster": name, "rounds": rounds, "update_us": found}
