"""Where a GPU settles under a power cap and a clock lock: the engine's governor on steady work that is no LLM."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...simulator.catalog import GpuSpec
from ...simulator.power import clock_ladder
from .iteration import Needs, Watts, govern, mean_power_w


@dataclass(frozen=True)
class Work:
    """Steady work, as times of one repetition at the highest clock, relative to its length there.

    A repetition takes ``host + max(compute / f, memory)`` at clock ``f``, as an iteration of the engine does.

    Attributes:
        host: The GPU waits.
        compute: Compute units are busy.
        memory: Memory is busy, at any clock.
    """

    host: float
    compute: float
    memory: float

    @property
    def needs(self) -> Needs:
        """A repetition as an iteration."""
        return Needs(self.host, 0.0, 0.0, 0.0, self.compute, self.memory, 0.0)


@dataclass(frozen=True)
class Point:
    """Where a GPU works.

    Attributes:
        ratio: Clock relative to the highest.
        speed: Repetitions in the time that one takes at the highest clock.
        power_w: Mean power, watts.
    """

    ratio: float
    speed: float
    power_w: float


def watts_of(gpu: GpuSpec) -> Watts:
    """Power of one GPU that holds no model."""
    power = gpu.power
    return Watts(power.idle_w, power.active_w, power.compute_w, power.memory_w, power.cache_w, power.link_w)


def power_w(gpu: GpuSpec, work: Work, ratio: float, scale: float) -> float:
    """Mean power of work at a clock.

    Args:
        gpu: The GPU.
        work: The work.
        ratio: The clock relative to the highest.
        scale: Dynamic power there, relative to that at the highest.
    """
    return float(mean_power_w(work.needs.at(ratio), watts_of(gpu), scale))


def settle(gpu: GpuSpec, work: Work, cap_w: float, clock_mhz: float | None = None) -> Point:
    """The highest clock of the ladder at which work stays under a cap, the lowest if it does at none.

    Args:
        gpu: The GPU.
        work: The work.
        cap_w: Power limit, watts; clipped to what the driver accepts.
        clock_mhz: Highest clock allowed, if locked.
    """
    ratios, scales = clock_ladder(gpu)
    cap_w = min(max(cap_w, gpu.cap_min_w), gpu.cap_max_w)
    limit = 1.0 if clock_mhz is None else clock_mhz / gpu.clock_max_mhz
    allowed = max(int(np.searchsorted(ratios, limit + 1e-9, side="right")), 1)
    step, times, watts = govern(work.needs, watts_of(gpu), ratios[:allowed], scales[:allowed], cap_w)
    return Point(float(ratios[step]), float(work.needs.at(1.0).length / times.length), float(watts))


@dataclass(frozen=True)
class Phase:
    """Work that takes turns with waiting, each for longer than the governor takes to act.

    Attributes:
        work: The work.
        busy: Share of the time in which it runs at the highest clock.
    """

    work: Work
    busy: float

    def settle(self, gpu: GpuSpec, cap_w: float, clock_mhz: float | None = None) -> Point:
        """As the function of that name; power and speed are means over work and waiting."""
        point = settle(gpu, self.work, cap_w, clock_mhz)
        waits, works = 1 - self.busy, self.busy / point.speed
        energy = waits * gpu.power.idle_w + works * point.power_w
        return Point(point.ratio, 1 / (waits + works), energy / (waits + works))
