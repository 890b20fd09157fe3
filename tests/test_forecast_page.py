"""The page of forecasts: made from scores alone, a section from each file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmcluster.experiments.forecast_backtest import folds_of
from llmcluster.experiments.forecast_compare import compare
from llmcluster.experiments.forecast_page import DOCS, PAGE, goal, page, read_scores, write_scores
from llmcluster.experiments.forecast_real_section import EARLIER
from llmcluster.experiments.write_forecast_value import write_forecast_value
from llmcluster.forecaster.base import TARGETS
from llmcluster.forecaster.telemetry import Telemetry
from llmcluster.forecaster.weights import FORMAT


@pytest.fixture(scope="module")
def scores() -> dict[str, Any]:
    noise = np.random.default_rng(0).normal(200, 5, (900, 1))
    telemetry = Telemetry(noise, ("gpu0",), source="noise.csv")
    return {
        "compare": compare(
            [("noise", folds_of([], [telemetry], 2))], ["persistence", "training-median"], 0, lambda: None
        )
    }


def test_the_page_is_that_of_the_scores() -> None:
    assert (DOCS / PAGE).read_text(encoding="utf-8") == page(read_scores()), "run experiments.forecast_page"


def test_the_goal_is_held_against_the_shipped_model() -> None:
    found = {
        target: {"skill": skill, "coverage_80": 0.765 + skill / 10, "mae_w": 1.0}
        for target, skill in zip(TARGETS, (0.05, 0.09, 0.1, 0.2), strict=True)
    }
    (_, line) = goal({"series": {"all": {"results": {"gru": found}}}})
    assert "10% less error" in line and "kinds" not in line
    assert "Its 80 % intervals cover 77.0% to 78.5%, as asked (77% to 83%)." in line
    low = {**found, "mean_60s": {**found["mean_60s"], "coverage_80": 0.72}}
    assert "cover 72.0% to 77.5%, not as asked" in goal({"series": {"all": {"results": {"gru": low}}}})[1]
    assert "is reached for `mean_30s`, `mean_60s` and missed for `point_30s`, `point_60s`." in line
    assert goal({"series": {"all": {"results": {"lstm": found}}}}) == []


def test_the_kind_that_wins_is_named_whoever_it_is() -> None:
    def row(*mae_w: float) -> dict[str, Any]:
        return {t: {"mae_w": one, "skill": 0.2, "coverage_80": 0.8} for t, one in zip(TARGETS, mae_w, strict=True)}

    results = {
        "gru": row(1, 1, 1, 1),
        "gru, trained briefly": row(3, 3, 2, 3),
        "lstm, trained briefly": row(2, 2, 3, 2),
    }
    (_, line) = goal({"series": {"all": {"results": results}}})
    assert "lowest error has lstm for `point_30s`, `point_60s`, `mean_60s`; gru for `mean_30s`." in line


def test_scores_of_earlier_networks_are_said_to_be_so() -> None:
    real = read_scores()["real"]
    assert EARLIER in page({"real": {**real, "format": "llmcluster-forecaster-1"}})
    assert EARLIER not in page({"real": {**real, "format": FORMAT}})


def test_the_worth_of_a_forecast_is_measured_and_told(tmp_path: Path) -> None:
    scores = write_forecast_value(2, tmp_path, ["small"], "least-outstanding", ["none", "persistence"])
    page = (tmp_path / PAGE).read_text()
    results = scores["played"][0]["results"]
    # It looks at no forecast, so that there is nothing between them.
    assert results["persistence"]["difference"] == [0.0, 0.0, 0.0]
    mean = results["none"]["reward"][0]
    assert f"| none | {mean:.1f} |" in page and "| +0.0 | +0.0 … +0.0 |" in page and "**small**, 2 episodes" in page


def test_sections_are_written_apart(tmp_path: Path, scores: dict[str, Any]) -> None:
    real = read_scores()["real"]
    write_scores("real", real, tmp_path)
    alone = (tmp_path / PAGE).read_text()
    assert "## Real series" in alone and "## Simulated telemetry" not in alone
    write_scores("simulated", scores | {"tests": 7, "update_us": {"8": {"1": 5.0, "10": 21.0}}}, tmp_path)
    both = (tmp_path / PAGE).read_text()
    assert both.index("## Simulated telemetry") < both.index("## Real series")
    assert alone.split("## Real series")[1] == both.split("## Real series")[1], "the other section is as it was"
    assert "7 episodes" in both and "took 21 µs at 8 slots; at most 30 µs are asked" in both
    median = scores["compare"]["series"]["noise"]["results"]["training-median"]["point_30s"]
    assert (
        f"{median['rmse_w']:.1f}, " in both
        and f"{median['mae_w']:.2f} W" in both
        and f"{100 * median['coverage_80']:.1f}" in both
    )
