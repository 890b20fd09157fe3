"""Real traces in place of a scenario's own traffic, and what a summary counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmcluster.agents.base import Task
from llmcluster.agents.scaling import FollowLoad
from llmcluster.agents.static import Constant, all_on, only
from llmcluster.envs.cluster_env import LLMClusterEnv
from llmcluster.envs.scenario import load_scenario
from llmcluster.envs.traces import with_trace
from llmcluster.experiments.rollout import play
from llmcluster.experiments.splits import Split
from llmcluster.simulator.workload.table import RequestTable


@pytest.mark.data
@pytest.mark.parametrize("name", ["conv", "code"])
def test_serving_a_trace_is_worth_more_than_sleeping_through_it(azure_conv: Path, name: str, tmp_path: Path) -> None:
    trace = azure_conv.with_name(f"AzureLLMInferenceTrace_{name}.csv")
    env = LLMClusterEnv(Split(load_scenario("default"), str(trace), tmp_path).scenario("held_out"))
    task = Task.of(env)
    asleep = Constant(task, only(task, np.zeros(len(env.fleet), bool), 1.0, "round-robin"))
    assert play(env, FollowLoad(task), "", 1).reward > play(env, asleep, "", 1, drain=False).reward + 10


def test_a_trace_keeps_the_patience_and_scales_the_reward(tmp_path: Path) -> None:
    table = RequestTable.from_columns(np.arange(101) * 10**12, [100] * 101, [20] * 101)
    table.to_parquet(tmp_path / "t.parquet")
    scenario = with_trace(load_scenario("default"), tmp_path / "t.parquet", table)
    assert scenario.workload.timeout_s == 30.0
    assert scenario.reward.requests_per_s == pytest.approx(2 * 101 / 100)
    assert scenario.reward.tokens_per_request == 20.0
    assert LLMClusterEnv("default", workload=tmp_path / "t.parquet").scenario == scenario


def test_the_drain_settles_requests_and_counts_for_nothing_else() -> None:
    env = LLMClusterEnv("small")
    task = Task.of(env)
    agent = FollowLoad(task)
    drained, cut = (play(env, agent, "", 3, drain=drain).summary for drain in (True, False))
    assert drained.simulated_s == cut.simulated_s == env.scenario.horizon_s
    assert drained.energy_j == cut.energy_j
    assert drained.requests == cut.requests
    assert drained.requests_unfinished == 0 < cut.requests_unfinished


def test_the_requests_of_a_closed_loop_arrive_when_they_are_sent() -> None:
    workload: dict[str, Any] = {
        "requests": {"kind": "fixed", "prompt_tokens": 200, "output_tokens": 50},
        "arrivals": {"kind": "closed-loop", "clients": 8, "think_s": 1.0},
    }
    env = LLMClusterEnv("small", workload=workload)
    env.reset(seed=0)
    action = env.codec.encode(all_on(Task.of(env), "least-outstanding"))
    sent = 0.0
    for _ in range(6):
        env.step(action)
        sent += env.telemetry.arrivals_per_s * env.scenario.tick_s
        assert 0 < env.telemetry.arrivals_per_s <= 8 / 1.0, "eight clients that think for a second on average"
        assert env.telemetry.arriving_tokens_per_s == pytest.approx(200 * env.telemetry.arrivals_per_s)
    assert env.plant is not None
    assert sent == env.plant.cluster.sent == np.count_nonzero(env.plant.cluster.engine.requests["status"])


def test_what_sleeps_may_still_hold_a_long_request() -> None:
    table = RequestTable.from_columns([0, 1], [120_000, 300_000], [10, 10])
    env = LLMClusterEnv("small", workload=None)
    env.reset(seed=0, options={"requests": table})
    assert env.plant is not None
    env.plant.cluster.advance(10**13)
    status = env.plant.cluster.engine.requests["status"]
    assert status[0] != status[1] == 5, "only what no slot could ever hold is rejected"
