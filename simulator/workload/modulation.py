"""Modulation: a slow factor on the rate of any open-loop process, by bending time."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from .kinds import Kinds, Part

MAX_POINTS = 1_000_000
"""Points of the tabulated clock, at most; between them the factor is taken as constant."""


@dataclass(frozen=True)
class Clock:
    """Real against operational time, tabulated; the process runs in operational time at its own rate.

    Attributes:
        real_s: Real time, seconds, ascending.
        operational_at: The factor integrated up to there, seconds.
    """

    real_s: NDArray[np.float64]
    operational_at: NDArray[np.float64]

    @property
    def operational_s(self) -> float:
        """Operational length of the run, seconds."""
        return float(self.operational_at[-1])

    def real(self, operational: NDArray[np.float64]) -> NDArray[np.float64]:
        """Real times of the given operational times, seconds."""
        return np.interp(operational, self.operational_at, self.real_s)


class Modulation(Part):
    """A factor on the rate over time."""

    kind: str
    period_s: float = Field(gt=0)
    phase: float | Literal["random"] = 0.0

    @abstractmethod
    def factor(self, turns: NDArray[np.float64]) -> NDArray[np.float64]:
        """The factor at the given places of the cycle, in turns of it: 0.25 is a quarter through the first."""

    def clock(self, duration_s: float, rng: np.random.Generator) -> Clock:
        """Tabulates the clock of a run of ``duration_s`` seconds; a random phase is drawn here."""
        phase = rng.random() if self.phase == "random" else self.phase
        points = int(np.clip(512 * duration_s / self.period_s, 512, MAX_POINTS))
        real_s = np.linspace(0, duration_s, points + 1)
        middle = (real_s[1:] + real_s[:-1]) / 2
        area = np.cumsum(self.factor(middle / self.period_s + phase)) * (duration_s / points)
        return Clock(real_s, np.concatenate([[0.0], area]))


MODULATIONS: Kinds[Modulation] = Kinds("modulation")
AnyModulation = Annotated[SerializeAsAny[Modulation], BeforeValidator(MODULATIONS.parse)]


@MODULATIONS.register("diurnal")
class Diurnal(Modulation):
    """A sinusoid between ``low`` and ``high``.

    Attributes:
        period_s: Length of the cycle, seconds.
        phase: Where in the cycle the run starts, in turns: 0 at the trough, 0.5 at the peak, or "random".
        low: Factor at the trough.
        high: Factor at the peak.
    """

    kind: Literal["diurnal"] = "diurnal"
    period_s: float = Field(86_400.0, gt=0)
    low: float = Field(gt=0)
    high: float = Field(gt=0)

    @model_validator(mode="after")
    def _check(self) -> Diurnal:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        return self

    def factor(self, turns: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sinusoid."""
        return self.low + (self.high - self.low) * (1 - np.cos(2 * np.pi * turns)) / 2


@MODULATIONS.register("piecewise")
class Piecewise(Modulation):
    """Straight lines between points, repeated every ``period_s``.

    Attributes:
        period_s: Length of the cycle, seconds.
        phase: Where in the cycle the run starts, in turns, or "random".
        times_s: Times of the points within the cycle, seconds, ascending.
        factors: Factor at each point; the last point is joined to the first of the next cycle.
    """

    kind: Literal["piecewise"] = "piecewise"
    times_s: tuple[float, ...] = Field(min_length=1)
    factors: tuple[float, ...]

    @model_validator(mode="after")
    def _check(self) -> Piecewise:
        if len(self.times_s) != len(self.factors):
            raise ValueError(f"factors has {len(self.factors)} values for {len(self.times_s)} times")
        if min(self.factors) < 0 or max(self.factors) == 0:
            raise ValueError("factors must not be negative, and one of them must be above 0")
        if np.any(np.diff(self.times_s) <= 0) or self.times_s[0] < 0 or self.times_s[-1] >= self.period_s:
            raise ValueError(f"times_s must ascend within [0, period_s = {self.period_s})")
        return self

    def factor(self, turns: NDArray[np.float64]) -> NDArray[np.float64]:
        """The interpolated factor."""
        return np.interp(turns * self.period_s, self.times_s, self.factors, period=self.period_s)
