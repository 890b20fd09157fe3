"""Trains the forecaster that the package ships, on simulated telemetry, and writes its weights and card.

Run as ``python -m llmcluster.experiments.write_artefacts``; whenever the physics change, its stamp is stale.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from ..envs.scenario import load_scenario
from ..forecaster.models.learned import TrainSettings
from ..forecaster.shipped import path_of
from ..forecaster.weights import load_model, save_model
from ..simulator.stamp import physics_stamp
from .forecast_backtest import WARM_UP_S, Fold, backtest
from .forecast_simulated import RANDOM_CAPS, record_all
from .forecast_train import train
from .output import people, write_json
from .seeds import held_out_seeds, training_seed

MODEL = "gru"


@dataclass(frozen=True)
class Recipe:
    """What the shipped forecaster learns from, and how.

    Attributes:
        scenarios: Names of the scenarios that are recorded.
        agents: Who runs them.
        episodes: Episodes of each agent in each scenario to train on; one more is for the test.
        seeds: Seeds of the training; the one that validates best is kept.
        settings: How the network is trained.
    """

    scenarios: tuple[str, ...] = ("default", "power-budget", "flash-crowd", "mixed-fleet", "azure-chat")
    agents: tuple[str, ...] = ("least-outstanding", "follow-load", "uniform-cap", RANDOM_CAPS)
    episodes: int = 2
    seeds: tuple[int, ...] = (0, 1)
    settings: TrainSettings = field(default_factory=lambda: TrainSettings(hidden=24, epochs=24, patience=6, batch=64))


def write_artefacts(recipe: Recipe, path: Path, console: Console) -> dict[str, Any]:
    """Records, trains, tests on episodes that were not trained on, and writes weights and card.

    Args:
        recipe: What to learn from, and how.
        path: File of the weights; the card goes beside it as ``.json``.
        console: Is told how far it is.

    Returns:
        The card.
    """
    scenarios = [load_scenario(name) for name in recipe.scenarios]
    first = training_seed(0)
    series = record_all(scenarios, recipe.agents, range(first, first + recipe.episodes))
    console.print(f"recorded {len(series)} episodes")

    def tell(seed: int, done: int, of: int, best: float) -> None:
        console.print(f"seed {seed}: pass {done} of at most {of}, validation {best:.4f}")

    with tempfile.TemporaryDirectory() as folder:
        card = train(MODEL, series, recipe.seeds, recipe.settings, Path(folder), tell)
        weights = Path(folder) / f"{MODEL}.safetensors"
        tests = record_all(scenarios, recipe.agents, held_out_seeds(0, 1))
        folds = [Fold(tuple(series), test, WARM_UP_S, len(test)) for test in tests]
        found = backtest(folds, [str(weights)], 0)
        model, _ = load_model(weights)
    card |= {
        "data": {
            "kind": "simulated, as the environment meters it",
            "scenarios": list(recipe.scenarios),
            "agents": list(recipe.agents),
            "episodes_each": recipe.episodes,
            "seconds": sum(len(t) for t in series),
            "channel_seconds": sum(t.power_w.size for t in series),
            "first_seed": first,
        },
        "physics": physics_stamp(),
        "test": {
            "episodes": len(tests),
            "forecasts": found["forecasts"],
            "best_naive": found["best_naive"],
            "figures": found["results"][str(weights)],
        },
    }
    save_model(model, path, card)
    write_json(card, str(path.with_suffix(".json")))
    return card


def summary(card: dict[str, Any]) -> Sequence[str]:
    """What the card says of the test, a line for each target."""
    test = card["test"]
    return [
        f"{target}: MAE {row['mae_w']:.2f} W, skill {row['skill']:+.1%} over {test['best_naive'][target]}, "
        f"{row['coverage_80']:.1%} within the 80 % interval"
        for target, row in test["figures"].items()
    ]


if __name__ == "__main__":
    console = people("-")
    for line in summary(write_artefacts(Recipe(), path_of(MODEL), console)):
        console.print(line)
