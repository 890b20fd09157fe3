"""Observations: names, scales, clipping, the forecast, and that they come from meters rather than from the truth."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from llmcluster import InputError, LLMClusterEnv
from llmcluster.agents.base import View
from llmcluster.envs.observation import LIMIT
from llmcluster.envs.perception import Metered
from llmcluster.forecaster import QUANTILES, TARGETS, NoForecast, Persistence, make_forecaster


@pytest.fixture(scope="module")
def env(everything: dict[str, Any]) -> LLMClusterEnv:
    """All slots at work, after 40 s."""
    made = LLMClusterEnv(everything, forecaster="persistence")
    made.reset(seed=2)
    for _ in range(4):
        made.last = made.step(np.array([*[3] * 9, 0, 0, 0, 1, 0]))[0]
    return made


def test_names_are_unique_and_as_many_as_numbers(env: LLMClusterEnv) -> None:
    builder, lengths = env.observations, {k: v.shape[0] for k, v in env.observation_space.items()}
    slot, cluster = ([f.name for f in features] for features in (builder.slot_features, builder.cluster_features))
    for names in (slot, cluster, builder.forecast_features):
        assert len(set(names)) == len(names)
    assert lengths["slots"] == len(slot) * len(env.fleet)
    assert lengths["cluster"] == len(cluster)
    assert lengths["forecast"] == len(TARGETS) * len(QUANTILES) * (len(env.fleet) + 1)
    assert builder.forecast_features[:4] == ("point_30s_q0.1", "point_30s_q0.5", "point_30s_q0.9", "point_60s_q0.1")


def test_slot_features_are_readings_by_their_scale(env: LLMClusterEnv) -> None:
    now, view, fleet = env.telemetry, View(env.last, env.observations), env.fleet
    expected = {
        "ready_in": now.ready_in_s,
        "running": now.running,
        "waiting": np.log2(1 + now.waiting / 32),
        "kv_used": now.kv_used,
        "power": now.power_w.mean(axis=0),
        "cap": now.cap_w,
        "temperature": now.temperature_c - 30,
        "clock": now.clock_ratio,
        "prompt_tokens_per_s": now.prompt_tokens_per_s,
        "output_tokens_per_s": now.output_tokens_per_s,
        "route_weight": now.route_weight,
        "tdp": fleet.cap_max_w,
        "rank": [0, 0.5, 1],
        "rank_within_gpu_type": [0, 0, 0],
        "is_empty": now.status == 0,
        "is_loading": now.status == 1,
        "is_serving": now.status == 2,
        "is_draining": now.status == 3,
        "is_sleeping": now.status == 4,
        f"model_{fleet.models[0]}": now.model == 0,
        f"model_{fleet.models[1]}": now.model == 1,
    }
    assert set(expected) == {f.name for f in env.observations.slot_features}
    for name, reading in expected.items():
        np.testing.assert_allclose(view.slot(name), reading, rtol=1e-6, atol=1e-6, err_msg=name)
    assert now.running.sum() > 0
    assert now.output_tokens_per_s.sum() > 0
    assert view.slot("is_empty").tolist() == [0, 0, 1]


def test_cluster_features_are_readings_by_their_scale(env: LLMClusterEnv) -> None:
    now, view = env.telemetry, View(env.last, env.observations)
    expected = {
        "arrivals": now.arrivals_per_s,
        "arriving_tokens": now.arriving_tokens_per_s,
        "held_at_gateway": np.log2(1 + now.held_at_gateway / 32),
        "slo_attainment": now.slo_attainment,
        "power": now.power_w.mean(axis=0).sum(),
        "budget_in_0s": now.budget_w[0],
        "budget_in_30s": now.budget_w[1],
        "budget_in_60s": now.budget_w[2],
        "waiting": np.log2(1 + now.waiting.sum() / 32),
        "running": now.running.sum(),
        "serving_slots": (now.status == 2).sum(),
        "pending_instances": now.pending_instances,
        "pending_model_Llama-3.1-8B": now.pending_model == env.fleet.models.index("Llama-3.1-8B"),
        "pending_model_Qwen3-32B": now.pending_model == env.fleet.models.index("Qwen3-32B"),
    }
    assert set(expected) == {f.name for f in env.observations.cluster_features}
    for name, reading in expected.items():
        assert view.cluster(name) == pytest.approx(float(reading), rel=1e-6), name
    assert now.pending_instances > 0


def test_one_feature_by_hand(env: LLMClusterEnv) -> None:
    """Metered power of the A100 (the second slot), from the meter's bins to the number in the flat vector."""
    column = [f.name for f in env.observations.slot_features].index("power")
    metered_w = env.plant.cluster.history.column("metered_w")[-10:, 1]
    at = len(env.observations.slot_features) + column
    assert env.last["slots"][at] == pytest.approx(metered_w.mean() / 400.0, rel=1e-6)
    assert metered_w.std() > 0


