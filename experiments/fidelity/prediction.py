"""What a client and a power meter see of a run, from its iterations and what these cost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...simulator.kernels.tables import IterationCost, PowerCoefficients
from ...simulator.units import PS_PER_S
from .compositions import STEADY, Compositions

MS_PER_S = 1e3

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Cost:
    """What an iteration over t tokens of n requests costs, in seconds at the highest clock.

    ``step + sequence·n + gap + sample·n + link[t] + max((compute[t] + attention·pairs) / clock, memory[t] +
    kv_read·read + state·n)``

    Attributes:
        compute_s: Matrix work by batched tokens.
        memory_s: Weight traffic by batched tokens.
        link_s: Communication by batched tokens.
        attention_s: A pair of query token and context token.
        kv_read_s: Reading one cached token.
        state_s: Reading and writing the state of one request that does not grow with its context.
        step_s: Host work of an iteration.
        sequence_s: Host work for one request.
        gap_s: What takes time on the GPUs whatever the batch.
        sample_s: Choosing the next token of one request, on the GPUs.
    """

    compute_s: F64
    memory_s: F64
    link_s: F64
    attention_s: float
    kv_read_s: float
    state_s: float
    step_s: float
    sequence_s: float
    gap_s: float
    sample_s: float

    @classmethod
    def of(cls, cost: IterationCost) -> Cost:
        """The cost that the engine computes with."""
        return cls(
            compute_s=cost.compute_ps / PS_PER_S,
            memory_s=cost.memory_ps / PS_PER_S,
            link_s=cost.link_ps / PS_PER_S,
            attention_s=cost.attention_ps / PS_PER_S,
            kv_read_s=cost.kv_read_ps / PS_PER_S,
            state_s=cost.state_ps / PS_PER_S,
            step_s=cost.step_ps / PS_PER_S,
            sequence_s=cost.sequence_ps / PS_PER_S,
            gap_s=cost.gap_ps / PS_PER_S,
            sample_s=cost.sample_ps / PS_PER_S,
        )


@dataclass(frozen=True)
class Busy:
    """How long each iteration lasts, and how much of it each part is at work; seconds, arrays of equal length.

    Choosing next tokens keeps memory busy as reading weights does; reading keys and values counts apart.
    """

    length_s: F64
    host_s: F64
    compute_s: F64
    memory_s: F64
    cache_s: F64
    link_s: F64


@dataclass(frozen=True)
class Prediction:
    """A run as it is measured: latencies over all of it, the rest over its steady part.

    Attributes:
        itl_ms: Median time between two tokens of a request.
        itl_p90_ms: 90th percentile.
        itl_p99_ms: 99th percentile.
        itl_mean_ms: Mean.
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
    itl_mean_ms: float
    throughput: float
    batch: float
    host: float
    compute: float
    memory: float
    link: float
    steady_s: float


def busy(work: Compositions, cost: Cost, clock: F64 | float = 1.0) -> Busy:
    """Times of every iteration; ``clock`` is relative to the highest, one for all or one each."""
    compute = (cost.compute_s[work.tokens] + cost.attention_s * work.pairs) / clock
    weights, cache = cost.memory_s[work.tokens] + cost.state_s * work.sequences, cost.kv_read_s * work.read
    host = np.asarray(cost.step_s + cost.sequence_s * work.sequences, np.float64)
    link, sample = cost.link_s[work.tokens], cost.sample_s * work.sequences
    length = host + cost.gap_s + sample + link + np.maximum(compute, weights + cache)
    return Busy(length, host, compute, weights + sample, cache, link)


def predict(work: Compositions, cost: Cost, clock: F64 | float = 1.0) -> Prediction:
    """What would be measured of a run."""
    return summarise(work, busy(work, cost, clock))


def summarise(work: Compositions, times: Busy) -> Prediction:
    """What would be measured of a run whose iterations take so long."""
    gaps = work.count * work.decodes
    median, p90, p99 = _quantiles(times.length_s, gaps, (0.5, 0.9, 0.99))
    weight = np.where(work.phase == STEADY, work.count, 0)
    steady_s = float(weight @ times.length_s)
    tokens = float(weight @ (work.decodes + work.started))
    busy_s = (times.host_s, times.compute_s, times.memory_s + times.cache_s, times.link_s)
    host, compute, memory, link = (float(weight @ part) / steady_s for part in busy_s)
    return Prediction(
        itl_ms=median * MS_PER_S,
        itl_p90_ms=p90 * MS_PER_S,
        itl_p99_ms=p99 * MS_PER_S,
        itl_mean_ms=float(gaps @ times.length_s) / float(gaps.sum()) * MS_PER_S,
        throughput=tokens / steady_s,
        batch=float(weight @ (work.sequences * times.length_s)) / steady_s,
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


def governed(work: Compositions, cost: Cost, power: PowerCoefficients) -> tuple[Busy, F64]:
    """Times of every iteration at the highest clock that keeps it under the power limit, and watts meanwhile."""
    times, watts = _at(work, cost, power, len(power.clock_ratio) - 1)
    step = len(power.clock_ratio) - 1
    clock = np.full(len(work.count), step)
    while step > 0 and (watts > power.cap_max_w).any():
        step -= 1
        clock[watts > power.cap_max_w] = step
        times, watts = _at(work, cost, power, clock)
    return times, watts


def _at(work: Compositions, cost: Cost, power: PowerCoefficients, step: NDArray[np.int64] | int) -> tuple[Busy, F64]:
    times = busy(work, cost, power.clock_ratio[step])
    clocked = power.active_w * (times.length_s - times.host_s) + power.compute_w * times.compute_s
    steady = power.memory_w * times.memory_s + power.cache_w * times.cache_s + power.link_w * times.link_s
    return times, power.idle_w + (power.scale[step] * clocked + steady) / times.length_s


def mean_power_w(work: Compositions, times: Busy, watts: F64) -> float:
    """Mean power over the steady part."""
    time_s = np.where(work.phase == STEADY, work.count, 0) * times.length_s
    return float(time_s @ watts / time_s.sum())
