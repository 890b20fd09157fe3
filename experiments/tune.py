"""Choosing on validation traffic: the best of several agents by successive halving."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ..agents.base import Agent
from ..envs.cluster_env import LLMClusterEnv
from .rollout import mean_reward
from .seeds import validation_seeds

KEEP = 4
ROUNDS = (2, 4, 10)
"""Validation episodes per candidate and round; after each round the best quarter goes on."""


def thinned(agents: Mapping[str, Agent], count: int | None) -> Mapping[str, Agent]:
    """At most ``count`` of the candidates, evenly spread over their order; all by default."""
    if count is None or len(agents) <= count:
        return agents
    names = list(agents)
    return {names[i]: agents[names[i]] for i in np.linspace(0, len(names) - 1, count).round().astype(int)}


def tuning_episodes(count: int, rounds: Sequence[int] = ROUNDS) -> int:
    """Episodes that :func:`best_of` plays for ``count`` candidates."""
    total, left = 0, count
    for episodes in rounds:
        total += left * episodes
        left = max(1, left // KEEP)
    return total


def best_of(
    env: LLMClusterEnv,
    agents: Mapping[str, Agent],
    seeds: Sequence[int],
    tick: Callable[[], None] = lambda: None,
    rounds: Sequence[int] = ROUNDS,
) -> tuple[str, float]:
    """Name and mean validation reward of the best agent, by successive halving (Jamieson and Talwalkar 2016).

    Args:
        env: The environment.
        agents: Candidates by name.
        seeds: At least ``sum(rounds)`` seeds; every round takes fresh ones, the same for all.
        tick: Called after every episode.
        rounds: Episodes per candidate and round.

    Returns:
        Name and mean reward in the last round.
    """
    left, first = list(agents), 0
    score = {name: 0.0 for name in left}
    for episodes in rounds:
        part = seeds[first : first + episodes]
        first += episodes
        score = {name: mean_reward(env, agents[name], part, tick) for name in left}
        left = sorted(left, key=lambda name: -score[name])[: max(1, len(left) // KEEP)]
    return left[0], score[left[0]]


def tuned(
    env: LLMClusterEnv,
    found: Mapping[str, Agent],
    seed: int,
    tick: Callable[[], None] = lambda: None,
    rounds: Sequence[int] = ROUNDS,
) -> tuple[str, Agent]:
    """The best of the candidates ``found`` on validation traffic, with its name."""
    name, _ = best_of(env, found, validation_seeds(seed, sum(rounds)), tick, rounds)
    return name, found[name]
