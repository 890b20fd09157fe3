"""Whole runs must be freed when the next one starts, not when the garbage collector next thinks of it."""

import gc
import os
import weakref
from pathlib import Path

import pytest

from llmcluster.envs.cluster_env import LLMClusterEnv
from llmcluster.envs.scenario import load_scenario


@pytest.mark.parametrize("scenario", ["small", "placement"])
def test_a_reset_frees_the_run_before_it(scenario: str) -> None:
    env = LLMClusterEnv(scenario)
    env.action_space.seed(0)
    gc.collect()
    gc.disable()
    try:
        env.reset(seed=0)
        for _ in range(5):
            env.step(env.action_space.sample())
        assert env.plant is not None
        before = weakref.ref(env.plant.cluster)
        env.reset(seed=1)
        assert before() is None
    finally:
        gc.enable()


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's own account of memory")
def test_a_thousand_resets_and_a_million_steps_hold_memory_flat() -> None:
    env = LLMClusterEnv({**load_scenario("small").model_dump(), "tick_s": 1})
    env.action_space.seed(0)
    action = env.action_space.sample()
    for seed in range(50):
        env.reset(seed=seed)
        for _ in range(10):
            env.step(action)
    before = _resident_mb()
    for seed in range(1000):
        env.reset(seed=seed)
    assert _resident_mb() - before < 10
    over = False
    for _ in range(1_000_000):
        if over:
            env.reset()
        over = env.step(action)[3]
    assert _resident_mb() - before < 10
