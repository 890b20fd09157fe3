"""Signals over time that the world sets: budgets, prices, temperatures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, eq=False)
class PiecewiseLinear:
    """A value that moves along straight lines between breakpoints and stays put outside them.

    Attributes:
        times_s: Breakpoints, seconds, ascending (equal times make a step).
        values: Value at each.
    """

    times_s: NDArray[np.float64]
    values: NDArray[np.float64]

    def at(self, time_s: ArrayLike) -> NDArray[np.float64]:
        """Value at each of ``time_s``."""
        return np.interp(np.asarray(time_s, np.float64), self.times_s, self.values)


def constant(value: float) -> PiecewiseLinear:
    """A signal that never moves."""
    return PiecewiseLinear(np.zeros(1), np.array([value]))


def random_holds(
    rng: np.random.Generator,
    duration_s: float,
    levels: tuple[float, ...],
    mean_hold_s: float,
    ramp_s: float,
) -> PiecewiseLinear:
    """Holds a level for a while, then ramps to another: how a site's power budget moves under demand response.

    Args:
        rng: Source of randomness.
        duration_s: Length.
        levels: Levels to choose from; the first one opens.
        mean_hold_s: Mean time at a level; holds are uniform on 0.5 to 1.5 of it.
        ramp_s: Time from one level to the next.

    Returns:
        The signal.
    """
    times, values, now, level = [0.0], [levels[0]], 0.0, levels[0]
    while now < duration_s and len(levels) > 1:
        now += float(rng.uniform(0.5, 1.5)) * mean_hold_s
        times.append(now)
        values.append(level)
        level = float(rng.choice([x for x in levels if x != level]))
        now += ramp_s
        times.append(now)
        values.append(level)
    return PiecewiseLinear(np.array(times), np.array(values))
