"""What sources tell beside errors of rows: figures over all rows, such as of dynamics, and doubtful measurements."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from .source import Row, Simulated

LOW, HIGH = "_low", "_high"


@runtime_checkable
class Summarised(Protocol):
    """A source that is judged by more than errors of rows."""

    def summary(self, rows: Sequence[Row], simulated: Sequence[Simulated]) -> Mapping[str, float]:
        """Figures over all rows by name, each with its interval as ``NAME_low`` and ``NAME_high``."""
        ...


@runtime_checkable
class Doubted(Protocol):
    """A source that knows which of its measurements are doubtful by themselves; they are compared all the same."""

    def outliers(self, rows: Sequence[Row]) -> Mapping[str, Sequence[str]]:
        """Places of such rows, by what is doubtful."""
        ...


@dataclass(frozen=True)
class Score:
    """One figure over all rows, with its 95 % interval; NaN where there is none.

    Attributes:
        name: Such as ``nrmse``.
        value: The figure; a share where it is an error.
        low: Lower bound.
        high: Upper bound.
    """

    name: str
    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, Any]:
        """The score as plain data."""
        known = not (math.isnan(self.low) or math.isnan(self.high))
        return {"value": self.value, "interval_95": [self.low, self.high] if known else None}

    def __str__(self) -> str:
        """The score for people."""
        return f"{self.name}: {self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def scores(summary: Mapping[str, float]) -> list[Score]:
    """The figures of a summary, each with its interval; those that are not defined are left out."""
    return [
        Score(name, value, summary.get(name + LOW, math.nan), summary.get(name + HIGH, math.nan))
        for name, value in summary.items()
        if not name.endswith((LOW, HIGH)) and not math.isnan(value)
    ]
