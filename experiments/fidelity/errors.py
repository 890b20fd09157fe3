"""How far simulated rows are from measured ones: relative errors, their medians, and intervals of these."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .skipped import NO_FIGURE, ZERO, Skipped
from .source import Outcome, Row, Simulated
from .split import part

Floats = NDArray[np.float64]

RESAMPLES = 1000
LEVEL = 0.95
BLOCK_CELLS = 1_000_000
"""Resampled values held at once."""


@dataclass(frozen=True)
class Summary:
    """Relative errors of one quantity over some rows.

    Attributes:
        count: Rows compared.
        median: Median of the absolute error.
        low: Lower bound of the median's 95 % bootstrap interval over configurations; NaN for one configuration.
        high: Upper bound.
        bias: Median of the signed error: above 0 where the simulation is too high.
        p90: 90th percentile of the absolute error.
    """

    count: int
    median: float
    low: float
    high: float
    bias: float
    p90: float


@dataclass(frozen=True)
class Omission:
    """Measured quantities of a row that are not compared, and why."""

    place: str
    quantities: tuple[str, ...]
    why: Skipped

    def as_json(self) -> dict[str, Any]:
        """The omission as plain data."""
        told = {"reason": self.why.reason, "remedy": self.why.remedy}
        return {"place": self.place, "quantities": list(self.quantities), **told}


@dataclass(frozen=True)
class Outlier:
    """One quantity of one row."""

    place: str
    quantity: str
    measured: float
    simulated: float
    error: float


@dataclass(frozen=True)
class Comparison:
    """Measured rows beside simulated ones.

    Attributes:
        rows: What was measured.
        outcomes: What was simulated of each, or why nothing was.
        error: Relative error (simulated over measured, less 1) of each row, by quantity; NaN where there is none.
    """

    rows: Sequence[Row]
    outcomes: Sequence[Outcome]
    error: Mapping[str, Floats]

    @classmethod
    def of(cls, rows: Sequence[Row], outcomes: Sequence[Outcome], quantities: Iterable[str]) -> Comparison:
        """Compares rows one by one."""
        pairs = [(row, simulated_of(one)) for row, one in zip(rows, outcomes, strict=True)]
        error = {
            q: np.array([_relative(r.measured.get(q), s.get(q)) for r, s in pairs], np.float64) for q in quantities
        }
        return cls(rows, outcomes, error)

    @property
    def simulated(self) -> list[Simulated]:
        """What was simulated of each row; nothing of those that were skipped."""
        return [simulated_of(one) for one in self.outcomes]

    @property
    def groups(self) -> dict[str, dict[str, list[int]]]:
        """Indices of rows by group and its value, each sorted; the part of the split is a group too."""
        found: dict[str, dict[str, list[int]]] = {}
        for i, row in enumerate(self.rows):
            for key, value in (*row.groups.items(), ("part", part(row.configuration))):
                found.setdefault(key, {}).setdefault(value, []).append(i)
        return {key: dict(sorted(values.items())) for key, values in found.items()}

    @property
    def omissions(self) -> list[Omission]:
        """What was measured but is not compared, in the order of the rows; once for each row and reason."""
        found = []
        for i, (row, outcome) in enumerate(zip(self.rows, self.outcomes, strict=True)):
            lacking: dict[Skipped, list[str]] = {}
            for q, errors in self.error.items():
                if q in row.measured and np.isnan(errors[i]):
                    cell = ZERO if row.measured[q] == 0 else NO_FIGURE
                    lacking.setdefault(outcome if isinstance(outcome, Skipped) else cell, []).append(q)
            found += [Omission(row.place, tuple(quantities), why) for why, quantities in lacking.items()]
        return found

    @property
    def reasons(self) -> dict[Skipped, list[Omission]]:
        """Omissions by their reason, the most frequent first."""
        found: dict[Skipped, list[Omission]] = {}
        for one in self.omissions:
            found.setdefault(one.why, []).append(one)
        return dict(sorted(found.items(), key=lambda item: -len(item[1])))

    def chosen(self, indices: Sequence[int]) -> Comparison:
        """Some of the rows."""
        return Comparison(
            [self.rows[i] for i in indices],
            [self.outcomes[i] for i in indices],
            {q: errors[list(indices)] for q, errors in self.error.items()},
        )

    def where(self, **groups: str) -> Comparison:
        """The rows of which all these groups have the value given."""
        sets = [set(self.groups.get(key, {}).get(value, ())) for key, value in groups.items()]
        return self.chosen(sorted(set(range(len(self.rows))).intersection(*sets)))

    def summaries(self, rng: np.random.Generator, resamples: int = RESAMPLES) -> dict[str, Summary]:
        """A summary of each quantity that has an error in any row."""
        configurations = np.array([row.configuration for row in self.rows])
        return {
            q: summarise(errors, configurations, rng, resamples)
            for q, errors in self.error.items()
            if not np.isnan(errors).all()
        }

    def outliers(self, count: int) -> list[Outlier]:
        """The cells of largest absolute error, the worst first."""
        cells = [
            Outlier(row.place, q, row.measured[q], one[q], float(errors[i]))
            for i, (row, one) in enumerate(zip(self.rows, self.simulated, strict=True))
            for q, errors in self.error.items()
            if not np.isnan(errors[i])
        ]
        return sorted(cells, key=lambda cell: -abs(cell.error))[:count]


def simulated_of(outcome: Outcome) -> Simulated:
    """What was simulated of a row; nothing if it was skipped."""
    return {} if isinstance(outcome, Skipped) else outcome


def _relative(measured: float | None, simulated: float | None) -> float:
    if measured is None or simulated is None or measured == 0 or not math.isfinite(simulated):
        return math.nan
    return (simulated - measured) / abs(measured)


def summarise(
    errors: Floats, configurations: NDArray[np.str_], rng: np.random.Generator, resamples: int = RESAMPLES
) -> Summary:
    """Summary of relative errors; those that are NaN are left out.

    The interval is a percentile bootstrap that draws whole configurations, because rows of one configuration err
    together: resampling rows would make it too narrow.

    Args:
        errors: Signed relative error of each row (n,), not all NaN.
        configurations: Configuration of each row (n,).
        rng: Source of the resamples.
        resamples: Number of resamples.
    """
    known = ~np.isnan(errors)
    signed = errors[known]
    absolute = np.abs(signed)
    _, member = np.unique(configurations[known], return_inverse=True)
    low, high = _median_interval(absolute, member, rng, resamples)
    return Summary(
        len(signed),
        float(np.median(absolute)),
        low,
        high,
        float(np.median(signed)),
        float(np.quantile(absolute, 0.9)),
    )


def _median_interval(
    values: Floats, member: NDArray[np.intp], rng: np.random.Generator, resamples: int
) -> tuple[float, float]:
    count = int(member.max()) + 1
    if count < 2:
        return math.nan, math.nan
    order = np.argsort(values)
    values, member = values[order], member[order]
    medians = []
    block = max(1, BLOCK_CELLS // len(values))
    for first in range(0, resamples, block):
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=min(block, resamples - first))
        medians.append(_weighted_medians(values, drawn[:, member]))
    low, high = np.quantile(np.concatenate(medians), ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return float(low), float(high)


def _weighted_medians(values: Floats, times: NDArray[np.int64]) -> Floats:
    """Medians of ascending values, each counted so many times in each resample (resamples, n)."""
    up_to = np.cumsum(times, axis=1)
    total = up_to[:, -1:]
    lower, upper = ((up_to <= place).sum(axis=1) for place in ((total - 1) // 2, total // 2))
    return np.asarray((values[lower] + values[upper]) / 2, np.float64)
