"""What a client and a power meter see of a run, from its iterations and how long these take."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .compositions import STEADY, Compositions
from .iteration import F64, Governed, Times

MS_PER_S = 1e3


@dataclass(frozen=True)
class Prediction:
    """A run as it is measured: latencies over all of it, the rest over its steady part.

    Attributes:
        itl_ms: Median time between two tokens of a request.
        itl_p90_ms: 90th percentile.
        itl_p99_ms: 99th percentile.
        throughput: Output tokens per second.
        batch: Mean number of requests that run, over time.
        host: Share of the time in which the host works and the GPUs wait.
        compute: Share in which matrix units are busy.
        memory: Share in which memory is.
        link: Share in which GPUs communicate.
        steady_s: Length of the steady part.
    """

    itl_ms: float
    itl_p90_ms: float
    itl_p99_ms: float
    throughput: float
    batch: float
    host: float
    compute: float
    memory: float
    link: float
    steady_s: float


def summarise(work: Compositions, times: Times) -> Prediction:
    """What would be measured of a run whose iterations take so long, in seconds."""
    gaps = work.count * work.decodes
    median, p90, p99 = _quantiles(times.length, gaps, (0.5, 0.9, 0.99))
    weight = np.where(work.phase == STEADY, work.count, 0)
    steady_s = float(weight @ times.length)
    tokens = float(weight @ (work.decodes + work.started))
    busy_s = (times.host, times.compute, times.memory + times.cache, times.link)
    host, compute, memory, link = (float(weight @ part) / steady_s for part in busy_s)
    return Prediction(
        itl_ms=median * MS_PER_S,
        itl_p90_ms=p90 * MS_PER_S,
        itl_p99_ms=p99 * MS_PER_S,
        throughput=tokens / steady_s,
        batch=float(weight @ (work.sequences * times.length)) / steady_s,
        host=host,
        compute=compute,
        memory=memory,
        link=link,
        steady_s=steady_s,
    )


def _quantiles(values: F64, weights: NDArray[np.int64], shares: tuple[float, ...]) -> F64:
    """Values below which such shares of the weight lie."""
    order = np.argsort(values)
    upto = np.cumsum(weights[order])
    found: F64 = values[order][np.searchsorted(upto, np.array(shares) * upto[-1])]
    return found


def steady_power_w(work: Compositions, ran: Governed) -> float:
    """Mean power over the steady part."""
    time_s = np.where(work.phase == STEADY, work.count, 0) * ran.times.length
    return float(time_s @ ran.power_w / time_s.sum())
