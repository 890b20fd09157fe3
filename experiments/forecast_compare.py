"""The table of models by targets by series: who forecasts what better than the best naive model, and where."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

from ..forecaster.base import TARGETS
from ..forecaster.models.learned import TrainSettings
from ..forecaster.telemetry import Telemetry
from ..simulator.errors import InputError
from .forecast_backtest import Fold, Tick, backtest, folds_of

Case = tuple[str, list[Fold]]


def cases_of(train: Sequence[Telemetry], tests: Sequence[Telemetry], folds: int, *, across: bool) -> list[Case]:
    """What is compared, a column of the table each.

    Args:
        train: Series to fit on; none for a rolling backtest within each series.
        tests: Series to judge on.
        folds: Folds of a rolling backtest.
        across: Whether to fit on each series and judge on each other one, too.

    Returns:
        Titles, with what to fit and to judge on.

    Raises:
        InputError: A file is given twice, or there is nothing to go across.
    """
    if across and (train or len(tests) < 2):
        raise InputError(
            "--across", "trains on each test file and judges on the others", "Give two or more, no --train"
        )
    names = [_name(test) for test in tests]
    if len(set(names)) < len(names):
        names = [test.source for test in tests]
    if len(set(names)) < len(names):
        raise InputError("--test", f"{', '.join(names)} given", "Give each file once")
    named = list(zip(names, tests, strict=True))
    cases = [(name, folds_of(train, [test], folds)) for name, test in named]
    if across:
        cases += [(f"{a} → {b}", folds_of([one], [other], folds)) for (a, one), (b, other) in permutations(named, 2)]
    return cases


def compare(
    cases: Sequence[Case], models: Sequence[str], seed: int, tick: Tick, settings: TrainSettings | None = None
) -> dict[str, Any]:
    """Backtests models on every case.

    Args:
        cases: See :func:`cases_of`.
        models: Names, or files of weights.
        seed: Seed of all that is drawn.
        tick: Called after each model and fold.
        settings: How networks are trained.

    Returns:
        ``series`` by title, each what :func:`backtest` returns, and ``models``; plain values.
    """
    found = {title: backtest(folds, models, seed, tick, settings=settings) for title, folds in cases}
    return {"models": list(models), "series": found}


def tables(result: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """For each target a title, headings and rows of text: skill over the best naive model, its interval, MAE."""
    made = []
    for target in TARGETS:
        headings = ["model", *result["series"]]
        rows = [["best naive", *(_naive(found, target) for found in result["series"].values())]]
        for model in result["models"]:
            cells = [_cell(found["results"][model][target]) for found in result["series"].values()]
            rows.append([Path(model).name, *cells])
        made.append((target, headings, rows))
    return made


def markdown(result: dict[str, Any]) -> str:
    """The tables as a page."""
    lines = [
        "Skill over the best naive model on the same seconds, with its 95 % interval by a block bootstrap, and mean "
        "absolute error in watts; an arrow says what was trained on, then what was judged, and without one a model was "
        "trained on the past of the series itself.",
        "",
    ]
    for target, headings, rows in tables(result):
        lines += [f"**{target}**", "", f"| {' | '.join(headings)} |", "|---|" + "---:|" * (len(headings) - 1)]
        lines += [f"| {' | '.join(row)} |" for row in rows]
        lines.append("")
    for title, found in result["series"].items():
        for lags in found["autocorrelation"].values():
            lines.append(f"{title}: autocorrelation {', '.join(f'{r:.2f} at {lag}' for lag, r in lags.items())}  ")
    return "\n".join(lines) + "\n"


def _naive(found: dict[str, Any], target: str) -> str:
    return f"{found['best_naive'][target]} ({found['best_naive_mae_w'][target]:.2f} W)"


def _cell(row: dict[str, Any]) -> str:
    error = f"{row['mae_w']:.2f} W"
    if row["skill"] is None:
        return f"- ({error})"
    low, high = row["intervals"]["skill"]
    bounds = "" if low is None or high is None else f" [{low:+.1%} … {high:+.1%}]"
    return f"{row['skill']:+.1%}{bounds} ({error})"


def _name(telemetry: Telemetry) -> str:
    """A short name: of ``power.csv`` and the like, the folder says more."""
    path = Path(telemetry.source)
    return f"{path.parent.name}/{path.name}" if path.parent.name else path.name
