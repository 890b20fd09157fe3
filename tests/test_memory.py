"""Whole runs must be freed when the next one starts, not when the garbage collector next thinks of it."""

import gc
import weakref

import pytest

from llmcluster.envs.cluster_env import LLMClusterEnv


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
