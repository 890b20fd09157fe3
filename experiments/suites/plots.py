"""Pictures of a suite's tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...simulator.errors import InputError
from ...simulator.files import whole
from .suite import Plot, SuiteResult

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c6d31", "#666666")
"""Okabe and Ito's colours, which the colour-blind tell apart."""
MARKERS = "osD^v*"
INCHES, DPI = (6.4, 3.8), 90

Line = Mapping[str, str | float]


def draw(result: SuiteResult, plot: Plot, path: Path) -> None:
    """Draws a plot as a PNG file; the same rows give the same bytes.

    Raises:
        InputError: The suite has no such table, or the table no such column.
    """
    rows = result.tables.get(plot.table, ())
    columns = [name for name in (plot.x, *plot.y, plot.by) if name]
    if not rows or any(name not in rows[0] for name in columns):
        where = f"suite {result.suite}, plot '{plot.title}'"
        raise InputError(where, f"there is no table '{plot.table}' with {', '.join(columns)}", "Name what there is")
    figure = Figure(figsize=INCHES, layout="constrained")
    axes = figure.subplots()
    count = (draw_bars if plot.kind == "bars" else _draw_lines)(axes, plot, rows)
    axes.set_title(plot.title, fontsize=10)
    axes.set_xlabel(plot.x, fontsize=9)
    axes.set_ylabel(plot.y[0] if len(plot.y) == 1 else "", fontsize=9)
    axes.grid(color="#e4e7ea", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
    if count > 1:
        axes.legend(fontsize=8, frameon=False)
    with whole(path) as partial:
        figure.savefig(partial, format="png", dpi=DPI, metadata={"Software": None})


def _series(plot: Plot, rows: Sequence[Line]) -> Iterator[tuple[str, list[Line], str]]:
    """Name, rows and column of what is drawn in one colour."""
    for group in dict.fromkeys(row[plot.by] for row in rows) if plot.by else [""]:
        lines = [row for row in rows if not plot.by or row[plot.by] == group]
        for y in plot.y:
            yield (", ".join(str(part) for part in (group, y if len(plot.y) > 1 else "") if part), lines, y)


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def draw_bars(axes: Axes, plot: Plot, rows: Sequence[Line]) -> int:
    """Draws bars side by side over each word of the axis; a series that has no row for one leaves a gap.

    Returns:
        Number of series.
    """
    series, words = list(_series(plot, rows)), list(dict.fromkeys(str(row[plot.x]) for row in rows))
    width = 0.8 / len(series)
    for number, (name, lines, y) in enumerate(series):
        at = np.array([words.index(str(line[plot.x])) for line in lines]) + (number - (len(series) - 1) / 2) * width
        axes.bar(at, [float(line[y]) for line in lines], width, color=_colour(number), label=name)
    axes.set_xticks(np.arange(len(words)), [word.replace(" ", "\n") for word in words])
    return len(series)


def _draw_lines(axes: Axes, plot: Plot, rows: Sequence[Line]) -> int:
    series = list(_series(plot, rows))
    for number, (name, lines, y) in enumerate(series):
        x, values = (np.array([float(line[column]) for line in lines]) for column in (plot.x, y))
        style = "-" if plot.kind == "line" else ""
        marker = MARKERS[number % len(MARKERS)] if len(lines) < 40 else ""
        axes.plot(x, values, style, marker=marker, markersize=4, color=_colour(number), linewidth=1.3, label=name)
    return len(series)
