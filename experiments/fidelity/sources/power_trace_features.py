"""Seconds of a power trace as sums of what the engine kept busy, as the power meter shows them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ....simulator.catalog import Catalog
from ....simulator.kernels.tables import PowerCoefficients
from ....simulator.performance import iteration_cost
from ....simulator.power import power_coefficients
from ..series import second_means
from ..source import Row
from .power_trace_files import Trace
from .power_trace_timeline import timeline

F64 = NDArray[np.float64]


def features(row: Row, catalog: Catalog) -> tuple[F64, PowerCoefficients]:
    """What the metered power of each second is made of.

    Args:
        row: A pair of traces.
        catalog: GPUs and models.

    Returns:
        What active, compute, memory, cache and link power are multiplied by in each second (seconds, 5), and those
        powers.
    """
    trace: Trace = row.given["trace"]
    gpu, model, tp = catalog.gpu(row.groups["gpu"]), catalog.model(row.groups["model"]), row.given["tp"]
    scale = catalog.scale(model.name, gpu.name, tp, 1, False)
    power = power_coefficients(model, gpu, tp, scale=scale)
    times_s, shares = timeline(trace, iteration_cost(model, gpu, tp, scale=scale), power)
    sampled_s = trace.power[:, 0]
    columns = []
    for share in shares.T:
        # The meter shows the mean over its window.
        total = np.concatenate([[0.0], np.cumsum(np.diff(times_s) * share)])
        until, since = (np.interp(sampled_s - lag, times_s, total) for lag in (0.0, gpu.meter.window_s))
        columns.append(second_means(sampled_s, (until - since) / gpu.meter.window_s))
    return np.stack(columns, axis=1), power
