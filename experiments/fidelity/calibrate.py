"""Calibration: figures fitted to the fit part of the split, with intervals, residuals and where they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from ...simulator.catalog import Catalog
from ...simulator.errors import InputError
from .errors import LEVEL, Comparison, Summary
from .figures import flat, sha256
from .skipped import Skipped
from .source import Advance, Calibrated, Row, Source
from .split import FIT, part
from .validate import Group

Interval = tuple[float, float]

NOT_FITTED = Skipped("the fit leaves the row out", "`llmcluster validate` compares it, or says why not")


@dataclass(frozen=True)
class Calibration:
    """What a calibration found.

    Attributes:
        source: Where the rows come from.
        fitted_to: Which rows were used, in words.
        tables: The figures as they are written.
        figures: Every one of them by its dotted name.
        intervals: 95 % bootstrap interval over configurations, by dotted name.
        comparison: The rows with their residuals.
        summaries: Residuals by quantity.
        configurations: Residuals by configuration.
    """

    source: Source
    fitted_to: str
    tables: Mapping[str, Any]
    figures: Mapping[str, float]
    intervals: Mapping[str, Interval]
    comparison: Comparison
    summaries: Mapping[str, Summary]
    configurations: Mapping[str, Group]


def calibrated(source: Source) -> Calibrated:
    """The source as one that figures can be fitted to; raises ``InputError`` if it is none."""
    if not callable(getattr(source, "fit", None)):
        raise InputError(source.name, "nothing of the catalogue is fitted to it", "Use `llmcluster validate` instead")
    return cast(Calibrated, source)


def fit_rows(source: Source, rows: Sequence[Row]) -> list[Row]:
    """The rows of the fit part; raises ``InputError`` if there are none."""
    chosen = [row for row in rows if part(row.configuration) == FIT]
    if not chosen:
        problem = f"none of the {len(rows)} rows is in the fit part"
        raise InputError(source.name, problem, "Give more configurations, or fit to all of them with --all-rows")
    return chosen


def calibrate(
    source: Calibrated,
    rows: Sequence[Row],
    catalog: Catalog,
    rng: np.random.Generator,
    advance: Advance,
    *,
    all_rows: bool = False,
    bootstrap: int | None = None,
) -> Calibration:
    """Fits figures to rows.

    Args:
        source: Where the rows come from.
        rows: All of them; only those of the fit part are looked at.
        catalog: GPUs and models with their figures so far.
        rng: Source of whatever is drawn.
        advance: Is told how many rows are done.
        all_rows: Look at the held-out rows too.
        bootstrap: Take the intervals from so many fits to resampled configurations instead of the source's own way.

    Returns:
        Figures, intervals and residuals.

    Raises:
        InputError: No row is in the fit part.
    """
    chosen = list(rows) if all_rows else fit_rows(source, rows)
    fitted = source.fit(chosen, catalog, rng, advance)
    intervals = dict(fitted.intervals)
    if bootstrap is not None:
        intervals = _resampled(source, chosen, catalog, rng, bootstrap)
    error = {q: np.asarray(values, np.float64) for q, values in fitted.residuals.items()}
    residuals = Comparison(chosen, [NOT_FITTED] * len(chosen), error)
    by_configuration: dict[str, list[int]] = {}
    for i, row in enumerate(chosen):
        by_configuration.setdefault(row.configuration, []).append(i)
    which = "rows of both parts: none is held out" if all_rows else f"rows of the fit part, of {len(rows)} in all"
    return Calibration(
        source,
        f"fitted to {len(chosen)} {which}, {len(by_configuration)} configurations",
        fitted.tables,
        flat(fitted.tables),
        intervals,
        residuals,
        residuals.summaries(rng),
        {name: Group(len(i), residuals.chosen(i).summaries(rng)) for name, i in sorted(by_configuration.items())},
    )


def header(calibration: Calibration, files: Sequence[Path]) -> list[str]:
    """What the written file says of where its figures come from."""
    return [
        f"Written by `llmcluster calibrate {calibration.source.name}`: {calibration.fitted_to}.",
        calibration.source.title,
        *(f"{path.name}: sha256 {sha256(path)}" for path in files),
    ]


def as_json(calibration: Calibration, files: Sequence[Path]) -> dict[str, Any]:
    """The calibration as plain data."""
    return {
        "source": calibration.source.name,
        "fitted_to": calibration.fitted_to,
        "files": {path.name: sha256(path) for path in files},
        "figures": dict(calibration.figures),
        "interval_95": {name: list(bounds) for name, bounds in calibration.intervals.items()},
        "residuals": spread(calibration.summaries),
        "configurations": {
            name: {"rows": group.rows, **spread(group.summaries)} for name, group in calibration.configurations.items()
        },
    }


def spread(summaries: Mapping[str, Summary]) -> dict[str, Any]:
    """Median, 90th percentile and bias, each by quantity."""
    return {
        "median_abs_rel_error": {q: s.median for q, s in summaries.items()},
        "p90_abs_rel_error": {q: s.p90 for q, s in summaries.items()},
        "bias": {q: s.bias for q, s in summaries.items()},
    }


def _resampled(
    source: Calibrated, rows: Sequence[Row], catalog: Catalog, rng: np.random.Generator, resamples: int
) -> dict[str, Interval]:
    """Percentile intervals of every figure over fits to configurations drawn anew; each keeps its rows together."""
    members: dict[str, list[Row]] = {}
    for row in rows:
        members.setdefault(row.configuration, []).append(row)
    names = list(members)
    found: dict[str, list[float]] = {}
    for _ in range(resamples):
        drawn = [row for i in rng.integers(len(names), size=len(names)) for row in members[names[i]]]
        for name, value in flat(source.fit(drawn, catalog, rng, lambda done: None).tables).items():
            found.setdefault(name, []).append(value)
    tails = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
    return {name: _bounds(values, tails) for name, values in found.items()}


def _bounds(values: Sequence[float], tails: tuple[float, float]) -> Interval:
    low, high = np.quantile(values, tails)
    return float(low), float(high)
