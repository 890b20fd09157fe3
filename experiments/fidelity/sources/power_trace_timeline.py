"""When an engine worked, and what that kept busy, from looks at its counters."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ....simulator.kernels.tables import IterationCost, PowerCoefficients
from ..engine_power import Counted, work
from .power_trace_files import Trace

F64 = NDArray[np.float64]

QUIET_S = 10.0
"""Before the first sample nothing happened for longer than any meter averages."""


def timeline(trace: Trace, cost: IterationCost, power: PowerCoefficients) -> tuple[F64, F64]:
    """What an engine's work kept busy over time.

    Args:
        trace: Looks at the counters, and how long power was measured.
        cost: What iterations cost.
        power: What they draw.

    Returns:
        Times in seconds, ascending (k + 1,), and between each two the shares of the time by which active, compute,
        memory, cache and link power are multiplied (k, 5).
    """
    times, shares = [min(trace.power[0, 0], trace.engine[0, 0]) - QUIET_S], []
    context = 0.0  # of all that run
    usual_s = float(np.median(np.diff(trace.engine[:, 0])))
    before = np.array([trace.engine[0, 0] - usual_s, 0.0, 0.0, 0.0, 0.0])
    if _is_under_way(trace, usual_s):
        before[1:] = trace.engine[0, 1:]
    for now in trace.engine:
        length_s, (prompt, output, iterations) = now[0] - before[0], now[2:] - before[2:]
        ran, runs = before[1], now[1]
        prompts = 1.0 if prompt else 0.0
        running = max((ran + runs) / 2, 1.0)
        mean_context = (context + (prompt + output) / 2) / running
        busy = work(cost, power, Counted(iterations, prompt, output, prompts, mean_context))
        left = max(ran + prompts - runs, 0.0)
        context = (context + prompt + output) * max(1 - left / max(ran + prompts, 1.0), 0.0)
        works_s = length_s if ran and runs else min(length_s, busy.length)
        starts_s = now[0] - works_s if runs or not ran else before[0]
        if works_s > 0:
            # The clock on the wall says how long the GPUs worked, the counters what they did in that time.
            stretch = max(works_s - busy.host, 0.0) / max(busy.length - busy.host, 1e-9)
            parts = np.array(busy.activity._replace(active=busy.activity.active * stretch))
            times += [starts_s, starts_s + works_s]
            shares += [np.zeros(5), np.minimum(parts / works_s, 1.0)]
        before = now
    times.append(max(trace.power[-1, 0], times[-1]) + 1.0)
    shares.append(np.zeros(5))
    return np.array(times), np.array(shares)


def _is_under_way(trace: Trace, usual_s: float) -> bool:
    """Whether the counters began long before the first look, so that it tells of nothing but totals."""
    iterations = np.diff(trace.engine[:, 4])
    return bool(trace.engine[0, 4] > 2 * max(iterations.max(), 1.0))
