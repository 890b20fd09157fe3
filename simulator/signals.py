"""Signals over time that the world sets: budgets, prices, temperatures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from .workload.gaussian import gaussian_series

Points = tuple[tuple[float, float], ...]


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


def through(points: Points) -> PiecewiseLinear:
    """A signal through breakpoints (time in seconds, value)."""
    times, values = np.array(points, np.float64).T
    return PiecewiseLinear(times, values)


def ascend(points: Points, what: str) -> None:
    """Raises ``ValueError`` unless the first of each pair ascends; two equal ones make a step."""
    firsts = [first for first, _ in points]
    if firsts != sorted(firsts) or any(firsts.count(x) > 2 for x in firsts):
        raise ValueError(f"{what} {[list(p) for p in points]} must ascend, with at most two alike for a step")


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


class SignalSpec(BaseModel):
    """A value over time: a level or breakpoints, a daily swing around it, and noise on top."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    level: float = Field(default=0.0, description="Value without swing and noise.")
    points: Points = Field(default=(), description="Breakpoints `[[t_s, value], …]` in place of the level.")
    swing: float = Field(default=0.0, ge=0, description="Amplitude of a sinusoid around it.")
    period_s: float = Field(default=86_400.0, gt=0, description="Length of its cycle, seconds.")
    phase: float | Literal["random"] = Field(
        default=0.0,
        description="Where in the cycle the run starts, in turns: 0 trough, 0.5 peak; `random` is one draw a run.",
    )
    noise: float = Field(default=0.0, ge=0, description="Standard deviation of a Gaussian noise on it.")
    noise_s: float = Field(default=600.0, gt=0, description="Correlation time of the noise, seconds.")
    least: float | None = Field(default=None, description="The value never falls below this.")
    announced: bool = Field(default=True, description="Whether it is known ahead: day-ahead prices, forecasts.")

    @model_validator(mode="after")
    def _points_ascend(self) -> Self:
        if self.points and self.level:
            raise ValueError("give level or points, not both")
        ascend(self.points, "the times of points")
        return self

    def base(self) -> PiecewiseLinear:
        """The signal without swing and noise."""
        return through(self.points) if self.points else constant(self.level)

    @property
    def scale(self) -> float:
        """What counts as 1: the size of the mean of the base between its breakpoints; 1 if that is 0."""
        base = self.base()
        span_s = base.times_s[-1] - base.times_s[0]
        mean = np.trapezoid(base.values, base.times_s) / span_s if span_s else base.values[0]
        return abs(float(mean)) or 1.0

    def draw(self, duration_s: float, rng: np.random.Generator, clock: float = 0.0) -> PiecewiseLinear:
        """Draws the signal of one run; it is given for each second unless it is made of straight lines alone.

        Args:
            duration_s: Length of the run, seconds.
            rng: Source of the noise.
            clock: What a random phase is in this run, in turns.

        Returns:
            The signal.
        """
        phase = clock if self.phase == "random" else self.phase
        signal = self.base()
        if self.swing or self.noise or self.least is not None:
            times_s = np.arange(int(np.ceil(duration_s)) + 1, dtype=np.float64)
            values = signal.at(times_s) - self.swing * np.cos(2 * np.pi * (times_s / self.period_s + phase))
            values += gaussian_series(len(times_s), ((self.noise_s, self.noise**2),), rng, 0.0)
            signal = PiecewiseLinear(times_s, np.maximum(values, -np.inf if self.least is None else self.least))
        return signal
