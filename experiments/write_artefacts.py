"""Trains the forecaster that the package ships, on simulated telemetry, and writes its weights, card and scores.

Run as ``python -m llmcluster.experiments.write_artefacts``; whenever the physics change, its stamp is stale. With
``--short`` it learns from less, for less long.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from ..envs.scenario import load_scenario
from ..forecaster.models import LEARNED, NAIVE, HeldOut
from ..forecaster.models.learned import TrainSettings
from ..forecaster.shipped import path_of
from ..forecaster.telemetry import Telemetry
from ..forecaster.weights import load_model, save_model
from ..simulator.stamp import physics_stamp
from .bench.forecast import measure
from .forecast_backtest import WARM_UP_S, Fold
from .forecast_compare import compare
from .forecast_page import BRIEFLY, DOCS, write_scores
from .forecast_simulated import RANDOM_CAPS, WHOLE, record_all
from .forecast_train import train
from .output import people, write_json
from .seeds import held_out_seeds, training_seed, validation_seeds

MODEL = "gru"
ALL = "all"
ROUNDS = 500
"""Updates that are timed."""


@dataclass(frozen=True)
class Recipe:
    """What the shipped forecaster learns from, and how.

    Attributes:
        scenarios: Names of the scenarios that are recorded.
        agents: Who runs them to be tested on.
        more_agents: Who runs them beside those to be learnt from: random caps teach what caps do, but nobody can
            foresee them.
        episodes: Episodes of each agent in each scenario to fit on; those of a validation, a calibration and a test
            come on top.
        validation: Episodes of each agent in each scenario to validate on.
        calibration: Episodes of each agent of the test in each scenario to calibrate intervals on.
        tests: Episodes of each agent in each scenario to test on.
        naive: Episodes of each that naive models, which have few figures, are fitted on.
        seeds: Seeds of the training; the one that validates best is kept.
        settings: How the network is trained.
        families: Kinds of networks that are compared on less: they are trained on ``brief_episodes`` of each agent in
            each scenario with ``brief_settings``, the first seed only.
        brief_episodes: See ``families``.
        brief_settings: See ``families``.
    """

    scenarios: tuple[str, ...] = ("default", "power-budget", "flash-crowd", "mixed-fleet", "azure-chat")
    agents: tuple[str, ...] = ("least-outstanding", "follow-load", "uniform-cap")
    more_agents: tuple[str, ...] = (RANDOM_CAPS,)
    episodes: int = 20
    validation: int = 1
    calibration: int = 4
    tests: int = 3
    naive: int = 1
    seeds: tuple[int, ...] = (0,)
    settings: TrainSettings = field(
        default_factory=lambda: TrainSettings(
            hidden=32, epochs=20, patience=10, batch=64, window_s=900, stride_s=10, learning_rate=6e-3, blind=0.2
        )
    )
    families: tuple[str, ...] = tuple(LEARNED)
    brief_episodes: int = 2
    brief_settings: TrainSettings = field(
        default_factory=lambda: TrainSettings(
            hidden=24, epochs=10, patience=10, batch=64, window_s=900, stride_s=10, learning_rate=4e-3
        )
    )


def write_artefacts(recipe: Recipe, path: Path, docs: Path, console: Console) -> dict[str, Any]:
    """Records, trains, tests on episodes that nothing was learnt from, and writes weights, card and scores.

    Args:
        recipe: What to learn from, and how.
        path: File of the weights; the card goes beside it as ``.json``.
        docs: Folder of the page of forecasts.
        console: Is told how far it is.

    Returns:
        The card.
    """
    scenarios = [load_scenario(name) for name in recipe.scenarios]
    first = training_seed(0)
    everyone = (*recipe.agents, *recipe.more_agents)
    series = record_all(scenarios, everyone, range(first, first + recipe.episodes))
    console.print(f"recorded {len(series)} episodes to fit on")
    seeds = validation_seeds(0, recipe.validation + recipe.calibration)
    chosen_by = record_all(scenarios, everyone, seeds[: recipe.validation])
    # Only the agents of the test: intervals hold for what they were calibrated on.
    calibrated_on = record_all(scenarios, recipe.agents, seeds[recipe.validation :])
    held_out = HeldOut(tuple(chosen_by), tuple(calibrated_on))
    tests = record_all(scenarios, recipe.agents, held_out_seeds(0, recipe.tests))

    def tell(seed: int, done: int, of: int, best: float) -> None:
        console.print(f"seed {seed}: pass {done} of at most {of}, validation {best:.4f}")

    with tempfile.TemporaryDirectory() as folder:
        card = train(MODEL, series, recipe.seeds, recipe.settings, Path(folder), tell, held_out)
        weights = Path(folder) / f"{MODEL}.safetensors"
        model, _ = load_model(weights)
        labels = {str(weights): MODEL}
        for name in recipe.families:
            brief = Path(folder) / "brief" / name
            few = _some(series, recipe.episodes, recipe.brief_episodes)
            train(name, few, recipe.seeds[:1], recipe.brief_settings, brief, tell, held_out)
            labels[str(brief / f"{name}.safetensors")] = f"{name}{BRIEFLY}"
        names = [*NAIVE, *labels]
        naive = record_all(scenarios, recipe.agents, range(first, first + recipe.naive))
        found = compare(_cases(naive, tests), names, 0, lambda: None)
        cost = measure(str(weights), ROUNDS)["update_us"]
    scores = {"compare": _renamed(found, labels), "update_us": cost, "tests": len(tests)}
    everything = scores["compare"]["series"][ALL]
    card |= {
        "data": {
            "kind": "simulated, as the environment meters it",
            "scenarios": list(recipe.scenarios),
            "agents": list(everyone),
            "episodes_each": recipe.episodes,
            "seconds": sum(len(t) for t in series),
            "channel_seconds": sum(t.power_w.size for t in series),
            "first_seed": first,
        },
        "physics": physics_stamp(),
        "test": {
            "agents": list(recipe.agents),
            "episodes": len(tests),
            "forecasts": everything["forecasts"],
            "best_naive": everything["best_naive"],
            "figures": everything["results"][MODEL],
        },
    }
    save_model(model, path, card)
    write_json(card, str(path.with_suffix(".json")))
    write_scores("simulated", scores, docs)
    return card


def _cases(train: Sequence[Telemetry], tests: Sequence[Telemetry]) -> list[tuple[str, list[Fold]]]:
    """All channels together, the slots, and the whole clusters."""

    def folds(chosen: Sequence[Telemetry]) -> list[Fold]:
        return [Fold(tuple(train), t, WARM_UP_S, len(t)) for t in chosen]

    slots = [t.select([name for name in t.channels if name != WHOLE]) for t in tests]
    return [(ALL, folds(tests)), ("slots", folds(slots)), ("clusters", folds([t.select([WHOLE]) for t in tests]))]


def _some(series: Sequence[Telemetry], each: int, wanted: int) -> list[Telemetry]:
    """The first episodes of each agent in each scenario."""
    return [telemetry for i, telemetry in enumerate(series) if i % each < wanted]


def _renamed(found: dict[str, Any], labels: Mapping[str, str]) -> dict[str, Any]:
    """The same with models by their labels instead of files."""
    series = {
        title: {
            **one,
            "autocorrelation": {"": _mean(list(one["autocorrelation"].values()))},
            "results": {labels.get(name, name): row for name, row in one["results"].items()},
        }
        for title, one in found["series"].items()
    }
    return {"models": [labels.get(name, name) for name in found["models"]], "series": series}


def _mean(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over rows by name."""
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def summary(card: dict[str, Any]) -> Sequence[str]:
    """What the card says of the test, a line for each target."""
    test = card["test"]
    return [
        f"{target}: MAE {row['mae_w']:.2f} W, skill {row['skill']:+.1%} over {test['best_naive'][target]}, "
        f"{row['coverage_80']:.1%} within the 80 % interval"
        for target, row in test["figures"].items()
    ]


def short(recipe: Recipe) -> Recipe:
    """The same with fewer episodes and passes, for a look."""
    return replace(recipe, episodes=6, tests=2, families=(), settings=replace(recipe.settings, epochs=24))


if __name__ == "__main__":
    console = people("-")
    chosen = short(Recipe()) if "--short" in sys.argv[1:] else Recipe()
    for line in summary(write_artefacts(chosen, path_of(MODEL), DOCS, console)):
        console.print(line)
