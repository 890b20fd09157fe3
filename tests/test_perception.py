"""Forecasts in the loop: fed with meters alone, saved and restored; and the oracle, which sees the run to come."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmcluster import InputError, LLMClusterEnv
from llmcluster.agents.base import Task, View
from llmcluster.agents.registry import make_agent
from llmcluster.envs.perception import READ, Metered, Oracle, covariates, power_w
from llmcluster.envs.vector_env import LLMClusterVectorEnv
from llmcluster.experiments.forecast_simulated import record
from llmcluster.forecaster.models import make_model
from llmcluster.forecaster.models.learned import Learned, TrainSettings
from llmcluster.forecaster.telemetry import Telemetry
from llmcluster.forecaster.weights import save_model

Tiny = Callable[..., dict[str, Any]]
KEEP = np.array([4, 4, 4, 4, 0, 0, 1])
"""Of the tiny scenario: full weights, full caps, life-cycles kept, least outstanding."""
NAMES = ("none", "persistence", "oracle")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GRU that has learnt a little from noise, with all covariates that the loop meters."""
    rng = np.random.default_rng(0)
    power = 200 + 50 * rng.standard_normal((600, 2)).cumsum(axis=0) / 10
    telemetry = Telemetry(
        power.clip(50),
        ("a", "b"),
        covariates={name: rng.random((600, 2)) for name in READ},
        scale_w=np.array([700.0, 400.0]),
    )
    model = make_model("gru")
    assert isinstance(model, Learned)
    model.settings = TrainSettings(hidden=8, epochs=1)
    model.fit([telemetry], rng)
    path = tmp_path_factory.mktemp("weights") / "noise.safetensors"
    save_model(model, path)
    return path


def play(env: LLMClusterEnv, ticks: int, seed: int = 5) -> list[tuple[Any, ...]]:
    env.reset(seed=seed)
    return [follow(env) for _ in range(ticks)]


def follow(env: LLMClusterEnv) -> tuple[Any, ...]:
    observation, reward, *_ = env.step(KEEP)
    return observation["forecast"].tobytes(), observation["slots"].tobytes(), reward


def test_what_happens_does_not_depend_on_who_forecasts(tiny: Tiny, weights: Path) -> None:
    runs = [play(LLMClusterEnv(tiny(), forecaster=name), 6) for name in (*NAMES, str(weights))]
    for run in runs[1:]:
        assert [tick[1:] for tick in run] == [tick[1:] for tick in runs[0]]
    assert len({run[-1][0] for run in runs}) == len(runs), "forecasts differ"


def test_the_oracle_says_what_the_meters_then_say(tiny: Tiny) -> None:
    env = LLMClusterEnv(tiny(horizon_s=180), forecaster="oracle")
    assert env.perception.clairvoyant
    observation, _ = env.reset(seed=3)
    watts, said = [], [View(observation, env.observations)]
    for _ in range(12):
        said.append(View(env.step(KEEP)[0], env.observations))
        watts.append(power_w(env.telemetry))
    seconds = np.concatenate(watts)
    for tick in (2, 5):  # the first action has been carried out
        ahead = seconds[10 * tick : 10 * tick + 60]
        for name, truth in (
            ("point_30s", ahead[29]),
            ("point_60s", ahead[59]),
            ("mean_30s", ahead[:30].mean(axis=0)),
            ("mean_60s", ahead.mean(axis=0)),
        ):
            for quantile in ("0.1", "0.5", "0.9"):
                assert said[tick].forecast_w(f"{name}_q{quantile}") == pytest.approx(truth, rel=1e-5)


def test_the_oracle_knows_of_instances_and_failures_to_come(everything: dict[str, Any]) -> None:
    broken = everything | {"faults": [{"kind": "scheduled", "slot": 0, "at_s": 25.0, "repair_s": 60.0}]}
    env = LLMClusterEnv(broken, forecaster="oracle")
    env.reset(seed=1)
    keep = np.zeros(env.action_space.shape, np.int64)
    view = View(env.step(keep)[0], env.observations)
    assert view.forecast_w("point_30s_q0.5")[0] == 0 < view.slot("power")[0], "it fails 15 s from now"