def test_traffic_is_counted_once(env: LLMClusterEnv) -> None:
    requests = env.plant.cluster.requests
    since = (requests.arrival_ps >= 30 * 10**12) & (requests.arrival_ps < 40 * 10**12)
    assert env.telemetry.arrivals_per_s == since.sum() / 10
    assert env.telemetry.arriving_tokens_per_s == requests.prompt_tokens[since].sum() / 10


def test_power_is_metered_not_true(tiny: Callable[..., dict[str, Any]]) -> None:
    """The A100's meter shows an instant at the end of the second, the H100's the mean of the second."""
    env = LLMClusterEnv(tiny(rate_per_s=2.0))
    env.reset(seed=0)
    for _ in range(6):
        env.step(np.array([*[4] * 4, 0, 0, 1]))
    history = env.plant.cluster.history
    truth, metered = history.column("energy_j")[:, :2], history.column("metered_w")[:, :2]
    assert (env.telemetry.power_w == metered[-10:]).all()
    h100, a100 = 0, 1
    assert metered[:, h100] == pytest.approx(truth[:, h100])
    off = np.abs(metered[:, a100] - truth[:, a100])
    assert off.max() > 50
    assert (off > 1).mean() > 0.2
    assert metered[:, a100].mean() == pytest.approx(truth[:, a100].mean(), rel=0.15)


def test_the_budget_is_announced(everything: dict[str, Any]) -> None:
    env = LLMClusterEnv(everything)
    env.reset(seed=3)
    seen = [env.telemetry.budget_w]
    for _ in range(12):
        env.step(env.action_space.sample())
        seen.append(env.telemetry.budget_w)
    table = np.array(seen)
    assert table[3:, 0] == pytest.approx(table[:-3, 1])
    assert table[6:, 0] == pytest.approx(table[:-6, 2])
    assert len(np.unique(table[:, 0])) > 2
    total = env.fleet.cap_max_w.sum()
    assert table.min() >= 0.2 * total - 1e-6
    assert table.max() <= 0.6 * total + 1e-6


def test_values_are_clipped(env: LLMClusterEnv) -> None:
    hot = replace(env.telemetry, power_w=np.full((10, 3), 1e6), temperature_c=np.full(3, -1e6), arrivals_per_s=1e9)
    built = env.observations.build(hot, np.full((4, 4, 3), 1e9))
    assert env.observation_space.contains(built)
    view = View(built, env.observations)
    assert (view.slot("power") / env.fleet.cap_max_w).tolist() == [LIMIT] * 3
    assert (view.slot("temperature") / 60).tolist() == [-LIMIT] * 3
    assert (built["forecast"] == LIMIT).all()
    assert (built["cluster"] <= LIMIT).all()


