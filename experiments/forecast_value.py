"""What a forecast is worth: one controller with several forecasters, on the same traffic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..agents.base import Task
from ..agents.registry import CANDIDATES, make_agent, scenario_for
from ..envs.cluster_env import LLMClusterEnv
from ..envs.scenario import Scenario
from ..simulator.errors import InputError
from .rollout import play
from .seeds import held_out_seeds
from .statistics import mean_interval, paired_interval
from .tune import tuned, tuning_episodes

Tick = Callable[[], None]
ROUNDS = (6, 24)
"""Validation episodes per candidate and round of tuning: enough that chance does not choose for one forecaster what is
worth less than the forecast."""


def check(scenario: Scenario, agent: str, forecasters: Sequence[str]) -> int:
    """Refuses what does not hold before anything is played.

    Returns:
        Episodes that the tuning of each forecaster takes.
    """
    if len(set(forecasters)) != len(forecasters) or len(forecasters) < 2:
        raise InputError("--forecasters", ",".join(forecasters) or "none given", "Name two or more, each once")
    for name in forecasters:
        task = Task.of(LLMClusterEnv(scenario_for(agent, scenario), forecaster=name))
    if agent in CANDIDATES:
        return tuning_episodes(len(CANDIDATES[agent](task)), ROUNDS)
    make_agent(agent, task)
    return 0


def value(
    scenario: Scenario, agent: str, forecasters: Sequence[str], episodes: int, seed: int, tick: Tick = lambda: None
) -> dict[str, Any]:
    """Plays a controller with each forecaster on common random numbers.

    Args:
        scenario: The scenario.
        agent: The controller. One that has parameters is tuned for each forecaster on the same validation traffic.
        forecasters: Names, or files of weights; the others are compared with the first.
        episodes: Held-out episodes.
        seed: Seed of all that is drawn.
        tick: Called after every episode.

    Returns:
        ``results`` by forecaster: mean reward, its terms, and the paired difference to the first, with 95 % intervals;
        plain values.
    """
    check(scenario, agent, forecasters)
    rewards: dict[str, list[float]] = {}
    results: dict[str, Any] = {}
    for name in forecasters:
        env, note = LLMClusterEnv(scenario_for(agent, scenario), forecaster=name), ""
        task = Task.of(env)
        if agent in CANDIDATES:
            note, actor = tuned(env, CANDIDATES[agent](task), seed, tick, ROUNDS)
        else:
            actor = make_agent(agent, task)
        played = []
        for episode_seed in held_out_seeds(seed, episodes):
            played.append(play(env, actor, agent, episode_seed, drain=False))
            tick()
        rewards[name] = [episode.reward for episode in played]
        gap = paired_interval(rewards[name], rewards[forecasters[0]], np.random.default_rng(seed))
        results[name] = {
            "clairvoyant": env.perception.clairvoyant,
            "chosen": note,
            "reward": _plain(mean_interval(rewards[name], np.random.default_rng(seed))),
            "difference": _plain(gap),
            "terms": {k: float(np.mean([episode.terms[k] for episode in played])) for k in played[0].terms},
        }
    return {
        "scenario": scenario.name,
        "agent": agent,
        "reference": forecasters[0],
        "episodes": episodes,
        "seed": seed,
        "results": results,
    }


def _plain(bounds: Sequence[float]) -> list[float | None]:
    """Mean and bounds; ``None`` where there is none, which JSON knows."""
    return [float(x) if np.isfinite(x) else None for x in bounds]
