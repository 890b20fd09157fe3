"""Times and power of one GPU fitted in turn, since the power limit slows what is measured.

Power is fitted at the times that the shared figures give, as the engine has them, without the offsets of the timing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...simulator.catalog import GpuSpec, ModelSpec
from ...simulator.power import clock_ladder, drawn_share
from .demand import Demand
from .iteration import govern
from .power_fit import FACTOR_PRIOR, FittedWatts, fit_power, run_power_w, shares
from .roofline_fit import STEP_PRIOR_S, Seen, Timing, fit_timing, needs, seen

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


@dataclass(frozen=True)
class Runs:
    """What was measured of R runs on a GPU.

    Attributes:
        gpu: The GPU.
        demand: What they asked.
        key: Model and parallelism of each, from 0 (R,).
        seen: Latency and throughput.
        power_w: Mean power of one GPU (R,).
        resident: Share of the memory that weights take (R,).
        models: The models (R).
    """

    gpu: GpuSpec
    demand: Demand
    key: I64
    seen: Seen
    power_w: F64
    resident: F64
    models: Sequence[ModelSpec]


class Priors(NamedTuple):
    """How far the two figures of a way of serving may be from those of the GPU: standard deviations.

    Attributes:
        step_s: Of the offset of its iterations.
        factor: Of the logarithm of the factor of its power.
    """

    step_s: float = STEP_PRIOR_S
    factor: float = FACTOR_PRIOR


PRIORS = Priors()


@dataclass(frozen=True)
class Found:
    """Fitted times and power, and what they make of the runs.

    Attributes:
        timing: Times.
        watts: Power.
        seen: Simulated latency and throughput.
        power_w: Simulated power of one GPU.
    """

    timing: Timing
    watts: FittedWatts
    seen: Seen
    power_w: F64


def fit_governed(
    runs: Runs,
    centre: Mapping[str, float],
    counts: F64 | None = None,
    near: Found | None = None,
    priors: Priors = PRIORS,
) -> Found:
    """Fits times at the highest clock, then power, then both again at the clocks that the power limit leaves.

    Args:
        runs: What was measured.
        centre: As for ``fit_timing``.
        counts: How often each run counts; once by default.
        near: A fit of almost the same.
        priors: How far a way of serving may be from the others.
    """
    first = _round(runs, centre, counts, None, priors) if near is None else near
    return _round(runs, centre, counts, first, priors)


def _round(runs: Runs, centre: Mapping[str, float], counts: F64 | None, near: Found | None, priors: Priors) -> Found:
    """A fit at the clocks that another leaves, at the highest without one."""
    gpu, demand, key = runs.gpu, runs.demand, runs.key
    ratio, scale = clock_ladder(gpu)
    idle_w = gpu.power.idle_w
    step = _steps(runs, near.timing, near.watts) if near else np.full(len(demand.run), len(ratio) - 1)
    start = near.timing if near else None
    timing = fit_timing(demand, runs.seen, key, centre, ratio[step], start, counts, priors.step_s)
    asked, drawn = needs(demand, timing.figures), _drawn(runs, timing)
    spent = asked.at(ratio[step])
    busy, memory_ratio = shares(demand, spent, drawn, scale[step]), gpu.power.memory_w / gpu.power.active_w
    watts = fit_power(busy, runs.resident, runs.power_w, idle_w, memory_ratio, key, counts, priors.factor)
    step = _steps(runs, timing, watts)
    spent = asked.at(ratio[step])
    power_w = run_power_w(shares(demand, spent, drawn, scale[step]), runs.resident, idle_w, watts, key)
    return Found(timing, watts, seen(demand, spent.length)[0], power_w)


def seen_with_offsets(runs: Runs, found: Found) -> Seen:
    """What would be seen of the runs if each way of serving had its offset."""
    demand = runs.demand
    clock = clock_ladder(runs.gpu)[0][_steps(runs, found.timing, found.watts)]
    asked = needs(demand, found.timing.figures, found.timing.step_s[runs.key[demand.run]])
    return seen(demand, asked.at(clock).length)[0]


def _steps(runs: Runs, timing: Timing, found: FittedWatts) -> I64:
    """The step of the clock ladder at which each entry runs under the power limit."""
    demand, gpu = runs.demand, runs.gpu
    own, of = runs.key[demand.run], demand.run
    watts = found.watts(gpu.power.idle_w, runs.resident[of], found.factor[own], _drawn(runs, timing)[of])
    return govern(needs(demand, timing.figures), watts, *clock_ladder(gpu), gpu.cap_max_w).step


def _drawn(runs: Runs, timing: Timing) -> F64:
    """Share of the compute power that each run draws."""
    gpu = runs.gpu.model_copy(update={"timing": runs.gpu.timing.model_copy(update=timing.figures)})
    return np.array([drawn_share(model, gpu) for model in runs.models])
