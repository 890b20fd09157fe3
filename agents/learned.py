"""Trained policies on disk: weights as safetensors and what they mean as JSON, no pickles."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from ..envs.cluster_env import LLMClusterEnv
from ..envs.observation import Observation
from ..simulator.errors import InputError
from ..simulator.files import whole
from .base import State, Task
from .heads import HeadsDistribution
from .network import Actor, NetworkSpec

FORMAT = 1
DESCRIPTION, WEIGHTS = "agent.json", "policy.safetensors"
MAX_WEIGHT_BYTES = 64 * 2**20
MAX_WIDTH = 1024


def box_lengths(space: gym.spaces.Dict) -> dict[str, int]:
    """Lengths of the flat boxes of an observation space."""
    return {name: int(np.prod(box.shape or ())) for name, box in space.spaces.items()}


def network_spec(env: LLMClusterEnv, width: int = 64) -> NetworkSpec:
    """The network for an environment's observation and action."""
    return NetworkSpec.of(
        env.codec.layout,
        len(env.fleet.models),
        box_lengths(env.observation_space),
        len(env.observations.forecast_features),
        width,
    )


def save_agent(folder: Path, actor: Actor, about: Mapping[str, Any]) -> None:
    """Writes an agent so that it can be loaded for any cluster size.

    Args:
        folder: Where to; made if missing.
        actor: The network.
        about: Plain values that say how it came about.
    """
    folder.mkdir(parents=True, exist_ok=True)
    description = {"format": FORMAT, "network": actor.spec.as_dict(), **about}
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in actor.state_dict().items()}
    for name, content in ((WEIGHTS, save(weights)), (DESCRIPTION, json.dumps(description, indent=1).encode())):
        with whole(folder / name) as partial:
            partial.write_bytes(content)


class LearnedAgent:
    """A trained policy.

    Args:
        task: What it is to act on: any number of slots, but the features and groups it was trained with.
        folder: What :func:`save_agent` wrote.

    Raises:
        InputError: The folder holds no agent, a damaged one, or one for other features.
    """

    clairvoyant = False

    def __init__(self, task: Task, folder: Path) -> None:
        about = _read_description(folder)
        spec = _spec_of(about, folder / DESCRIPTION)
        lengths = box_lengths(task.observations.space())
        wanted = NetworkSpec.of(
            task.codec.layout, len(task.fleet.models), lengths, len(task.observations.forecast_features)
        )
        if replace(spec, width=wanted.width) != wanted:
            raise InputError(
                str(folder),
                f"was trained for {_differences(spec, wanted)}",
                "Train an agent on this scenario, or evaluate it on its own",
            )
        if task.codec.encoding != "discrete":
            raise InputError(str(folder), "needs discrete actions", "Make the environment with encoding='discrete'")
        self.about = about
        self._actor = Actor(spec)
        self._load(folder / WEIGHTS)
        self._heads = HeadsDistribution([int(n) for n in task.codec.layout.sizes])

    def _load(self, path: Path) -> None:
        try:
            if path.stat().st_size > MAX_WEIGHT_BYTES:
                raise InputError(str(path), "is larger than any agent", "Check that it is the right file")
            self._actor.load_state_dict(load_file(path))
            if not all(torch.isfinite(weights).all() for weights in self._actor.state_dict().values()):
                raise InputError(str(path), "holds weights that are no numbers", "Train the agent again")
        except (OSError, SafetensorError, RuntimeError) as fault:
            raise InputError(str(path), f"holds no weights for this agent ({fault})", "Train it again") from fault
        self._actor.eval()

    def predict(
        self,
        observation: Observation,
        state: State = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,
        action_masks: NDArray[np.bool_] | None = None,
    ) -> tuple[NDArray[Any], State]:
        """Action for one observation or a batch of them; see :class:`Agent`."""
        single = observation["cluster"].ndim == 1
        tensors = {k: torch.as_tensor(v[None] if single else v) for k, v in observation.items()}
        with torch.no_grad():
            heads = self._heads.proba_distribution(self._actor(tensors))
            heads.apply_masking(action_masks)
            actions = heads.get_actions(deterministic=deterministic).numpy()
        return (actions[0] if single else actions), state


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION
    try:
        about: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as fault:
        raise InputError(
            str(path), f"cannot be read ({fault})", "Give a folder that `llmcluster train` wrote"
        ) from fault
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise InputError(str(path), "is of another format", "Train the agent again with this version")
    return about


def _spec_of(about: Mapping[str, Any], path: Path) -> NetworkSpec:
    given = about.get("network")
    try:
        lists = {name: tuple(value) for name, value in given.items() if isinstance(value, list)}  # type: ignore[union-attr]
        spec = NetworkSpec(**{**given, **lists})  # type: ignore[dict-item]
        sound = isinstance(spec.width, int) and 1 <= spec.width <= MAX_WIDTH
    except (TypeError, KeyError, AttributeError):
        sound = False
    if not sound:
        raise InputError(str(path), "has no sound network description", "Train the agent again")
    return spec


def _differences(spec: NetworkSpec, wanted: NetworkSpec) -> str:
    pairs = ((k, v, wanted.as_dict()[k]) for k, v in spec.as_dict().items() if k != "width")
    return ", ".join(f"{name} {had} instead of {needed}" for name, had, needed in pairs if had != needed)
