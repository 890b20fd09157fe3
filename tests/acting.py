"""Agents at the start of an episode, and batches of what they see."""

from typing import Any

import numpy as np

from llmcluster import LLMClusterEnv, Scenario, load_scenario
from llmcluster.agents.base import Heuristic, Task
from llmcluster.agents.registry import make_agent


def short(name: str, horizon_s: int = 60) -> Scenario:
    return load_scenario(name).model_copy(update={"horizon_s": horizon_s})


def batch_of(observations: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {key: np.stack([one[key] for one in observations]) for key in observations[0]}


def started(env: LLMClusterEnv, name: str, seed: int = 0) -> tuple[Any, dict[str, np.ndarray], dict[str, Any]]:
    agent = make_agent(name, Task.of(env))
    observation, info = env.reset(seed=seed)
    if isinstance(agent, Heuristic):
        agent.watch(env)
    return agent, observation, info