def test_forecast_rows_are_the_slots_and_then_the_cluster(env: LLMClusterEnv) -> None:
    watts = np.arange(4 * 12, dtype=float).reshape(4, 4, 3)
    rows = env.observations.build(env.telemetry, watts)["forecast"].reshape(4, 12)
    tdp_w = env.fleet.cap_max_w
    assert rows[:3] == pytest.approx(watts[:3].reshape(3, 12) / tdp_w[:, None])
    assert rows[3] == pytest.approx(watts[3].ravel() / tdp_w.sum())


def test_observations_carry_the_forecast(env: LLMClusterEnv) -> None:
    rows = env.last["forecast"].reshape(4, 4, 3)
    view = View(env.last, env.observations)
    assert rows[:3, :, 1] == pytest.approx(np.repeat(view.slot("power") / env.fleet.cap_max_w, 4).reshape(3, 4))
    assert rows[3, :, 1] == pytest.approx(view.cluster("power") / env.fleet.cap_max_w.sum())
    assert (rows[:2, :, 0] < rows[:2, :, 2]).all()


def test_the_zeros_before_the_first_second_are_no_sample(tiny: Callable[..., dict[str, Any]]) -> None:
    env = LLMClusterEnv(tiny(), forecaster="persistence")
    first = env.reset(seed=0)[0]["forecast"]
    second = env.step(np.array([*[4] * 4, 0, 0, 1]))[0]["forecast"].reshape(3, 4, 3)
    assert (first == 0).all()
    assert (second > 0).all()
    assert (second[..., 0] == second[..., 2]).all(), "one sample says nothing of the spread"


def test_no_forecast_is_zeros(tiny: Callable[..., dict[str, Any]]) -> None:
    for given_ in ({"forecaster": "none"}, {"scenario": tiny(forecaster="none")}):
        env = LLMClusterEnv(**{"scenario": tiny(), **given_})
        assert isinstance(env.perception, Metered) and isinstance(env.perception.forecaster, NoForecast)
        env.reset(seed=0)
        obs, *_ = env.step(env.action_space.sample())
        assert (obs["forecast"] == 0).all()
        assert obs["forecast"].shape == env.observation_space["forecast"].shape


def test_persistence_values() -> None:
    forecaster = Persistence(memory=0.75)
    forecaster.reset(2)
    first = forecaster.update(np.array([[100.0, 10.0], [200.0, 30.0]]))
    assert first.shape == (2, 4, 3)
    assert (first == np.array([150.0, 20.0])[:, None, None]).all()
    second = forecaster.update(np.array([[170.0, 20.0]]))  # off by 20 and 0
    z = 1.2815515655446004
    assert second[0, 0] == pytest.approx([170 - 20 * z, 170, 170 + 20 * z])
    assert second[1, 0] == pytest.approx([20, 20, 20])
    third = forecaster.update(np.array([[160.0, 20.0]]))  # off by 10: mean square 0.75·400 + 0.25·100
    assert third[0, 3] == pytest.approx([160 - z * 325**0.5, 160, 160 + z * 325**0.5])
    forecaster.reset(1)
    assert (forecaster.update(np.array([[5.0]])) == 5).all()


@given(st.lists(hnp.arrays(float, (3, 2), elements=st.floats(0, 1e5)), min_size=1, max_size=30))
def test_persistence_quantiles_are_ordered_and_the_state_stays_small(samples: list[np.ndarray]) -> None:
    forecaster = Persistence()
    forecaster.reset(2)
    sizes = set()
    for sample in samples:
        forecast = forecaster.update(sample)
        assert (np.diff(forecast, axis=-1) >= 0).all()
        assert (forecast >= 0).all()
        assert forecast[..., 1] == pytest.approx(np.repeat(sample.mean(axis=0)[:, None], 4, axis=1))
        arrays = [np.asarray(value) for value in vars(forecaster).values()]
        sizes.add((len(arrays), sum(a.size for a in arrays)))
    assert len(sizes) == 1


def test_unknown_forecasters_are_named() -> None:
    with pytest.raises(InputError, match=r"'crystal-ball' is unknown\. Use one of none, persistence, gru"):
        make_forecaster("crystal-ball")
