"""Figures of ``TimingFit`` from measured runs, shared by all models on a GPU.

An offset for each way of serving is fitted beside them and then dropped: it keeps what a model has of its own from
bending the figures, but tells nothing of the same model's other runs; see ``mlenergy_priors``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .demand import Demand
from .iteration import Needs
from .robust import MOST_STEPS, minimise

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


class Range(NamedTuple):
    """Where a figure is looked for."""

    start: float
    low: float
    high: float


RANGES = {
    "compute_efficiency": Range(0.65, 0.3, 0.8),
    "fp8_efficiency": Range(0.8, 0.1, 1.0),
    "expert_compute_efficiency": Range(0.4, 0.05, 1.0),
    "memory_efficiency": Range(0.85, 0.4, 0.93),
    "expert_memory_efficiency": Range(0.8, 0.2, 1.0),
    "expert_crowding": Range(0.2, 1e-3, 3.0),
    "kv_efficiency": Range(0.8, 0.5, 0.93),
    "expert_spread": Range(0.6, 0.1, 1.0),
    "step_s": Range(1e-3, 1e-5, 2e-2),
    "sequence_s": Range(1e-5, 1e-7, 3e-4),
    "layer_s": Range(1e-5, 1e-7, 1e-4),
    "expert_layer_s": Range(3e-5, 1e-7, 3e-4),
    "shared_layer_s": Range(1e-5, 1e-7, 3e-4),
    "fp8_layer_s": Range(1e-5, 1e-7, 3e-4),
    "sampling_s": Range(2e-5, 1e-7, 3e-4),
    "scan_s": Range(2e-6, 1e-8, 1e-4),
    "message_s": Range(1.2e-5, 2e-6, 6e-5),
}
HELD = {"overlap_loss": 0.05, "link_efficiency": 0.7}
"""Not fitted: mixtures would shift their own inefficiencies to them. The runs of one dense model at many batch sizes
(nlr-online, fit part) want overlap_loss below 0.1; the other is assumed, and those runs agree."""
NAMES = tuple(RANGES)
START = {name: one.start for name, one in RANGES.items()}

SOFT = 0.07
"""Relative errors above it are taken for outliers."""
NOISE = 0.06
"""Relative error that is left, against which the two priors are weighed."""
FIGURE_PRIOR = 1.0
"""Standard deviation of the logarithm of a figure around where it starts."""
STEP_PRIOR_S = 3e-3
"""Standard deviation of offsets; docs/fidelity.md tells how little hangs on it."""
STEP_MOST_S = 15e-3
THROUGHPUT_WEIGHT = 0.7
MS = 1e3
NUDGE = 1e-4
NEAR_STEPS = 20
"""Most steps from a fit of almost the same."""


class Seen(NamedTuple):
    """What is measured of each run: median inter-token latency in seconds, and output tokens per second."""

    itl_s: F64
    throughput: F64


@dataclass(frozen=True)
class Timing:
    """Fitted times.

    Attributes:
        figures: Shared figures by name.
        step_s: Offset of each key.
    """

    figures: Mapping[str, float]
    step_s: F64


def needs(demand: Demand, figures: Mapping[str, float], step_s: F64 | float = 0.0) -> Needs:
    """What all entries ask for, in seconds, as ``performance.iteration_cost`` has it.

    Args:
        demand: The same at the data sheet's peaks.
        figures: As in ``TimingFit``, by name.
        step_s: Added to each while GPUs work.
    """
    f = HELD | dict(figures)
    weights = demand.weights + demand.experts(f["expert_spread"], f["expert_crowding"]) / f["expert_memory_efficiency"]
    weights = weights / f["memory_efficiency"] + f["fp8_layer_s"] * demand.fp8_layers
    dense = demand.dense_bf16 + demand.dense_fp8 / f["fp8_efficiency"]
    routed = demand.expert_bf16 + demand.expert_fp8 / f["fp8_efficiency"]
    matrices = (dense + routed / f["expert_compute_efficiency"]) / f["compute_efficiency"]
    unhidden = f["overlap_loss"] * np.minimum(matrices, weights)
    layers = f["layer_s"] * demand.layers + f["expert_layer_s"] * demand.moe_layers
    layers = layers + f["shared_layer_s"] * demand.shared_layers
    return Needs(
        host=f["step_s"] + f["sequence_s"] * demand.sequences,
        gap=np.maximum(layers + step_s, 0),
        sample=f["sampling_s"] * demand.sequences,
        link=demand.messages * f["message_s"] + demand.moved / f["link_efficiency"],
        compute=matrices + unhidden + demand.scanned * f["scan_s"] + demand.attention,
        weights=weights + demand.states / f["kv_efficiency"] + unhidden,
        cache=demand.cached / f["kv_efficiency"],
    )


def seen(demand: Demand, length_s: F64) -> tuple[Seen, I64]:
    """What is measured of runs whose iterations take so long, and the entry at the median of each."""
    order = np.lexsort((length_s, demand.run))
    upto = np.cumsum(demand.gaps[order])
    last = np.append(demand.starts[1:], len(order)) - 1
    before = np.append(0.0, upto[last[:-1]])
    middle = order[np.searchsorted(upto, (before + upto[last]) / 2)]
    steady_s = np.add.reduceat(demand.steady * length_s, demand.starts)
    given = np.add.reduceat(demand.given, demand.starts)
    return Seen(length_s[middle], given / steady_s), middle


def mean_batch(demand: Demand, length_s: F64) -> F64:
    """Mean number of requests that run in each run, over its steady part."""
    time_s = demand.steady * length_s
    return np.asarray(
        np.add.reduceat(time_s * demand.sequences, demand.starts) / np.add.reduceat(time_s, demand.starts)
    )


def fit_timing(
    demand: Demand,
    measured: Seen,
    key: I64,
    centre: Mapping[str, float],
    clock: F64 | float = 1.0,
    start: Timing | None = None,
    counts: F64 | None = None,
    prior_s: float = STEP_PRIOR_S,
) -> Timing:
    """Fits the shared figures alone, and then together with an offset of each key.

    Args:
        demand: What the runs ask.
        measured: What was measured of each.
        key: Key of each run, from 0.
        centre: Where figures start, and are held to where the runs do not say.
        clock: Clock of each entry, relative to the highest.
        start: A fit of almost the same, which saves the first step.
        counts: How often each run counts; once by default.
        prior_s: Standard deviation of offsets.

    Returns:
        Figures and offsets.
    """
    keys = int(key.max()) + 1
    middle = np.log([centre[name] for name in NAMES])
    low, high = (np.log([getattr(RANGES[name], end) for name in NAMES]) for end in ("low", "high"))
    some = np.ones(len(key)) if counts is None else counts
    weighed = np.concatenate([some, some, np.ones(len(NAMES) + keys)])
    offset_low, offset_high = np.full(keys, -STEP_MOST_S * MS), np.full(keys, STEP_MOST_S * MS)

    def residuals(at: F64) -> tuple[F64, F64]:
        return _residuals(demand, measured, key, middle, clock, at, prior_s)

    if start is None:
        none = np.zeros(keys)
        bounds = (np.concatenate([low, none]), np.concatenate([high, none]))
        at = minimise(residuals, np.concatenate([middle, none]), *bounds, SOFT, weighed)
    else:
        at = np.concatenate([np.log([start.figures[name] for name in NAMES]), start.step_s * MS])
    bounds = (np.concatenate([low, offset_low]), np.concatenate([high, offset_high]))
    at = minimise(residuals, at, *bounds, SOFT, weighed, NEAR_STEPS if start else MOST_STEPS)
    figures = dict(zip(NAMES, np.exp(at[: len(NAMES)]).tolist(), strict=True)) | HELD
    return Timing(figures, at[len(NAMES) :] / MS)


def _residuals(
    demand: Demand, measured: Seen, key: I64, centre: F64, clock: F64 | float, at: F64, prior_s: float
) -> tuple[F64, F64]:
    """Logarithms of simulated over measured, and what priors add; and their derivatives."""
    logs, offsets = at[: len(NAMES)], at[len(NAMES) :]
    step_s = (offsets / MS)[key][demand.run]

    def length(values: F64, more_s: float = 0.0) -> F64:
        figures = dict(zip(NAMES, np.exp(values).tolist(), strict=True))
        return needs(demand, figures, step_s + more_s).at(clock).length

    at_once = length(logs)
    found, middle = seen(demand, at_once)
    slopes = np.empty((2 * len(key), len(at)))
    starts = demand.starts
    steady_s = np.add.reduceat(demand.steady * at_once, starts)
    for i in range(len(NAMES)):
        nudged = logs.copy()
        nudged[i] += NUDGE
        more = (length(nudged) - at_once) / NUDGE
        slopes[: len(key), i] = more[middle] / found.itl_s
        slopes[len(key) :, i] = -THROUGHPUT_WEIGHT * np.add.reduceat(demand.steady * more, starts) / steady_s
    # An offset below what layers take has no effect.
    longer = (length(logs, NUDGE / MS) - at_once) / NUDGE
    own = key[:, None] == np.arange(len(offsets))
    slopes[: len(key), len(NAMES) :] = own * (longer[middle] / found.itl_s)[:, None]
    later = np.add.reduceat(demand.steady * longer, starts) / steady_s
    slopes[len(key) :, len(NAMES) :] = -THROUGHPUT_WEIGHT * own * later[:, None]
    values = np.concatenate(
        [
            np.log(found.itl_s / measured.itl_s),
            THROUGHPUT_WEIGHT * np.log(found.throughput / measured.throughput),
            NOISE / FIGURE_PRIOR * (logs - centre),
            NOISE / (prior_s * MS) * offsets,
        ]
    )
    prior = np.diag(np.append(np.full(len(NAMES), NOISE / FIGURE_PRIOR), np.full(len(offsets), NOISE / (prior_s * MS))))
    return values, np.concatenate([slopes, prior])
