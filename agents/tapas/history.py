"""The history that TAPAS learns from: telemetry of another controller on traffic of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...envs.actions import ClusterAction
from ...envs.cluster_env import LLMClusterEnv
from ..base import Heuristic, Task, View
from ..static import first_fit, targets
from .reading import F64, Mask, Reading

PROFILE_SEED = 3 << 29
"""Beyond the seeds of training, validation and held-out episodes, which start with 0, 1 and 2; see experiments."""
EPISODES = 3
HOLD_S = 60
"""How long the profiling controller keeps a setting: inlets take minutes, dies tens of seconds."""
LOWEST_WEIGHT = 0.1


@dataclass(frozen=True, eq=False)
class History:
    """Telemetry of n ticks of R slots.

    Attributes:
        tick_s: Length of a tick, seconds.
        first: Whether a tick is the first of its run (n,).
        power_w: Mean of each tick, watts (n, R).
        temperature_c: Die temperature at its end, °C (n, R).
        inlet_c: Inlet temperature, °C (n, R); ``nan`` where it is not metered.
        outside_c: Outside temperature, °C (n,); ``nan`` where it is not metered.
        serving: Slots that took requests (n, R).
        tenant: Slots that foreign machines held (n, R).
    """

    tick_s: int
    first: Mask
    power_w: F64
    temperature_c: F64
    inlet_c: F64
    outside_c: F64
    serving: Mask
    tenant: Mask

    @classmethod
    def of(cls, tick_s: int, runs: Sequence[Sequence[Reading]]) -> History:
        """Of the readings of one run after another."""
        ticks = [reading for run in runs for reading in run]
        return cls(
            tick_s=tick_s,
            first=np.array([i == 0 for run in runs for i in range(len(run))]),
            power_w=np.stack([t.power_w for t in ticks]),
            temperature_c=np.stack([t.temperature_c for t in ticks]),
            inlet_c=np.stack([t.inlet_c for t in ticks]),
            outside_c=np.array([t.outside_c[0] if len(t.outside_c) else np.nan for t in ticks]),
            serving=np.stack([t.serving for t in ticks]),
            tenant=np.stack([t.tenant for t in ticks]),
        )


class Profiling(Heuristic):
    """Serves with all slots and draws caps and weights anew every minute, by row and by slot.

    Little is learnt of a cluster that is always evenly loaded.

    Args:
        task: What may be known beforehand.
        rng: Source of its draws.
    """

    def __init__(self, task: Task, rng: np.random.Generator) -> None:
        super().__init__(task)
        self._rng, self._ticks = rng, 0
        self._row = np.array([slot.row for slot in task.blueprint.slots])
        self._wanted = targets(task, np.ones(len(task.fleet), bool))
        self._hold = max(1, HOLD_S // task.scenario.tick_s)

    def decide(self, view: View) -> ClusterAction:
        """The settings of this minute; see :class:`Heuristic`."""
        fleet = self.task.fleet
        if self._ticks % self._hold == 0:
            of_row = self._rng.uniform(LOWEST_WEIGHT, 1.0, self._row.max() + 1)[self._row]
            self._weight = of_row * self._rng.uniform(LOWEST_WEIGHT, 1.0, len(fleet))
            self._weight /= self._weight.max()
            self._cap_w = self._rng.uniform(fleet.cap_min_w, fleet.cap_max_w)
        self._ticks += 1
        return ClusterAction(
            router="least-outstanding",
            route_weight=self._weight,
            cap_w=self._cap_w,
            lifecycle=self._wanted,
            place=first_fit(self.task, view),
        )


def profiled(task: Task, episodes: int = EPISODES, seed: int = PROFILE_SEED) -> History:
    """The history of a profiling run, as a provider's telemetry holds it of the weeks before.

    It is read from observations alone, and its traffic and weather are its own. Emergencies are left out of it: they
    are rare, and what was measured in them would blur what is normal.

    Args:
        task: The task.
        episodes: Episodes that are played.
        seed: Seed of the first.

    Returns:
        The history.
    """
    quiet = task.scenario.model_copy(update={"events": (), "faults": ()})
    env = LLMClusterEnv(quiet, encoding=task.codec.encoding, forecaster="none")
    runs: list[list[Reading]] = []
    for number in range(episodes):
        agent = Profiling(Task.of(env), np.random.default_rng([seed, number]))
        observation, _ = env.reset(seed=seed + number)
        readings, truncated = [], False
        while not truncated:
            action, _ = agent.predict(observation)
            observation, _, _, truncated, _ = env.step(action)
            readings.append(Reading.of(agent.task, View(observation, env.observations)))
        runs.append(readings)
    return History.of(task.scenario.tick_s, runs)
