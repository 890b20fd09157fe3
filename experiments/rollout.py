"""One episode of one agent."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..agents.base import Agent, Watcher
from ..agents.safety import Safe
from ..envs.cluster_env import LLMClusterEnv
from ..simulator.kernels.state import SERVING
from .results import SERIES, Episode


def play(env: LLMClusterEnv, agent: Agent, name: str, seed: int, warmup_s: int = 0, *, drain: bool = True) -> Episode:
    """Plays one episode to its horizon and drains the queue, which only settles what becomes of its requests.

    Args:
        env: The environment.
        agent: The agent.
        name: Its name in the result.
        seed: Seed of the traffic and of all else that the world draws.
        warmup_s: Seconds at the start that the summary leaves out; rewards are counted from the beginning.
        drain: Whether to; without, requests still in the queue count as unfinished.

    Returns:
        What came of it.
    """
    observation, info = env.reset(seed=seed)
    if isinstance(agent, Watcher):
        agent.watch(env)
    reward, terms = 0.0, dict.fromkeys(info.get("reward_terms", {}), 0.0)
    series: dict[str, list[float]] = {key: [] for key in SERIES}
    state, truncated = None, False
    start = np.ones(1, bool)
    while not truncated:
        action, state = agent.predict(observation, state, start, deterministic=True, action_masks=info["action_mask"])
        start = np.zeros(1, bool)
        observation, gained, _, truncated, info = env.step(action)
        reward += gained
        for term, value in info["reward_terms"].items():
            terms[term] = terms.get(term, 0.0) + value
        now = env.telemetry
        values = (
            info["time_s"],
            info["energy_j"] / env.scenario.tick_s,
            float(now.budget_w[0]),
            now.arrivals_per_s,
            float(np.count_nonzero(now.status == SERVING)),
            now.slo_attainment,
        )
        for key, value in zip(SERIES, values, strict=True):
            series[key].append(value)
    assert env.plant is not None
    if drain:
        env.plant.cluster.drain()
    return Episode(
        name,
        seed,
        reward,
        terms,
        env.plant.summary(warmup_s, env.scenario.horizon_s),
        {k: np.array(v) for k, v in series.items()},
        dict(agent.interventions) if isinstance(agent, Safe) else {},
    )


def mean_reward(
    env: LLMClusterEnv, agent: Agent, seeds: Sequence[int], tick: Callable[[], None] = lambda: None
) -> float:
    """Mean reward over episodes; ``tick`` is called after each."""
    rewards = []
    for seed in seeds:
        rewards.append(play(env, agent, "", seed, drain=False).reward)
        tick()
    return float(np.mean(rewards))
