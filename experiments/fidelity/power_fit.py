"""Figures of ``PowerFit`` from measured runs: shared by all models on a GPU, and a factor for each way of serving.

Runs at one clock do not tell what of the power that reading memory takes follows the clock: ``memory_w`` keeps its
ratio to ``active_w``, which the catalogue has from kernels at several clocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .demand import Demand
from .iteration import Activity, Times, Watts, activity
from .robust import minimise

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

SHARED = ("resident_w", "active_w", "compute_w", "cache_w", "link_w")
MOST_W = 2000.0
SOFT = 0.05
NOISE = 0.05
FACTOR_PRIOR = 0.05
"""Standard deviation of the logarithm of a factor; see ``STEP_PRIOR_S``."""
SMALL_W = 1000.0
"""Standard deviation of watts around none, so that parts that cannot be told apart share what they have together."""


@dataclass(frozen=True)
class FittedWatts:
    """Fitted power.

    Attributes:
        shared: Watts of one GPU, by the names of ``SHARED`` and as ``memory_w``.
        factor: Factor of each key.
    """

    shared: dict[str, float]
    factor: F64

    def watts(self, idle_w: float, resident: F64, factor: F64, drawn: F64 | float = 1.0) -> Watts:
        """Power of one GPU in iterations, each with the share of its memory that weights take, factor and draw.

        Args:
            idle_w: Power of a GPU without work and weights.
            resident: Share of the memory that weights take.
            factor: Multiplies what is above idle.
            drawn: Share of the compute power that is drawn while a GPU computes.
        """
        above = [factor * self.shared[f"{name}_w"] for name in Activity._fields]
        watts = Watts(idle_w + self.shared["resident_w"] * resident, *above)
        return watts._replace(compute=drawn * watts.compute)


def shares(demand: Demand, spent: Times, drawn: F64, dynamic: F64 | float = 1.0) -> Activity:
    """How busy runs keep the GPUs: activity over the steady part of each, as shares of its length (R,).

    Args:
        demand: What the runs ask.
        spent: What its entries take.
        drawn: Share of the compute power that each run draws while it computes (R,).
        dynamic: Dynamic power of each entry relative to that at the highest clock.
    """
    starts = demand.starts
    steady_s = np.add.reduceat(demand.steady * spent.length, starts)
    busy = activity(spent, dynamic)
    busy = busy._replace(compute=drawn[demand.run] * busy.compute)
    return Activity(*(np.add.reduceat(demand.steady * part, starts) / steady_s for part in busy))


def run_power_w(busy: Activity, resident: F64, idle_w: float, found: FittedWatts, key: I64) -> F64:
    """Mean power of one GPU in each run."""
    watts = found.watts(idle_w, resident, found.factor[key])
    return np.asarray(watts.idle + watts.above_idle(busy))


def fit_power(
    busy: Activity,
    resident: F64,
    measured_w: F64,
    idle_w: float,
    memory_ratio: float,
    key: I64,
    counts: F64 | None = None,
    prior: float = FACTOR_PRIOR,
) -> FittedWatts:
    """Fits the shared figures alone, and then together with a factor of each key; none is negative.

    Args:
        busy: How busy runs keep the GPUs.
        resident: Share of the memory that weights take, of each run.
        measured_w: Mean power of one GPU, of each.
        idle_w: Power of a GPU without work.
        memory_ratio: ``memory_w`` over ``active_w``.
        key: Key of each run, from 0.
        counts: How often each run counts; once by default.
        prior: Standard deviation of the logarithm of a factor.
    """
    keys = int(key.max()) + 1
    parts = np.stack([busy.active + memory_ratio * busy.memory, busy.compute, busy.cache, busy.link], axis=1)
    own = (key[:, None] == np.arange(keys)).astype(np.float64)

    def residuals(at: F64) -> tuple[F64, F64]:
        shared, logs = at[: len(SHARED)], at[len(SHARED) :]
        factor = np.exp(logs)[key]
        dynamic = factor * (parts @ shared[1:])
        found = idle_w + shared[0] * resident + dynamic
        pulled = np.append(shared * (NOISE / SMALL_W), logs * (NOISE / prior))
        slopes = np.column_stack([resident, factor[:, None] * parts, own * dynamic[:, None]]) / measured_w[:, None]
        pulls = np.append(np.full(len(SHARED), NOISE / SMALL_W), np.full(keys, NOISE / prior))
        return np.append(found / measured_w - 1, pulled), np.concatenate([slopes, np.diag(pulls)])

    some = np.ones(len(key)) if counts is None else counts
    weighed = np.append(some, np.ones(len(SHARED) + keys))
    none, most = np.zeros(keys), np.full(len(SHARED), MOST_W)
    at = np.append(np.full(len(SHARED), 100.0), none)
    for widest in (none, np.full(keys, 1.0)):
        low, high = np.append(np.zeros(len(SHARED)), -widest), np.append(most, widest)
        at = minimise(residuals, at, low, high, SOFT, weighed)
    shared = dict(zip(SHARED, at[: len(SHARED)].tolist(), strict=True))
    return FittedWatts(shared | {"memory_w": memory_ratio * shared["active_w"]}, np.exp(at[len(SHARED) :]))
