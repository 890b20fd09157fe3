"""Errors and fitted figures as tables for people."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .calibrate import Calibration
from .errors import Comparison, Summary
from .places import short, spans
from .validate import Group, Validation

OUTLIERS = 10


def print_validation(validation: Validation, console: Console) -> None:
    """Prints errors over all rows and by group, the worst cells, what was skipped and what is assumed."""
    source, comparison = validation.source, validation.comparison
    console.print(f"{source.name}: {source.title}; {len(comparison.rows)} rows", markup=False)
    console.print(_overall(validation.summaries, source.quantities, "median error"))
    for key, values in validation.groups.items():
        console.print(_by_group(key, values, list(validation.summaries)))
    for score in validation.scores:
        console.print(str(score), markup=False)
    console.print(_outliers(comparison))
    _print_skipped(comparison, console)
    for what, places in validation.outliers.items():
        console.print(f"doubtful, but compared: {what}: {spans(places)}", markup=False)
    for line in source.assumed:
        console.print(f"assumed: {line}", markup=False)
    for line in validation.warnings:
        console.print(f"warning: {line}", markup=False, style="bold")


def print_calibration(calibration: Calibration, console: Console) -> None:
    """Prints what was fitted, with intervals, and how far the rows are from it, overall and by configuration."""
    source = calibration.source
    console.print(f"{source.name}: {source.title}; {calibration.fitted_to}", markup=False)
    table = _table("figure", "value", "95 % interval")
    for name, value in calibration.figures.items():
        interval = calibration.intervals.get(name)
        table.add_row(name, f"{value:.6g}", "" if interval is None else f"{interval[0]:.4g} … {interval[1]:.4g}")
    for name in calibration.intervals.keys() - calibration.figures.keys():
        table.add_row(name, "", "{:.4g} … {:.4g}".format(*calibration.intervals[name]))
    console.print(table)
    console.print(_overall(calibration.summaries, source.quantities, "median residual"))
    if calibration.configurations:
        console.print(_by_group("configuration", calibration.configurations, list(calibration.summaries)))
    _print_skipped(calibration.comparison, console)


def percent(value: float) -> str:
    """A share as percent, with two significant digits below ten."""
    return "–" if math.isnan(value) else f"{100 * value:.1f} %" if abs(value) >= 0.0995 else f"{100 * value:.2f} %"


def interval(summary: Summary) -> str:
    """The bounds of a median; empty where one configuration has none."""
    return "" if math.isnan(summary.low) else f"{100 * summary.low:.1f} … {100 * summary.high:.1f}"


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, header_style="bold")
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _overall(summaries: Mapping[str, Summary], units: Mapping[str, str], title: str) -> Table:
    table = _table("quantity", "rows", title, "95 % interval", "bias", "90th percentile")
    for q, s in summaries.items():
        name = f"{q}, {units[q]}" if units.get(q) else q
        table.add_row(name, str(s.count), percent(s.median), interval(s), f"{100 * s.bias:+.2f} %", percent(s.p90))
    return table


def _by_group(key: str, values: Mapping[str, Group], quantities: list[str]) -> Table:
    table = _table(key, "rows", *quantities)
    for value, group in values.items():
        found = (group.summaries.get(q) for q in quantities)
        table.add_row(value, str(group.rows), *("–" if s is None else percent(s.median) for s in found))
    return table


def _outliers(comparison: Comparison) -> Table:
    table = _table("furthest off", "quantity", "measured", "simulated", "error")
    for cell in comparison.outliers(OUTLIERS):
        figures = (f"{value:.4g}" for value in (cell.measured, cell.simulated))
        table.add_row(short(cell.place), cell.quantity, *figures, f"{100 * cell.error:+.1f} %")
    return table


def _print_skipped(comparison: Comparison, console: Console) -> None:
    """Why rows are not compared, how many for each reason, and which."""
    if not (reasons := comparison.reasons):
        return
    rows = len({one.place for some in reasons.values() for one in some})
    console.print(f"{rows} of {len(comparison.rows)} rows cannot be compared in full:")
    table = Table(box=None, header_style="bold")
    table.add_column("rows", justify="right")
    for name in ("not compared because", "in"):
        table.add_column(name, overflow="fold")
    for why, some in reasons.items():
        table.add_row(
            str(len(some)), Text(str(why)), ", ".join(dict.fromkeys(q for one in some for q in one.quantities))
        )
    console.print(table)
    for why, some in reasons.items():
        console.print(f"{why.reason}: {spans(one.place for one in some)}", markup=False)


def print_left_out(comparison: Comparison, units: Mapping[str, str], console: Console) -> None:
    """Prints how well each model is predicted from the others."""
    if not any(comparison.simulated):
        console.print("no model can be predicted from the others: what is fitted is each model's own")
        return
    rng = np.random.default_rng(0)
    console.print(_overall(comparison.summaries(rng), units, "leave-one-model-out error"))
    groups = {
        value: Group(len(i), comparison.chosen(i).summaries(rng)) for value, i in comparison.groups["model"].items()
    }
    console.print(_by_group("model left out", groups, list(comparison.error)))
    _print_skipped(comparison, console)
