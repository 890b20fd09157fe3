"""The shipped forecaster: of this physics, with its card; and how it is made."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from llmcluster import LLMClusterEnv
from llmcluster.envs.perception import READ, Metered
from llmcluster.experiments.forecast_simulated import RANDOM_CAPS, record
from llmcluster.experiments.write_artefacts import Recipe, summary, write_artefacts
from llmcluster.forecaster import TARGETS, make_forecaster
from llmcluster.forecaster.models import NAIVE
from llmcluster.forecaster.models.learned import TrainSettings
from llmcluster.forecaster.shipped import path_of
from llmcluster.forecaster.weights import load_model
from llmcluster.simulator import stamp
from llmcluster.simulator.stamp import bare, physics_stamp

SOURCE = '''"""Doc."""

import numpy as np  # why


def f(x: str = "kept") -> str:
    """Two
    lines."""  # and a remark
    y = """also
    kept"""
    # gone
    return x + y + f"{x} # kept"
'''


def test_the_shipped_weights_are_of_this_physics() -> None:
    card = json.loads(path_of("gru").with_suffix(".json").read_text())
    assert card["physics"] == physics_stamp(), "the physics changed: run `make forecaster`"


def test_the_card_beside_the_weights_is_the_one_inside() -> None:
    model, card = load_model(path_of("gru"))
    assert card == json.loads(path_of("gru").with_suffix(".json").read_text())
    assert model.name == "gru" and set(card["test"]["figures"]) == set(TARGETS)
    assert {"data", "split", "seeds", "figures", "settings"} <= set(card)


def test_environments_forecast_with_the_shipped_weights() -> None:
    env = LLMClusterEnv("small")
    assert isinstance(env.perception, Metered)
    shipped = make_forecaster("gru")
    assert all((env.perception.forecaster.weights[k] == w).all() for k, w in shipped.weights.items())  # type: ignore[attr-defined]
    env.reset(seed=0)
    for _ in range(6):
        observation, *_ = env.step(np.array([4, 4, 4, 4, 0, 0, 1]))
    quantiles = observation["forecast"].reshape(3, 4, 3)
    assert (np.diff(quantiles, axis=-1) >= 0).all() and (quantiles[:, :, 1] > 0).all() and (quantiles < 1.5).all()


def test_what_is_said_of_sources_does_not_count() -> None:
    plain = bare(SOURCE)
    for gone in ("Doc.", "why", "Two", "lines", "remark", "gone"):
        assert gone not in plain
    assert plain.count("kept") == 3 and "    kept" in plain
    compile(bare(SOURCE.replace("y = ", "y: str = ")), "bare", "exec")
    assert bare(SOURCE.replace("# why", "# because").replace("Two", "Three")) == plain
    assert bare(SOURCE.replace("x + y", "y + x")) != plain


def test_the_stamp_changes_with_the_physics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for pattern in (*stamp.SOURCES, *stamp.FIGURES):
        found = list(stamp.HERE.glob(pattern))
        assert found, f"{pattern} names nothing"
        for path in found:
            copy = tmp_path / path.relative_to(stamp.HERE)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    here = physics_stamp()
    monkeypatch.setattr(stamp, "HERE", tmp_path)
    assert physics_stamp() == here
    power, gpus = tmp_path / "power.py", tmp_path / "catalog" / "gpus.toml"
    power.write_text("# a remark\n" + power.read_text())
    gpus.write_text("# a remark\n" + gpus.read_text())
    assert physics_stamp() == here
    text = gpus.read_text()
    gpus.write_text(text.replace("idle_w = ", "idle_w = 1", 1))
    assert physics_stamp() != here
    gpus.write_text(text)
    power.write_text(power.read_text().replace("LADDER_STEPS = 81", "LADDER_STEPS = 80"))
    assert physics_stamp() != here


def test_random_caps_move_and_are_the_same_at_the_same_seed() -> None:
    scenario = LLMClusterEnv("small").scenario
    first, again, other = (record(scenario, RANDOM_CAPS, seed) for seed in (1, 1, 2))
    caps = first.covariates["cap_w"][9::10, 0]
    assert len(np.unique(caps)) >= 3 and caps.min() >= 200 and caps.max() <= 700
    assert (first.power_w == again.power_w).all() and (first.power_w != other.power_w).any()
    assert first.power_w[:, -1] == pytest.approx(first.power_w[:, :-1].sum(axis=1))


def test_artefacts_are_made_by_one_call(tmp_path: Path) -> None:
    settings = TrainSettings(hidden=4, epochs=1)
    scenario = tmp_path / "longer.toml"
    text = (path_of("gru").parents[2] / "envs" / "scenarios" / "small.toml").read_text()
    scenario.write_text(text.replace("horizon_s = 300", "horizon_s = 600"))
    recipe = Recipe((str(scenario),), ("least-outstanding",), (), 1, 1, 1, 1, 1, (0,), settings, ("lstm",), 1, settings)
    card = write_artefacts(recipe, tmp_path / "tiny.safetensors", tmp_path, Console(quiet=True))
    model, inside = load_model(tmp_path / "tiny.safetensors")
    assert inside == card == json.loads((tmp_path / "tiny.json").read_text())
    assert card["physics"] == physics_stamp() and card["data"]["seconds"] == 600
    assert card["test"]["forecasts"] == 3 * (600 - 60 - 60)
    assert len(summary(card)) == 4 and "over" in summary(card)[0]
    assert set(model.covariates) == set(READ)
    assert card["split"] == {"fit": 1, "validation": 1, "calibration": 1}
    scores = json.loads((tmp_path / "forecasting" / "simulated.json").read_text())["compare"]["series"]
    assert scores["all"]["results"]["gru"] == card["test"]["figures"]
    counts = [scores[title]["forecasts"] for title in ("slots", "clusters", "all")]
    assert counts == [2 * (600 - 60 - 60), 600 - 60 - 60, card["test"]["forecasts"]]
    errors = [scores[title]["results"]["gru"]["point_30s"]["mae_w"] for title in ("slots", "clusters", "all")]
    assert errors[2] == pytest.approx((2 * errors[0] + errors[1]) / 3)
    page = (tmp_path / "forecasting.md").read_text()
    assert set(scores["all"]["results"]) == {*NAIVE, "gru", "lstm, trained briefly"}
    assert "## Simulated telemetry" in page and f"{errors[2]:.2f} W" in page
