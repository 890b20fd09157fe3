"""Plots of measured against simulated, one small picture for each source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .errors import Comparison, Floats
from .source import Source
from .split import FIT, part

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c6d31", "#666666")
"""Okabe and Ito's colours, which the colour-blind tell apart."""
COLUMNS, PANEL_INCHES, DPI = 3, 3.1, 72
BAND = 0.10
WIDE = 30.0
"""Values that span more than this factor are shown on logarithmic axes."""


def plot(source: Source, comparison: Comparison, path: Path) -> None:
    """Draws a panel for each quantity: filled points are of the fit part, hollow ones are held out.

    Args:
        source: Names the quantities and their units.
        comparison: What is drawn.
        path: A PNG file; the same rows give the same bytes.
    """
    quantities = [q for q, errors in comparison.error.items() if not np.isnan(errors).all()]
    columns = min(COLUMNS, len(quantities))
    lines = -(-len(quantities) // columns)
    figure = Figure(figsize=(PANEL_INCHES * columns, PANEL_INCHES * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in panels[len(quantities) :]:
        axes.set_axis_off()
    for quantity, axes in zip(quantities, panels, strict=False):
        _panel(axes, comparison, quantity)
        axes.set_title(f"{quantity}, {source.quantities[quantity]}", fontsize=9)
    panels[0].legend(fontsize=6, frameon=False)
    panels[0].set_xlabel("measured")
    panels[0].set_ylabel("simulated")
    figure.savefig(path, format="png", dpi=DPI, metadata={"Software": None})


def _panel(axes: Axes, comparison: Comparison, quantity: str) -> None:
    fitted = np.array([part(row.configuration) == FIT for row in comparison.rows])
    known = ~np.isnan(comparison.error[quantity])
    measured = _column([row.measured.get(quantity) for row in comparison.rows])
    simulated = _column([one.get(quantity) for one in comparison.simulated])
    gpus = np.array([row.groups.get("gpu", "") for row in comparison.rows])
    both = np.concatenate([measured[known], simulated[known]])
    low, high = float(both.min()), float(both.max())
    for gpu, colour in zip(sorted(set(gpus[known])), COLOURS * len(gpus), strict=False):
        of_gpu = known & (gpus == gpu)
        for chosen, face in ((of_gpu & fitted, colour), (of_gpu & ~fitted, "none")):
            label = gpu if face == colour else None
            x, y = measured[chosen], simulated[chosen]
            axes.scatter(x, y, s=9, facecolors=face, edgecolors=colour, linewidths=0.7, label=label)
    line = np.array([low, high])
    axes.plot(line, line, color="#222222", linewidth=0.8)
    for factor in (1 - BAND, 1 + BAND):
        axes.plot(line, factor * line, color="#222222", linewidth=0.5, linestyle=":")
    if low > 0 and high / low > WIDE:
        axes.set_xscale("log")
        axes.set_yscale("log")
    axes.tick_params(labelsize=7)


def _column(values: Sequence[float | None]) -> Floats:
    return np.array([np.nan if value is None else value for value in values], np.float64)
