"""Figures of a source that are no error of single rows, such as how well the dynamics of a trace are met."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from .errors import Comparison


@dataclass(frozen=True)
class Score:
    """One figure over all rows, with its 95 % interval.

    Attributes:
        name: Such as ``nrmse``.
        title: What it is, in words.
        value: The figure; a share where it is an error.
        low: Lower bound.
        high: Upper bound.
    """

    name: str
    title: str
    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, Any]:
        """The score as plain data."""
        return {"value": self.value, "interval_95": [self.low, self.high]}


@runtime_checkable
class Scored(Protocol):
    """A source that is judged by more than errors of rows."""

    def scores(self, comparison: Comparison, rng: np.random.Generator) -> Sequence[Score]:
        """The figures of compared rows."""
        ...
