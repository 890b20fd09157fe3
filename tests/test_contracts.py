"""What every registered agent keeps on every scenario, whatever breaks meanwhile."""

from typing import Any

import numpy as np
import pytest

from llmcluster import LLMClusterEnv, Scenario, load_scenario, scenario_names
from llmcluster.agents.base import Task, Watcher
from llmcluster.agents.registry import AGENTS, candidates_of, make_agent, scenario_for
from llmcluster.experiments.matrix import every_agent
from llmcluster.simulator.faults import RandomFault

HOUR_S = 3600
NAMES = (*every_agent(), "safe:random", "safe:follow-load")


def breaking(name: str, agent: str, horizon_s: int, mtbf_s: float) -> Scenario:
    """A scenario in which any GPU fails once in ``mtbf_s`` in the mean, and is repaired in two minutes."""
    fault = RandomFault(mtbf_s=mtbf_s, repair_s=120.0)
    scenario = load_scenario(name)
    changes = {"faults": (*scenario.faults, fault), "horizon_s": horizon_s // scenario.tick_s * scenario.tick_s}
    return scenario_for(agent, scenario.model_copy(update=changes))


def agent_of(name: str, env: LLMClusterEnv) -> Any:
    """The agent, or the middle one of its candidates where it must be chosen."""
    task = Task.of(env)
    if name in AGENTS or candidates_of(name, task) is None:
        return make_agent(name, task)
    found = candidates_of(name, task)
    assert found
    return list(found.values())[len(found) // 2]


def keeps_the_contract(scenario: Scenario, name: str, encoding: str, seed: int) -> set[int]:
    """Plays an episode; gives the states that slots were in."""
    env = LLMClusterEnv(scenario, encoding=encoding)
    agent = agent_of(name, env)
    observation, info = env.reset(seed=seed)
    if isinstance(agent, Watcher):
        agent.watch(env)
    offset = np.concatenate([[0], np.cumsum(env.codec.layout.sizes)[:-1]])
    state, start, seen, truncated = None, np.ones(1, bool), set(), False
    while not truncated:
        mask = info["action_mask"]
        action, state = agent.predict(observation, state, start, deterministic=True, action_masks=mask)
        start = np.zeros(1, bool)
        assert env.action_space.contains(action), f"{name} is out of the space"
        if encoding == "discrete":
            assert mask[offset + action].all(), f"{name} takes options that are closed"
        observation, reward, terminated, truncated, info = env.step(action)
        assert not terminated
        assert np.isfinite(reward) and np.isfinite(info["cost"])
        assert all(np.isfinite(value).all() for value in observation.values())
        assert env.observation_space.contains(observation)
        seen |= set(env.telemetry.status.tolist())
    return seen


PAIRS = [
    pytest.param(name, scenario, marks=pytest.mark.slow if (i + j) % 3 else ())
    for i, name in enumerate(NAMES)
    for j, scenario in enumerate(scenario_names())
]
"""Each agent in a third of the scenarios, each scenario with a third of the agents; with all in the long suite."""


@pytest.mark.parametrize(("name", "scenario"), PAIRS)
def test_agents_keep_the_contract_while_slots_fail(name: str, scenario: str) -> None:
    """Some ticks, in which every GPU fails about once."""
    keeps_the_contract(breaking(scenario, name, 40, 40.0), name, "discrete", 0)


@pytest.mark.parametrize("name", NAMES)
def test_agents_keep_the_contract_with_numbers_for_actions(name: str) -> None:
    keeps_the_contract(breaking("saas-iaas", name, 40, 40.0), name, "box", 0)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", scenario_names())
@pytest.mark.parametrize("name", NAMES)
def test_agents_keep_the_contract_for_an_hour_of_faults(name: str, scenario: str) -> None:
    states = keeps_the_contract(breaking(scenario, name, HOUR_S, 1800.0), name, "discrete", 1)
    assert 5 in states, "nothing failed"