def test_forecasts_read_the_meters_and_nothing_else(tiny: Tiny, weights: Path) -> None:
    """What the loop hands over is what a recording of the same run gives to the same model."""
    env = LLMClusterEnv(tiny(), forecaster=str(weights))
    assert isinstance(env.perception, Metered)
    telemetry = record(LLMClusterEnv(tiny()).scenario, "least-outstanding", seed=5)
    assert telemetry.channels == (*env.fleet.slots, "cluster") and len(telemetry) == 60
    model = make_model("gru")
    model.weights, model.covariates = env.perception.forecaster.weights, env.perception.forecaster.covariates  # type: ignore[attr-defined]
    expected = model.predict(telemetry)
    agent = make_agent("least-outstanding", Task.of(env))
    observation, _ = env.reset(seed=5)
    assert (observation["forecast"] == 0).all(), "there is no reading yet"
    for tick in range(1, 7):
        observation, *_ = env.step(agent.predict(observation)[0])
        view = View(observation, env.observations)
        for i, name in enumerate(env.observations.forecast_features):
            at = expected[10 * tick - 1].reshape(3, 12)[:, i]
            assert view.forecast_w(name) == pytest.approx(at, rel=1e-5, abs=1e-3)


def test_the_whole_is_told_as_its_average_slot(tiny: Tiny) -> None:
    env = LLMClusterEnv(tiny())
    env.reset(seed=0)
    env.step(KEEP)
    now = env.telemetry
    told = covariates(now)
    assert set(told) == set(READ)
    for values in told.values():
        assert values.shape == (10, 3) and np.isnan(values[:-1]).all() and np.isfinite(values[-1]).all()
    assert told["cap_w"][-1].tolist() == [700.0, 400.0, 550.0]
    assert told["slots"][-1].tolist() == [1, 1, 2] and told["serving"][-1].tolist() == [1, 1, 1]
    assert told["budget_in_60s_w"][-1] == pytest.approx(now.budget_w[2] / 2)
    assert told["arrivals"][-1] == pytest.approx(now.arrivals_per_s / 2)
    assert told["route_weight"][-1, :2] == pytest.approx(now.route_weight)
    assert told["prompt_tokens"][-1, :2] == pytest.approx(now.prompt_tokens_per_s)
    assert power_w(now)[:, -1] == pytest.approx(now.power_w.sum(axis=1))


def test_episodes_begin_anew(tiny: Tiny, weights: Path) -> None:
    for name in (*NAMES, str(weights)):
        env = LLMClusterEnv(tiny(), forecaster=name)
        assert play(env, 4) == play(env, 4)


@pytest.mark.parametrize("name", ["oracle", "weights"])
def test_saved_states_hold_the_forecaster(tiny: Tiny, weights: Path, name: str) -> None:
    given = {"forecaster": str(weights) if name == "weights" else name}
    env, other = LLMClusterEnv(tiny(), **given), LLMClusterEnv(tiny(), **given)
    play(env, 2)
    snapshot = env.save_state()
    expected = [follow(env) for _ in range(3)]
    for one in (env, other):
        one.restore_state(snapshot)
        assert [follow(one) for _ in range(3)] == expected
    with pytest.raises(InputError, match="something else"):
        LLMClusterEnv(tiny(), forecaster="persistence").restore_state(snapshot)


def test_copies_forecast_as_they_would_alone(tiny: Tiny, weights: Path) -> None:
    for name in ("oracle", str(weights)):
        many = LLMClusterVectorEnv(2, scenario=tiny(), forecaster=name)
        alone = [LLMClusterEnv(tiny(), forecaster=name) for _ in range(2)]
        many.reset(seed=[1, 2])
        for env, seed in zip(alone, (1, 2), strict=True):
            env.reset(seed=seed)
        for _ in range(3):
            forecast = many.step(np.stack([KEEP, KEEP]))[0]["forecast"]
            assert [f.tobytes() for f in forecast] == [follow(env)[0] for env in alone]


def test_paths_start_where_the_scenario_lies(tiny: Tiny, weights: Path) -> None:
    env = LLMClusterEnv(tiny(forecaster=weights.name, folder=weights.parent))
    assert env.perception.identity == LLMClusterEnv(tiny(), forecaster=str(weights)).perception.identity


def test_a_model_that_reads_what_is_not_metered_is_refused(weights: Path, tiny: Tiny) -> None:
    env = LLMClusterEnv(tiny(), forecaster=str(weights))
    assert isinstance(env.perception, Metered)
    env.perception.forecaster.covariates = ("sm_clock_mhz",)
    with pytest.raises(InputError, match="reads sm_clock_mhz"):
        Metered(env.perception.forecaster, "weights", env.fleet)


def test_the_oracle_is_marked() -> None:
    assert Oracle.clairvoyant and not Metered.clairvoyant
