"""Validation: measured rows beside simulated ones, as numbers. Nothing is fitted here."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...simulator.catalog import Catalog
from ...simulator.errors import InputError
from ...simulator.files import readable, whole
from .errors import Comparison, Summary
from .scores import Doubted, Score, Summarised, scores
from .source import Advance, Row, Source
from .split import part

FAR = 100.0
"""Simulated over measured, or the other way round, from which another unit is likelier than an error."""


@dataclass(frozen=True)
class Group:
    """Errors of the rows that have one value of one group."""

    rows: int
    summaries: Mapping[str, Summary]


@dataclass(frozen=True)
class Validation:
    """How far a source's rows are from what was simulated.

    Attributes:
        source: Where they come from.
        comparison: Row by row.
        summaries: Over all rows, by quantity.
        groups: By group, its value, and quantity.
        scores: Figures that are no error of single rows, of sources that have some.
        outliers: Places of doubtful measurements by what is doubtful, of sources that know some.
    """

    source: Source
    comparison: Comparison
    summaries: Mapping[str, Summary]
    groups: Mapping[str, Mapping[str, Group]]
    scores: Sequence[Score] = ()
    outliers: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def warnings(self) -> list[str]:
        """Quantities so far off that the files may have them in another unit."""
        ratios = {q: 1 + summary.bias for q, summary in self.summaries.items()}
        return [
            f"{q} is simulated {ratio:.3g} times as large as measured, in the median: are the files in {unit}?"
            for q, ratio in ratios.items()
            if (unit := self.source.quantities.get(q)) and ratio > 0 and not 1 / FAR < ratio < FAR
        ]


def read(source: Source, files: Sequence[Path], catalog: Catalog) -> list[Row]:
    """The rows of the files, at least one.

    Args:
        source: Whose layout they have.
        files: The files.
        catalog: GPUs and models that they may name.

    Raises:
        InputError: A file is absent, empty, or not of the source's layout.
    """
    for path in files:
        readable(path)
    rows = source.read(files, catalog)
    if not rows:
        raise InputError(", ".join(map(str, files)), f"no row for {source.name}", "Give a file with measured rows")
    return rows


def validate(source: Source, rows: Sequence[Row], catalog: Catalog, seed: int, advance: Advance) -> Validation:
    """Simulates rows and compares them with what was measured.

    Args:
        source: Where the rows come from.
        rows: The rows.
        catalog: GPUs and models with their figures.
        seed: Seed of the simulation and of the bootstrap.
        advance: Is told how many rows are done.

    Raises:
        InputError: No row can be compared.
    """
    outcomes = source.simulate(rows, catalog, seed, advance)
    return assess(source, Comparison.of(rows, outcomes, source.quantities), np.random.default_rng(seed))


def assess(source: Source, comparison: Comparison, rng: np.random.Generator) -> Validation:
    """Summarises a comparison, as a whole and by group."""
    if not (summaries := comparison.summaries(rng)):
        reasons = {why: len(some) for why, some in comparison.reasons.items()}
        problem = "; ".join(f"{why.reason} ({count} of them)" for why, count in reasons.items())
        remedy = next((why.remedy for why in reasons), "Give rows with one of its quantities")
        where = f"{source.name}, {len(comparison.rows)} rows"
        raise InputError(where, f"none of them can be compared: {problem or 'nothing was measured'}", remedy)
    groups = {
        key: {value: Group(len(i), comparison.chosen(i).summaries(rng)) for value, i in values.items()}
        for key, values in comparison.groups.items()
    }
    more = source.summary(comparison.rows, comparison.simulated) if isinstance(source, Summarised) else {}
    outliers = source.outliers(comparison.rows) if isinstance(source, Doubted) else {}
    return Validation(source, comparison, summaries, groups, scores(more), outliers)


def as_json(validation: Validation) -> dict[str, Any]:
    """The errors as plain data; a quantity that no row of a group can be compared in is left out there."""
    more: dict[str, Any] = {}
    if validation.scores:
        more["scores"] = {score.name: score.as_json() for score in validation.scores}
    if validation.warnings:
        more["warnings"] = validation.warnings
    if validation.outliers:
        more["outliers"] = {what: list(places) for what, places in validation.outliers.items()}
    return {
        "source": validation.source.name,
        "rows": len(validation.comparison.rows),
        **medians(validation.summaries),
        "groups": {
            key: {value: {"rows": group.rows, **medians(group.summaries)} for value, group in values.items()}
            for key, values in validation.groups.items()
        },
        "skipped": [one.as_json() for one in validation.comparison.omissions],
        "assumed": list(validation.source.assumed),
        **more,
    }


def medians(summaries: Mapping[str, Summary]) -> dict[str, Any]:
    """Median, its interval (none for a single configuration) and bias, each by quantity."""
    return {
        "median_abs_rel_error": {q: s.median for q, s in summaries.items()},
        "interval_95": {q: None if math.isnan(s.low) else [s.low, s.high] for q, s in summaries.items()},
        "bias": {q: s.bias for q, s in summaries.items()},
    }


def check_folder(out: Path | None) -> None:
    """Raises `InputError` where a file cannot be written because there is no such folder: before the work."""
    if out is not None and not out.absolute().parent.is_dir():
        raise InputError(f"--out {out}", "its folder does not exist", "Make the folder first")


def write_rows(comparison: Comparison, path: Path) -> None:
    """Writes every row beside what was simulated of it, as CSV; cells without a figure are empty."""
    keys = list(comparison.groups)
    columns = [f"{kind}_{q}" for q in comparison.error for kind in ("measured", "simulated", "error")]
    with whole(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["place", "configuration", *keys, *columns])
        for i, (row, simulated) in enumerate(zip(comparison.rows, comparison.simulated, strict=True)):
            groups = {**row.groups, "part": part(row.configuration)}
            figures: list[Any] = []
            for q, errors in comparison.error.items():
                error = "" if np.isnan(errors[i]) else float(errors[i])
                figures += [row.measured.get(q, ""), simulated.get(q, ""), error]
            writer.writerow([row.place, row.configuration, *(groups.get(key, "") for key in keys), *figures])
