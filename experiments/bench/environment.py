"""What a reset and a step of the environment cost, alone and for several copies at once."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...agents.base import Task
from ...agents.static import LeastOutstanding
from ...envs.cluster_env import LLMClusterEnv
from ...envs.scenario import Scenario
from ...envs.vector_env import LLMClusterVectorEnv
from .setup import Cost

MS_PER_S = 1e3


class Episode(NamedTuple):
    """What one episode took.

    Attributes:
        reset: Its start.
        steps: All its steps.
        requests: Requests of it, in all copies together.
    """

    reset: Cost
    steps: Cost
    requests: int


def measure_env(scenario: Scenario, copies: int, rounds: int, seed: int, tick: Callable[[], None]) -> dict[str, Any]:
    """Plays the same episode several times over, in one environment and in the native vector environment.

    All slots serve at full power under every action: what an agent decides is not timed.

    Args:
        scenario: The scenario.
        copies: Copies of the vector environment.
        rounds: Episodes of each; the fastest counts, for what slows one down is not the environment's.
        seed: Seed of the episode; copies have consecutive ones.
        tick: Called after each episode.

    Returns:
        What was played and how fast, as plain values. A step of the vector environment is one of every copy.
    """
    began = time.perf_counter()
    env = LLMClusterEnv(scenario)
    made = time.perf_counter()
    observation, info = env.reset(seed=seed)
    first = time.perf_counter()
    action, _ = LeastOutstanding(Task.of(env)).predict(observation, action_masks=info["action_mask"])
    alone = [_play(env, action, [env], seed, tick) for _ in range(rounds)]
    vector = LLMClusterVectorEnv(copies, scenario=scenario)
    together = [_play(vector, np.stack([action] * copies), vector.envs, seed, tick) for _ in range(rounds)]
    one, many = _figures(alone, scenario.ticks), _figures(together, scenario.ticks)
    return {
        "scenario": scenario.name,
        "slots": len(env.fleet),
        "ticks": scenario.ticks,
        "tick_s": scenario.tick_s,
        "seed": seed,
        "rounds": rounds,
        "make_s": made - began,
        "first_reset_s": first - made,
        **one,
        "steps_per_s": MS_PER_S / one["step_ms"],
        "simulated_s_per_s": scenario.tick_s * MS_PER_S / one["step_ms"],
        "vector": {
            "copies": copies,
            **many,
            "steps_per_s": copies * MS_PER_S / many["step_ms"],
            "gain": copies * one["step_ms"] / many["step_ms"],
        },
    }


def _play(
    env: LLMClusterEnv | LLMClusterVectorEnv,
    action: NDArray[Any],
    each: list[LLMClusterEnv],
    seed: int,
    tick: Callable[[], None],
) -> Episode:
    reset = _timed(lambda: env.reset(seed=seed))

    def steps() -> None:
        for _ in range(each[0].scenario.ticks):
            env.step(action)

    cost = _timed(steps)
    tick()
    return Episode(reset, cost, sum(len(copy.plant.cluster.requests) for copy in each if copy.plant))


def _timed(work: Callable[[], object]) -> Cost:
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    work()
    return Cost(time.perf_counter() - wall_s, time.process_time() - cpu_s)


def _figures(episodes: list[Episode], ticks: int) -> dict[str, Any]:
    """Milliseconds of a reset and of a step: of the fastest episode, the median one, and of the processor."""
    resets = [MS_PER_S * episode.reset.wall_s for episode in episodes]
    steps = [MS_PER_S * episode.steps.wall_s / ticks for episode in episodes]
    return {
        "requests": episodes[0].requests,
        "reset_ms": min(resets),
        "reset_ms_median": statistics.median(resets),
        "step_ms": min(steps),
        "step_ms_median": statistics.median(steps),
        "step_cpu_ms": min(MS_PER_S * episode.steps.cpu_s / ticks for episode in episodes),
    }
