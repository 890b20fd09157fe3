"""Routing and placement by head-room: what is metered, what is forecast, and which of the two moves first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from llmcluster import LLMClusterEnv
from llmcluster.agents.base import Task, View
from llmcluster.agents.budget_caps import QUANTILES_AHEAD
from llmcluster.agents.headroom import ForecastHeadroom, Headroom
from llmcluster.envs.actions import NOWHERE

Tiny = Callable[..., dict[str, Any]]
MODEL, GPU = "Llama-3.1-8B", "H100-80GB"
SERVING, EMPTY = {"gpu": GPU, "gpus": 1, "model": MODEL}, {"gpu": GPU, "gpus": 1, "initial": "empty"}
ROW = {"racks": [{"servers": [SERVING, EMPTY]}], "power_limit_share": 0.5}
GROUPS = {"groups": ["route", "cap", "lifecycle", "place"], "levels": 21}
QUIET_W, BUSY_W = 150.0, 600.0


@pytest.fixture(scope="module")
def env(tiny: Tiny) -> LLMClusterEnv:
    """Two rows, each with a slot that serves and an empty one, and power for one of the two; one instance to place."""
    instances = [{"model": MODEL, "mean_interval_s": 30.0}]
    return LLMClusterEnv(tiny(cluster={"rows": [ROW, ROW]}, actions=GROUPS, instances=instances))


def shown(env: LLMClusterEnv, power_w: list[float], ahead_w: list[float] | None = None, *, waits: bool = False) -> View:
    """What is seen of that power, of slots that serve in both rows, and of the forecast for all of the next minute."""
    observation, _ = env.reset(seed=0)
    tdp_w = env.fleet.cap_max_w
    slots, forecast = observation["slots"].reshape(4, -1), observation["forecast"].reshape(5, -1)
    slot_names = [feature.name for feature in env.observations.slot_features]
    watts = np.array([power_w[0], 0.0, power_w[1], 0.0])
    slots[:, slot_names.index("power")] = watts / tdp_w
    for lead in (0, 30, 60):
        left_w = (0.5 * 2 * tdp_w[0] - np.array(power_w)).repeat(2)
        slots[:, slot_names.index(f"row_headroom_in_{lead}s")] = left_w / tdp_w.sum()
    if ahead_w is not None:
        for name in QUANTILES_AHEAD:
            forecast[:4, env.observations.forecast_features.index(name)] = (
                np.array([ahead_w[0], 0.0, ahead_w[1], 0.0]) / tdp_w
            )
    names = [feature.name for feature in env.observations.cluster_features]
    observation["cluster"][names.index(f"pending_model_{MODEL}")] = float(waits)
    return View(observation, env.observations)


def weights(agent: Headroom, view: View) -> tuple[float, float]:
    """Of the slots that serve."""
    found = agent.decide(view).route_weight
    assert found is not None
    return float(found[0]), float(found[2])


def test_requests_go_where_power_is_left(env: LLMClusterEnv) -> None:
    agent = Headroom(Task.of(env))
    even = weights(agent, shown(env, [QUIET_W, QUIET_W]))
    assert even == (1.0, 1.0)
    first, second = weights(agent, shown(env, [BUSY_W, QUIET_W]))
    assert second == 1.0
    # 100 W are left of the row's 700 W against 550 W.
    assert first == pytest.approx(100 / 550, abs=1e-3)
    assert weights(agent, shown(env, [700.0, QUIET_W]))[0] == pytest.approx(1 / 20), "it keeps a little"


def test_instances_go_where_power_is_left(env: LLMClusterEnv) -> None:
    agent = Headroom(Task.of(env))
    assert agent.decide(shown(env, [BUSY_W, QUIET_W], waits=True)).place == 3
    assert agent.decide(shown(env, [QUIET_W, BUSY_W], waits=True)).place == 1
    assert agent.decide(shown(env, [QUIET_W, BUSY_W])).place == NOWHERE


def test_the_forecast_moves_them_before_the_meters_do(env: LLMClusterEnv) -> None:
    task = Task.of(env)
    plain, ahead = Headroom(task), ForecastHeadroom(task)
    coming = shown(env, [QUIET_W, QUIET_W], [BUSY_W, QUIET_W], waits=True)
    assert weights(plain, coming) == (1.0, 1.0) and plain.decide(coming).place == 1
    assert weights(ahead, coming)[0] < 0.5 and ahead.decide(coming).place == 3
    unknown = shown(env, [BUSY_W, QUIET_W], waits=True)
    assert weights(ahead, unknown) == weights(plain, unknown), "without a forecast it goes by the meters"


def test_a_limit_that_is_announced_counts_before_it_falls(env: LLMClusterEnv) -> None:
    task = Task.of(env)
    view = shown(env, [QUIET_W, QUIET_W])
    column = [feature.name for feature in env.observations.slot_features].index("row_headroom_in_60s")
    view._slots[:2, column] = (300.0 - QUIET_W) / env.fleet.cap_max_w.sum()
    assert weights(Headroom(task), view) == (1.0, 1.0)
    assert weights(ForecastHeadroom(task), view)[0] == pytest.approx(150 / 550, abs=1e-3)
