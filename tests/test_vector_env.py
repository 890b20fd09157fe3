"""Copies in one call do what they would do alone."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv

import llmcluster
from llmcluster import InputError
from llmcluster.envs.vector_env import LLMClusterVectorEnv


def test_make_vec_gives_the_native_one() -> None:
    envs = gym.make_vec("llmcluster:LLMClusterSmall-v0", num_envs=3)
    assert isinstance(envs.unwrapped, LLMClusterVectorEnv) and envs.num_envs == 3
    observations, infos = envs.reset(seed=0)
    assert envs.observation_space.contains(observations)
    assert infos["action_mask"].shape == envs.unwrapped.action_masks().shape


@pytest.mark.parametrize("scenario", ["small", "saas-iaas"])
def test_copies_do_what_they_would_do_alone(scenario: str) -> None:
    """Over the end of an episode too; Gymnasium's own vector environment steps one after the other."""
    kwargs = {"scenario": {**llmcluster.load_scenario(scenario).model_dump(), "horizon_s": 120}}
    ours = LLMClusterVectorEnv(3, **kwargs)
    theirs = SyncVectorEnv([lambda: llmcluster.LLMClusterEnv(**kwargs)] * 3)
    ours.action_space.seed(1)
    for a, b in zip(ours.reset(seed=[5, 6, 9])[0].values(), theirs.reset(seed=[5, 6, 9])[0].values(), strict=True):
        assert (a == b).all()
    for _ in range(2 * ours.envs[0].scenario.ticks + 3):
        actions = ours.action_space.sample()
        mine, reward, terminated, truncated, info = ours.step(actions)
        other, its_reward, _, its_truncated, its_info = theirs.step(actions)
        assert all((mine[key] == other[key]).all() for key in other)
        assert reward.tolist() == its_reward.tolist() and truncated.tolist() == its_truncated.tolist()
        assert not terminated.any()
        assert info["time_s"].tolist() == its_info["time_s"].tolist()


def test_one_seed_makes_consecutive_ones() -> None:
    one, many = LLMClusterVectorEnv(2, scenario="small"), LLMClusterVectorEnv(2, scenario="small")
    one.reset(seed=3)
    many.reset(seed=[3, 4])
    one.single_action_space.seed(0)
    actions = np.stack([one.single_action_space.sample()] * 2)
    a, b = one.step(actions), many.step(actions)
    assert a[1].tolist() == b[1].tolist() and a[1][0] != a[1][1]


def test_no_copies_are_refused() -> None:
    with pytest.raises(InputError, match="at least 1"):
        LLMClusterVectorEnv(0, scenario="small")
