"""How bursty traffic is expected to be: what must be ready beyond what a controller remembers of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...envs.scenario import Scenario
from ...simulator.units import PS_PER_S
from ...simulator.workload.arrivals import OpenLoop

F64 = NDArray[np.float64]

AVERAGED_S = 10.0
"""Time over which traffic and throughput are averaged."""
REMEMBERED_S = 60.0
"""Time in which the memory of a peak of traffic fades: where it comes in bursts, the next one finds the slots ready."""
DRAWN_S, SEED = 1800.0, 2026
"""Length and seed of the traffic by which bursts are judged; no episode is drawn from that seed alone."""
READY = 0.95
"""Share of the requests that find enough ready."""


@dataclass(eq=False)
class Remembered:
    """Traffic as a controller remembers it, of several models.

    Attributes:
        tick_s: Time between readings, seconds.
        mean: Averaged over :data:`AVERAGED_S`.
        peak: The same, as high as it was lately.
    """

    tick_s: float
    mean: F64
    peak: F64

    def take(self, now: F64) -> None:
        """Takes the reading of a tick."""
        self.mean = self.mean + (1 - np.exp(-self.tick_s / AVERAGED_S)) * (now - self.mean)
        self.peak = np.maximum(self.mean, np.exp(-self.tick_s / REMEMBERED_S) * self.peak)


def burst(scenario: Scenario, model: str) -> float:
    """By how much the traffic of a model exceeds what is remembered of it, for as long as a first token may take.

    What a scenario says of its arrivals is drawn, as lengths are, and goes through the controller's own memory. Of each
    request it is asked how many came in the time up to it that a first token may take, against what was remembered
    then. Swings of the traffic are left out, for the memory follows them.

    Returns:
        What is exceeded for few requests; at least 1, which it also is where nothing is known beforehand.
    """
    ttft_s = limit_s(scenario, model, "ttft_s")
    streams = [s for s in scenario.workload.streams or (scenario.workload,) if s.model in (model, None)]
    rngs = np.random.default_rng(SEED).spawn(len(streams))
    drawn = [
        s.arrivals.requests(DRAWN_S, s.requests, None, rng).arrival_ps / PS_PER_S
        for s, rng in zip(streams, rngs, strict=True)
        if isinstance(s.arrivals, OpenLoop) and s.requests is not None
    ]
    times_s = np.sort(np.concatenate([*drawn, np.zeros(0)]))
    if ttft_s >= AVERAGED_S or not len(times_s):
        return 1.0
    tick_s = scenario.tick_s
    per_s = np.bincount((times_s // tick_s).astype(np.int64)) / tick_s
    mean = per_s.mean(keepdims=True)
    traffic, remembered = Remembered(tick_s, mean, mean), []
    for now in per_s:
        remembered.append(float(traffic.peak[0]))
        traffic.take(now)
    recent = np.arange(1, len(times_s) + 1) - np.searchsorted(times_s, times_s - ttft_s)
    known = np.array(remembered)[(times_s // tick_s).astype(np.int64)]
    return max(1.0, float(np.quantile(recent / ttft_s / known, READY)))


def limit_s(scenario: Scenario, model: str, name: Literal["ttft_s", "tpot_s"]) -> float:
    """Time to the first token, or per output token, that the strictest client of a model allows, seconds."""
    streams = scenario.workload.streams or (scenario.workload,)
    classes = {stream.slo_class for stream in streams if stream.model in (model, None)}
    named = [scenario.slo[own] for own in classes if own in scenario.slo]
    return float(min(getattr(slo, name) for slo in named or scenario.slo.values()))
