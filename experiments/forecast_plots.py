"""Pictures of forecasts: skill by model and series, and what was forecast beside what came."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..forecaster.base import TARGETS
from ..forecaster.models import LEARNED
from ..forecaster.targets import HORIZONS_S
from .fidelity.plots import COLOURS, COLUMNS, DPI, PANEL_INCHES
from .forecast_real_section import best_learned
from .forecast_scores import Case

LOWEST = -1.0
"""Skills below this are cut in the picture."""
STRETCH_S = 400
K = 0
HORIZON_S = HORIZONS_S[K]
"""The target whose forecasts are drawn."""
MODELS = ("ridge-ar", *LEARNED)
Drawn = tuple[Case, Callable[[str], NDArray[np.float32]]]
"""A case, and the forecasts of a model in it."""


def plot_skills(cases: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draws a panel for each case: bars of skill over the best naive model, with their intervals.

    Args:
        cases: Scores by title.
        path: A PNG file; the same scores give the same bytes.
    """
    lines = -(-len(cases) // COLUMNS)
    figure = Figure(figsize=(PANEL_INCHES * COLUMNS, 0.8 * PANEL_INCHES * lines), layout="constrained")
    panels = figure.subplots(lines, COLUMNS, squeeze=False).ravel()
    for axes in panels[len(cases) :]:
        axes.set_axis_off()
    for axes, (title, case) in zip(panels, cases.items(), strict=False):
        _bars(axes, case["results"])
        axes.set_title(title, fontsize=9)
    panels[0].legend(fontsize=6, frameon=False, loc="upper right", ncols=2)
    panels[0].set_ylabel("skill over the best naive model", fontsize=7)
    figure.savefig(path, format="png", dpi=DPI, metadata={"Software": None})


def _bars(axes: Axes, results: Mapping[str, Any]) -> None:
    width = 0.8 / len(TARGETS)
    for k, (target, colour) in enumerate(zip(TARGETS, COLOURS, strict=False)):
        rows = [results[model][target] for model in MODELS]
        skill = np.array([np.nan if row["skill"] is None else row["skill"] for row in rows])
        bounds = np.array([[np.nan if x is None else x for x in row["intervals"]["skill"]] for row in rows]).T
        x = np.arange(len(MODELS)) + (k - 1.5) * width
        axes.bar(x, np.maximum(skill, LOWEST), width, color=colour, label=target)
        low, high = np.clip(bounds, LOWEST, 1.0)
        axes.vlines(x, low, high, color="#222222", linewidth=0.6)
    axes.axhline(0.0, color="#222222", linewidth=0.8)
    axes.axhline(0.1, color="#222222", linewidth=0.5, linestyle=":")
    axes.set_ylim(LOWEST, max(0.5, axes.get_ylim()[1]))
    axes.set_xticks(np.arange(len(MODELS)), MODELS, rotation=40, ha="right")
    axes.tick_params(labelsize=6)


def plot_forecasts(drawn: Sequence[Drawn], cases: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draws what came, what the best naive model said of it, and the best learned one with its 80 % interval.

    Args:
        drawn: What is drawn, a panel each.
        cases: Scores by title, which say who is best.
        path: A PNG file; the same forecasts give the same bytes.
    """
    figure = Figure(figsize=(PANEL_INCHES * COLUMNS, 0.7 * PANEL_INCHES * len(drawn)), layout="constrained")
    panels = figure.subplots(len(drawn), 1, squeeze=False).ravel()
    for axes, (case, forecast) in zip(panels, drawn, strict=True):
        scores = cases[case.title]
        naive = scores["best_naive"][TARGETS[K]]
        learned = best_learned(scores["results"], TARGETS[K])
        test, first_s, last_s = case.folds[0].test, case.folds[0].first_s, case.folds[-1].last_s
        begin_s = max(first_s, last_s - STRETCH_S - HORIZON_S)
        said = slice(begin_s - first_s, last_s - HORIZON_S - first_s)
        at = np.arange(begin_s, last_s - HORIZON_S) + HORIZON_S
        quantiles = forecast(learned)[said, 0, K]
        axes.plot(at, test.power_w[at, 0], color="#222222", linewidth=0.8, label="measured")
        axes.plot(at, forecast(naive)[said, 0, K, 1], color=COLOURS[1], linewidth=1.0, label=naive)
        axes.plot(at, quantiles[:, 1], color=COLOURS[0], linewidth=1.0, label=learned)
        axes.fill_between(at, quantiles[:, 0], quantiles[:, 2], color=COLOURS[0], alpha=0.2, linewidth=0)
        axes.set_title(f"{case.title}: power as it was forecast {HORIZON_S} s before", fontsize=9)
        axes.legend(fontsize=6, frameon=False, loc="upper left")
        axes.set_ylabel("W", fontsize=7)
        axes.tick_params(labelsize=7)
    panels[-1].set_xlabel("second of the series", fontsize=7)
    figure.savefig(path, format="png", dpi=DPI, metadata={"Software": None})
