"""What a forecast costs in the loop: the time of one update, by number of slots and of seconds it takes in."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...envs.cluster_env import LLMClusterEnv
from ...envs.scenario import load_scenario
from ...forecaster import make_forecaster

SLOTS = (8, 64)
SECONDS = (1, 10)
"""Metered seconds that an update takes in: those of a tick of 1 s, and of 10 s."""
TDP_W = 700.0
SERVER: dict[str, Any] = {"gpu": "H100-80GB", "gpus": 8, "model": "Llama-3.1-8B"}


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Times updates with numbers of about the size that meters give: power of every second, all else once a tick.

    Args:
        name: Name of a forecaster, or a file of weights.
        rounds: Updates that are timed; their median counts, for now and then the machine does something else.

    Returns:
        Microseconds of an update, by slots and by seconds, the cluster's own series among them; and of all that an
        environment does for the forecasts of a tick of ten seconds, by slots.
    """
    forecaster = make_forecaster(name, Path())
    rng = np.random.default_rng(0)
    found: dict[str, dict[str, float]] = {}
    for slots in SLOTS:
        found[str(slots)] = {}
        for seconds in SECONDS:
            power_w = rng.uniform(100.0, TDP_W, (seconds, slots + 1))
            beside = rng.uniform(0.0, 100.0, (slots + 1, len(forecaster.covariates)))
            forecaster.reset(slots + 1, np.full(slots + 1, TDP_W))
            found[str(slots)][str(seconds)] = _median_us(partial(forecaster.update, power_w, beside), rounds)
    return {"forecaster": name, "rounds": rounds, "update_us": found, "perception_us": _perception_us(name, rounds)}


def _perception_us(name: str, rounds: int) -> dict[str, float]:
    """Of gathering what the meters of a tick say, and the update, in the default scenario with other servers."""
    found = {}
    for slots in SLOTS:
        servers = [SERVER] * (slots // SERVER["gpus"])
        spec = load_scenario("default").model_dump(mode="json", exclude_unset=True)
        env = LLMClusterEnv(spec | {"cluster": {"rows": [{"racks": [{"servers": servers}]}]}}, forecaster=name)
        env.reset(seed=0)
        env.step(np.zeros(env.action_space.shape, np.int64))
        assert env.plant is not None and len(env.fleet) == slots
        found[str(slots)] = _median_us(partial(env.perception.forecast, env.plant, env.telemetry), rounds)
    return found


def _median_us(call: Callable[[], object], rounds: int) -> float:
    """Median time of a call after its first, which compiles."""
    call()
    times_s = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        times_s.append(time.perf_counter() - began)
    return statistics.median(times_s) * 1e6
