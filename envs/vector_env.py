"""Several copies of the environment, whose clusters all advance in one call of the compiled engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate
from numpy.typing import NDArray

from ..simulator.errors import InputError
from ..simulator.together import advance_together
from .cluster_env import LLMClusterEnv
from .observation import Observation

Batch = tuple[Observation, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]


class LLMClusterVectorEnv(VectorEnv[Observation, NDArray[Any], NDArray[Any]]):
    """What ``gym.make_vec("LLMCluster-v0", num_envs=N)`` makes.

    Every copy does exactly what it would do alone. A copy whose episode is over is reset by its next step, whatever the
    action (``AutoresetMode.NEXT_STEP``).

    Args:
        num_envs: Number of copies.
        **options: As :class:`LLMClusterEnv` takes them.

    Raises:
        InputError: An argument or the scenario does not hold.
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012 - Gymnasium's own

    def __init__(self, num_envs: int = 1, **options: Any) -> None:
        if num_envs < 1:
            raise InputError("num_envs", f"is {num_envs}", "Give at least 1")
        self.num_envs = num_envs
        self.envs = [LLMClusterEnv(**options) for _ in range(num_envs)]
        first = self.envs[0]
        self.single_observation_space = first.observation_space
        self.single_action_space = first.action_space
        self.observation_space = batch_space(first.observation_space, num_envs)
        self.action_space = batch_space(first.action_space, num_envs)
        self._over = np.zeros(num_envs, bool)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts an episode in every copy.

        Args:
            seed: A seed for each, or the first of consecutive ones.
            options: As :meth:`LLMClusterEnv.reset` takes them.

        Returns:
            Observations and infos, batched.
        """
        seeds: Sequence[int | None]
        seeds = [None if seed is None else seed + i for i in range(self.num_envs)] if _is_one(seed) else seed  # type: ignore[operator,assignment]
        observations: list[Observation] = []
        infos: dict[str, Any] = {}
        for i, (env, its) in enumerate(zip(self.envs, seeds, strict=True)):
            observation, info = env.reset(seed=its, options=options)
            observations.append(observation)
            infos = self._add_info(infos, info, i)
        self._over[:] = False
        return self._batch(observations), infos

    def step(self, actions: NDArray[Any]) -> Batch:
        """Carries out an action in every copy and runs one tick of all.

        Args:
            actions: An element of ``action_space``.

        Returns:
            Observations, rewards (N,), terminated (N,), truncated (N,) and infos, batched.
        """
        going = [i for i in range(self.num_envs) if not self._over[i]]
        each = list(iterate(self.action_space, actions))
        plants = [self.envs[i].begin(each[i]) for i in going]
        advance_together([plant.cluster for plant in plants], [plant.next_tick_ps for plant in plants])
        outcomes = dict(zip(going, plants, strict=True))
        observations: list[Observation] = []
        infos: dict[str, Any] = {}
        rewards, truncated = np.zeros(self.num_envs), np.zeros(self.num_envs, bool)
        for i, env in enumerate(self.envs):
            if i in outcomes:
                observation, rewards[i], _, truncated[i], info = env.finish(outcomes[i].take_stock())
            else:
                observation, info = env.reset()
            observations.append(observation)
            infos = self._add_info(infos, info, i)
        self._over = truncated.copy()
        return self._batch(observations), rewards, np.zeros(self.num_envs, bool), truncated, infos

    def action_masks(self) -> NDArray[np.bool_]:
        """Which options of which head are open, (N, options)."""
        return np.stack([env.action_masks() for env in self.envs])

    def _batch(self, observations: list[Observation]) -> Observation:
        empty: Any = create_empty_array(self.single_observation_space, self.num_envs)
        batched: Observation = concatenate(self.single_observation_space, observations, empty)  # type: ignore[assignment]
        return batched


def _is_one(seed: int | Sequence[int | None] | None) -> bool:
    return seed is None or isinstance(seed, int | np.integer)
