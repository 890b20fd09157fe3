"""Length, energy and clock of iterations outside the engine: the formulas of docs/engine.md, for many at once.

An iteration takes ``T = H + G + S + L + max(C, W + K)``: the GPUs wait for the host (H), start kernels (G), choose next
tokens (S), communicate (L), and compute (C) while they read weights and states (W) and then keys and values (K). C is
what it is at the highest clock, divided by the clock. Its energy is

``idle·T + active·(T − H) + computing·C + memory·(W + S) + cache·K + link·L``,

where active and computing power fall with the dynamic power of the clock. The governor chooses the highest clock of
which the mean power stays under the limit, and the lowest where none does.

Everything here is in floating point, in whatever unit of time it is given; numbers and arrays broadcast together.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...simulator.kernels.tables import PowerCoefficients

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Number = F64 | float


class Times(NamedTuple):
    """How long iterations take at a clock, and how long each part of the GPUs is busy.

    Attributes:
        length: All of it, T.
        host: GPUs wait for the host, H.
        compute: Compute units are busy, C at the clock.
        memory: Weights and states are read or next tokens chosen, W + S.
        cache: Keys and values are read, K.
        link: Links are busy, L.
    """

    length: F64
    host: F64
    compute: F64
    memory: F64
    cache: F64
    link: F64


class Needs(NamedTuple):
    """What iterations ask for, as times at the highest clock.

    Attributes:
        host: H.
        gap: G.
        sample: S.
        link: L.
        compute: C.
        weights: W.
        cache: K.
    """

    host: Number
    gap: Number
    sample: Number
    link: Number
    compute: Number
    weights: Number
    cache: Number

    def at(self, clock: Number) -> Times:
        """Times at clocks relative to the highest."""
        compute = self.compute / clock
        length = self.host + self.gap + self.sample + self.link + np.maximum(compute, self.weights + self.cache)
        parts = (length, self.host, compute, self.weights + self.sample, self.cache, self.link)
        return Times(*(np.asarray(part, np.float64) for part in parts))


class Activity(NamedTuple):
    """For how long each power is drawn; of the first two, times dynamic power at the clock.

    Attributes:
        active: The GPUs do not wait for the host.
        compute: Compute units are busy.
        memory: Weights and states are read, or next tokens chosen.
        cache: Keys and values are read.
        link: Links are busy.
    """

    active: F64
    compute: F64
    memory: F64
    cache: F64
    link: F64


class Watts(NamedTuple):
    """Power without work, and what each activity adds to it at the highest clock."""

    idle: Number
    active: Number
    compute: Number
    memory: Number
    cache: Number
    link: Number

    @classmethod
    def of(cls, power: PowerCoefficients) -> Watts:
        """Those of a slot."""
        return cls(power.idle_w, power.active_w, power.compute_w, power.memory_w, power.cache_w, power.link_w)

    def above_idle(self, activity: Activity) -> F64:
        """Energy above that of an idle slot; power if the activity is a share of the time."""
        return np.asarray(
            self.active * activity.active
            + self.compute * activity.compute
            + self.memory * activity.memory
            + self.cache * activity.cache
            + self.link * activity.link
        )


class Governed(NamedTuple):
    """Iterations at the clocks that the governor chooses.

    Attributes:
        step: Step of the clock ladder of each.
        times: How long they take there.
        power_w: Mean power over each.
    """

    step: I64
    times: Times
    power_w: F64


def activity(times: Times, dynamic: Number) -> Activity:
    """For how long each power is drawn.

    Args:
        times: The iterations at their clocks.
        dynamic: Dynamic power there, relative to that at the highest clock.
    """
    active, compute = dynamic * (times.length - times.host), dynamic * times.compute
    return Activity(active, compute, times.memory, times.cache, times.link)


def mean_power_w(times: Times, watts: Watts, dynamic: Number) -> F64:
    """Mean power over each iteration; arguments as above."""
    return np.asarray(watts.idle + watts.above_idle(activity(times, dynamic)) / times.length)


def govern(needs: Needs, watts: Watts, clock: F64, dynamic: F64, cap_w: float) -> Governed:
    """Lets the governor choose the clock of every iteration.

    Args:
        needs: What they ask for.
        watts: What they draw.
        clock: The ladder: clocks relative to the highest, ascending.
        dynamic: Dynamic power at each, relative to that at the highest.
        cap_w: Power limit, watts.
    """
    step = np.full(needs.at(1.0).length.shape, len(clock) - 1)
    while True:
        times = needs.at(clock[step])
        power_w = mean_power_w(times, watts, dynamic[step])
        over = (power_w > cap_w) & (step > 0)
        if not over.any():
            return Governed(step, times, power_w)
        step = step - over
