"""What an agent is: something with Stable-Baselines3's ``predict``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..envs.actions import ClusterAction
from ..envs.codec import ActionCodec
from ..envs.observation import Observation, ObservationBuilder
from ..envs.scenario import Scenario
from ..envs.telemetry import Fleet
from ..simulator.blueprint import Blueprint

if TYPE_CHECKING:
    from ..envs.cluster_env import LLMClusterEnv

State = tuple[NDArray[Any], ...] | None


class Agent(Protocol):
    """The interface that learned and heuristic agents share."""

    def predict(
        self,
        observation: Observation,
        state: State = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,
        action_masks: NDArray[np.bool_] | None = None,
    ) -> tuple[NDArray[Any], State]:
        """Action and next state for one observation or a batch of them."""


@runtime_checkable
class Watcher(Protocol):
    """An agent that is told of the start of an episode."""

    def watch(self, env: LLMClusterEnv) -> None:
        """Called at the start of each episode, before the first decision."""


@dataclass(frozen=True, eq=False)
class Task:
    """What every agent may know beforehand: the scenario and the data sheets, never the traffic to come.

    Attributes:
        scenario: The scenario.
        blueprint: The cluster with its cost tables.
        fleet: The slots.
        codec: The action encoding.
        observations: Names and scales of the observation.
    """

    scenario: Scenario
    blueprint: Blueprint
    fleet: Fleet
    codec: ActionCodec
    observations: ObservationBuilder

    @classmethod
    def of(cls, env: LLMClusterEnv) -> Task:
        """The task that an environment poses."""
        return cls(env.scenario, env.blueprint, env.fleet, env.codec, env.observations)


class View:
    """An observation in natural units, by the names of its features.

    Args:
        observation: The observation, not a batch.
        builder: What built it.
        row: Its place in the batch, by which agents with a memory tell several clusters apart.
    """

    def __init__(self, observation: Observation, builder: ObservationBuilder, row: int = 0) -> None:
        self.row = row
        self._cluster, self._builder = observation["cluster"], builder
        self._slots = observation["slots"].reshape(len(builder.fleet), -1)
        self._forecast = observation["forecast"].reshape(len(builder.fleet) + 1, -1)

    def slot(self, name: str) -> NDArray[np.float64]:
        """A per-slot feature (R,)."""
        names = [f.name for f in self._builder.slot_features]
        i = names.index(name)
        scale = self._builder.slot_features[i].scale
        by = self._builder.fleet.cap_max_w if np.isnan(scale) else scale
        return self._slots[:, i].astype(np.float64) * by

    def cluster(self, name: str) -> float:
        """A feature of the cluster."""
        i = [f.name for f in self._builder.cluster_features].index(name)
        return float(self._cluster[i]) * self._builder.cluster_features[i].scale

    def forecast_w(self, name: str) -> NDArray[np.float64]:
        """A forecast figure such as ``point_30s_q0.5``, watts: slot by slot, then of all (R + 1,)."""
        scale_w = self._builder.fleet.cap_max_w
        column = self._forecast[:, self._builder.forecast_features.index(name)].astype(np.float64)
        return np.asarray(column * np.append(scale_w, scale_w.sum()))


class Heuristic(ABC):
    """An agent made of rules. Subclasses see one observation and return a typed action.

    Args:
        task: What may be known beforehand.
    """

    clairvoyant: ClassVar[bool] = False
    """Whether it uses the future or true output lengths; such agents are never called best."""

    def __init__(self, task: Task) -> None:
        self.task = task

    @abstractmethod
    def decide(self, view: View) -> ClusterAction:
        """The action for one observation."""

    def watch(self, env: LLMClusterEnv) -> None:  # noqa: B027 - most agents have no use for it
        """Called at the start of each episode; only clairvoyant agents look."""

    def forget(self, row: int) -> None:  # noqa: B027 - most agents have no memory
        """Called when an episode starts in this row of the batch."""

    def predict(
        self,
        observation: Observation,
        state: State = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,
        action_masks: NDArray[np.bool_] | None = None,
    ) -> tuple[NDArray[Any], State]:
        """Action for one observation, or for a batch of them; see :class:`Agent`."""
        for row in () if episode_start is None else np.flatnonzero(episode_start):
            self.forget(int(row))
        if observation["cluster"].ndim == 1:
            return self._encode(observation, 0), state
        batch = [{k: v[i] for k, v in observation.items()} for i in range(len(observation["cluster"]))]
        return np.stack([self._encode(one, row) for row, one in enumerate(batch)]), state

    def _encode(self, observation: Observation, row: int) -> NDArray[Any]:
        return self.task.codec.encode(self.decide(View(observation, self.task.observations, row)))
