"""Measures what forecasts are worth to a controller, for the page of forecasts.

Run as ``python -m llmcluster.experiments.write_forecast_value [--episodes N]``; `llmcluster forecast value` does the
same for any scenario and controller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..envs.scenario import load_scenario
from .forecast_page import DOCS, write_scores
from .forecast_value import check, value
from .output import announce_compilation, progress_bar

SCENARIOS = ("default", "power-budget")
AGENT = "follow-power"
FORECASTERS = ("none", "persistence", "gru", "oracle")
EPISODES = 30
SEED = 0


def write_forecast_value(
    episodes: int = EPISODES,
    docs: Path = DOCS,
    scenarios: Sequence[str] = SCENARIOS,
    agent: str = AGENT,
    forecasters: Sequence[str] = FORECASTERS,
) -> Mapping[str, Any]:
    """Plays the controller with each forecaster in each scenario, and writes the section.

    Args:
        episodes: Held-out episodes in each.
        docs: Folder of the page.
        scenarios: Where to.
        agent: The controller.
        forecasters: What it is given in turn; the others are compared with the first.

    Returns:
        The scores.
    """
    chosen = [load_scenario(name) for name in scenarios]
    results = []
    with progress_bar() as progress:
        for one in chosen:
            total = (check(one, agent, forecasters) + episodes) * len(forecasters)
            bar = progress.add_task(one.name, total=total)
            results.append(value(one, agent, forecasters, episodes, SEED, lambda bar=bar: progress.advance(bar)))  # type: ignore[misc]
    scores = {"played": results}
    write_scores("value", scores, docs)
    return scores


def main(episodes: Annotated[int, typer.Option(min=2, help="Held-out episodes in each scenario")] = EPISODES) -> None:
    """Measure what forecasts are worth to a controller, and write docs/forecasting.md."""
    announce_compilation()
    write_forecast_value(episodes)


if __name__ == "__main__":
    typer.run(main)
