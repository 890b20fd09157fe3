"""Planning: the model that is set up from an observation, what the planner may know of, and what it is worth."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from llmcluster import LLMClusterEnv, load_scenario
from llmcluster.agents import mpc
from llmcluster.agents.base import Task, View
from llmcluster.agents.mpc import Mpc, Plan
from llmcluster.agents.registry import make_agent
from llmcluster.agents.twin import SETTLING_PS, Twin, streams_of
from llmcluster.envs.actions import ClusterAction
from llmcluster.envs.cluster_env import Observation
from llmcluster.experiments.rollout import play
from llmcluster.simulator.errors import InputError
from llmcluster.simulator.units import PS_PER_S, to_ps

Tiny = Callable[..., dict[str, Any]]


def after(env: LLMClusterEnv, ticks: int, seed: int = 0, agent: str = "least-outstanding") -> Observation:
    """The observation after some ticks."""
    player: Any = make_agent(agent, Task.of(env))
    observation, _ = env.reset(seed=seed)
    player.watch(env)
    for _ in range(ticks):
        observation = env.step(player.predict(observation)[0])[0]
    return observation


def twin_of(env: LLMClusterEnv, observation: Observation, rate: float = 5.0) -> Any:
    twin = Twin(Task.of(env), 60, np.random.default_rng(0))
    return twin.begin(View(observation, env.observations), rate, np.random.default_rng(1))


@pytest.mark.parametrize("scenario", ["default", "mixed-fleet", "saas-iaas", "heat-wave", "carbon-price"])
def test_the_model_starts_where_the_observation_is(scenario: str) -> None:
    env = LLMClusterEnv(scenario)
    plant, _ = twin_of(env, after(env, 12, agent="follow-load"))
    now, slots = env.telemetry, plant.cluster.engine.slots
    settled = np.where(now.status == 3, 4, now.status)  # what drains is taken to be asleep
    assert slots["status"].tolist() == settled.tolist()
    assert slots["cap_w"] == pytest.approx(now.cap_w, rel=1e-5)
    assert slots["route_weight"] == pytest.approx(now.route_weight, rel=1e-5)
    assert plant.cluster.now_ps == SETTLING_PS
    assert plant.budget.at(np.array([0, 30, 60])) == pytest.approx(now.budget_w, rel=1e-5)
    temperature_c = slots["inlet_c"] + plant.cluster.engine.pole_k.sum(axis=1)
    assert temperature_c[now.status == 2] == pytest.approx(now.temperature_c[now.status == 2], abs=0.1)
    if now.price_per_kwh is not None:
        price = plant.world.price_per_kwh.at(np.array([0.0]))
        assert price == pytest.approx(now.price_per_kwh[:1], rel=1e-4)


def test_the_model_holds_what_is_in_flight() -> None:
    env = LLMClusterEnv("oversubscribed-row")
    observation = after(env, 6)
    plant, _ = twin_of(env, observation)
    running = float(env.telemetry.running.sum())
    assert running > 30
    assert plant.cluster.engine.slots["outstanding"].sum() == pytest.approx(running, abs=len(env.fleet))


def test_loads_under_way_end_when_they_are_said_to(tiny: Tiny) -> None:
    env = LLMClusterEnv(tiny())
    env.reset(seed=0)
    asleep = ClusterAction(lifecycle=np.array([3, 1]), route_weight=np.ones(2))
    for _ in range(2):
        env.step(env.codec.encode(asleep))
    observation = env.step(env.codec.encode(ClusterAction(lifecycle=np.array([3, 3]), route_weight=np.ones(2))))[0]
    assert env.telemetry.status[1] == 1
    plant, _ = twin_of(env, observation)
    ready_s = float(env.telemetry.ready_in_s[1])
    plant.cluster.advance(to_ps(ready_s - 0.01))
    assert plant.cluster.engine.slots["status"][1] == 1
    plant.cluster.advance(to_ps(ready_s + 0.01))
    assert plant.cluster.engine.slots["status"][1] == 2


def test_only_loads_can_be_ended() -> None:
    env = LLMClusterEnv("small")
    env.reset(seed=0)
    assert env.plant is not None
    with pytest.raises(InputError, match="slot 0: is serving"):
        env.plant.cluster.lifecycle.finish_at(0, PS_PER_S)


def test_failed_slots_and_tenants_are_in_the_model() -> None:
    content = load_scenario("saas-iaas").model_dump()
    env = LLMClusterEnv({**content, "faults": [{"kind": "scheduled", "at_s": 20.0, "slot": 0, "repair_s": 900.0}]})
    observation = after(env, 12)
    status = env.telemetry.status
    assert status[0] == 5 and (status == 6).any()
    plant, _ = twin_of(env, observation)
    slots = plant.cluster.engine.slots
    assert slots["status"].tolist() == status.tolist()
    tenant = int(np.flatnonzero(status == 6)[0])
    assert slots["load_w"][tenant] == pytest.approx(env.telemetry.power_w[:, tenant].mean(), rel=1e-3)
    plant.cluster.advance(60 * PS_PER_S)
    assert slots["status"][0] == 5, "nobody knows of a repair"


def test_traffic_comes_at_the_believed_rate_and_with_the_streams_own_lengths() -> None:
    env = LLMClusterEnv("mixed-fleet")
    observation = after(env, 6)
    plant, _ = twin_of(env, observation, rate=40.0)
    table = plant.cluster.requests
    coming = table.arrival_ps > 0
    assert np.count_nonzero(coming) == pytest.approx(40 * 60, abs=5 * np.sqrt(2400))
    assert set(table.model[coming].tolist()) == {0, 1, 2}
    streams = streams_of(Task.of(env), np.random.default_rng(0))
    for stream in streams:
        ours = table.output_tokens[coming & (table.model == stream.model)]
        assert ours.mean() == pytest.approx(stream.output.mean(), rel=0.2)
        assert (table.slo_class[table.model == stream.model] == stream.slo_class).all()


def test_a_trace_is_not_looked_into(trace: Callable[..., Any]) -> None:
    path = trace([(0.1 * i, 7, 9) for i in range(2000)])
    env = LLMClusterEnv("small", workload=path)
    (stream,) = streams_of(Task.of(env), np.random.default_rng(0))
    assert len(np.unique(stream.prompt)) > 100


def test_the_planner_does_not_know_the_true_requests() -> None:
    """Two runs that look the same so far and differ afterwards: it decides the same."""
    env = LLMClusterEnv("default")
    observation, _ = env.reset(seed=1)
    assert env.plant is not None
    everything = env.plant.cluster.requests
    early = everything.rows(0, int(np.searchsorted(everything.arrival_ps, 100 * PS_PER_S)))
    actions = []
    for requests in (everything, early):
        agent = Mpc(Task.of(env))
        observation, _ = env.reset(seed=1, options={"requests": requests})
        agent.watch(env)
        for _ in range(11):
            action, _ = agent.predict(observation)
            actions.append(action)
            observation = env.step(action)[0]
    half = len(actions) // 2
    assert (np.array(actions[: half - 1]) == np.array(actions[half:-1])).all()
    assert not Mpc.clairvoyant


def test_planning_leaves_the_environment_alone() -> None:
    env = LLMClusterEnv("small")
    observation = after(env, 5)
    before = env.save_state().to_bytes()
    Mpc(Task.of(env)).predict(observation)
    assert env.save_state().to_bytes() == before


def test_runs_repeat() -> None:
    env = LLMClusterEnv("small")
    agent = make_agent("mpc", Task.of(env))
    first, second = (play(env, agent, "mpc", 4).reward for _ in range(2))
    assert first == second
    assert first == play(env, make_agent("mpc", Task.of(env)), "mpc", 4).reward


def test_the_budget_of_compute_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    env = LLMClusterEnv("small")
    observation = after(env, 5)
    agent, tried = Mpc(Task.of(env)), []
    reward = agent._reward

    def counted(plan: Plan, *args: Any) -> float:
        tried.append(plan)
        return reward(plan, *args)

    monkeypatch.setattr(agent, "_reward", counted)
    agent.predict(observation)
    assert 3 <= len(tried) <= mpc.ROLLOUTS
    assert len(set(tried)) == len(tried)
    tried.clear()
    monkeypatch.setattr(mpc, "REQUESTS", 1)
    agent.predict(observation)
    assert len(tried) == 3


def test_neighbours_are_one_step_away_and_never_leave_a_model_without_a_slot() -> None:
    env = LLMClusterEnv("mixed-fleet")
    agent = Mpc(Task.of(env))
    rows = len(env.scenario.cluster.rows)
    one_each = [False] * len(env.fleet)
    for members in agent._kinds:
        one_each[members[0]] = True
    plan = Plan(tuple(one_each), (2,) * rows)
    found = [n for n in agent._neighbours(plan) if n != plan]
    for near in found:
        moved = sum(a != b for a, b in zip(near.on, plan.on, strict=True))
        levels = [abs(a - b) for a, b in zip(near.level, plan.level, strict=True)]
        assert (moved == 1 and not any(levels)) or (not moved and max(levels) == 1)
        assert all(any(near.on[r] for r in members) for members in agent._kinds)
    assert len(set(found)) == 3 + 2


def test_planning_is_worth_more_than_following() -> None:
    env = LLMClusterEnv("small")
    task = Task.of(env)
    planned, followed = (
        np.mean([play(env, make_agent(name, task), name, seed).reward for seed in range(3)])
        for name in ("mpc", "follow-load")
    )
    assert planned > followed + 3


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["default", "flash-crowd", "power-budget"])
def test_planning_beats_every_rule_that_follows(scenario: str) -> None:
    env = LLMClusterEnv(scenario)
    task = Task.of(env)
    rewards = {
        name: np.mean([play(env, make_agent(name, task), name, seed).reward for seed in range(4)])
        for name in ("mpc", "follow-load", "follow-power", "forecast-load", "forecast-cap", "uniform-cap")
    }
    assert max(rewards, key=lambda name: rewards[name]) == "mpc"
