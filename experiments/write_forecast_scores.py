"""Measures all models on the published series, and writes their scores, pictures and section of docs/forecasting.md.

Run as ``python -m llmcluster.experiments.write_forecast_scores [--data DIR]``. It takes about half an hour on one
core, tells how far it is, and goes on where it was cut; pieces that are done lie in ``runs/forecast-scores``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ..files import whole
from ..forecaster.models.learned import TrainSettings
from ..forecaster.telemetry import Telemetry, read_telemetry
from ..forecaster.weights import FORMAT
from .forecast_backtest import FOLDS, folds_of
from .forecast_hindsight import memory
from .forecast_page import DOCS, SCORES, write_page
from .forecast_plots import plot_forecasts, plot_skills
from .forecast_real_section import FORECASTS, SKILLS
from .forecast_scores import Case, measured, rounded, scores_of
from .output import progress_bar

SERVING = {
    "w1": "vllm_serving/burstgpt_a100_qwen3-8b_w1_power.csv",
    "w2": "vllm_serving/burstgpt_a100_qwen3-8b_w2_power.csv",
}
"""A server under arrivals, busy and mostly idle."""
SWEEPS = {
    "falcon": "telemetry/falcon-7b_1xA100_output-sweep.csv",
    "mistral": "telemetry/mistral-7b_1xV100_input-sweep.csv",
    "mixtral": "telemetry/mixtral-8x7b_3xA100_input-sweep.csv",
}
"""One long request after another."""
LONG, FEW_FOLDS = 2000, 2
"""Series from this many readings on have fewer folds, as each of theirs is long and takes long to train for."""
SEEDS = (0, 1)
SETTINGS = TrainSettings(epochs=150, patience=40)
"""A pass over a short series is a single step: with the usual patience networks would stop before they fit at all."""
NAME = "real"
SHOWN = ("w1", "w2", "mistral")
"""Cases whose forecasts are drawn."""


def cases_of(serving: Mapping[str, Telemetry], sweeps: Mapping[str, Telemetry], seeds: Sequence[int]) -> list[Case]:
    """What is measured: each series on its own future, and those of serving on one another.

    Args:
        serving: Series of servers under arrivals, by name.
        sweeps: Other series, by name.
        seeds: Seeds of learned models; on sweeps, where fits take long, only the first one.
    """
    chosen = tuple(seeds)
    cases = [Case(name, folds_of([], [one]), chosen) for name, one in serving.items()]
    for (a, one), (b, other) in permutations(serving.items(), 2):
        cases.append(Case(f"{a} → {b}", folds_of([one], [other]), chosen))
    for name, one in sweeps.items():
        cases.append(Case(name, folds_of([], [one], FEW_FOLDS if one.power_w.size >= LONG else FOLDS), chosen[:1]))
    return cases


def write_forecast_scores(data: Path, folder: Path, docs: Path, settings: TrainSettings, seeds: Sequence[int]) -> Path:
    """Measures what is not yet measured, and writes scores, pictures and page.

    Args:
        data: Folder of the published series.
        folder: Where pieces are kept.
        docs: Folder of the page.
        settings: How networks are trained.
        seeds: Seeds of learned models.

    Returns:
        The file of scores.
    """
    serving, sweeps = ({name: read_telemetry(data / path) for name, path in of.items()} for of in (SERVING, SWEEPS))
    cases = cases_of(serving, sweeps, seeds)
    compared: dict[str, Any] = {}
    with progress_bar() as progress:
        bar = progress.add_task("", total=sum(len(case.pieces) for case in cases))
        for case in cases:
            progress.update(bar, description=case.title)
            compared[case.title] = scores_of(case, settings, folder, lambda: progress.advance(bar))
    scores = rounded(
        {
            "series": {name: _described(one, {**SERVING, **SWEEPS}[name]) for name, one in (serving | sweeps).items()},
            "format": FORMAT,
            "settings": {name: value for name, value in vars(settings).items() if name != "device"},
            "cases": compared,
        }
    )
    target = docs / SCORES / f"{NAME}.json"
    target.parent.mkdir(exist_ok=True)
    with whole(target) as partial:
        partial.write_text(lines_of(scores), encoding="utf-8")
    (docs / "figures").mkdir(exist_ok=True)
    with whole(docs / SKILLS) as partial:
        plot_skills(scores["cases"], partial)
    drawn = [
        (case, lambda model, case=case: measured(case, model, case.seeds[0], settings, folder).forecast)
        for case in cases
        if case.title in SHOWN
    ]
    with whole(docs / FORECASTS) as partial:
        plot_forecasts(drawn, scores["cases"], partial)
    write_page(docs)
    return target


def _described(telemetry: Telemetry, path: str) -> dict[str, Any]:
    return {
        "file": path,
        "seconds": len(telemetry),
        "channels": len(telemetry.channels),
        "gaps": int((~telemetry.known).sum()),
        "mean_w": float(np.nanmean(telemetry.power_w)),
        "deviation_w": float(np.nanstd(telemetry.power_w)),
        "memory": memory(telemetry),
        "memory_of_second_half": memory(telemetry, len(telemetry) // 2),
    }


def lines_of(value: Any, depth: int = 4) -> str:
    """JSON with a line for each entry down to a depth, so that it stays small and changes can be read."""
    if depth == 0 or not isinstance(value, Mapping):
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    inner = (f"{json.dumps(key, ensure_ascii=False)}: {lines_of(one, depth - 1)}" for key, one in value.items())
    return "{\n" + ",\n".join(inner) + "\n}"


def main(
    data: Annotated[
        Path, typer.Option(envvar="LLMCLUSTER_DATA", help="Folder of the measured data")
    ] = DOCS.parent.parent / "shared" / "data",
    folder: Annotated[Path, typer.Option(help="Where finished pieces are kept")] = Path("runs/forecast-scores"),
) -> None:
    """Measures all models on the published series; run it again after a stop."""
    typer.echo(f"scores: {write_forecast_scores(data, folder, DOCS, SETTINGS, SEEDS)}")


if __name__ == "__main__":
    typer.run(main)
