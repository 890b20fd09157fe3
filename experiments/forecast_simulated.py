"""Telemetry of simulated runs, as the environment meters it: what the shipped forecaster is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..agents.base import Agent, Heuristic, Task, View, Watcher
from ..agents.registry import make_agent, scenario_for
from ..agents.static import all_on
from ..envs.actions import ClusterAction
from ..envs.cluster_env import LLMClusterEnv
from ..envs.perception import READ, covariates, power_w, scales_w
from ..envs.scenario import Scenario
from ..forecaster.telemetry import Telemetry

RANDOM_CAPS = "random-caps"
WHOLE = "cluster"
"""Name of the channel that is the sum of all slots."""
CHANGES = 0.2
"""Chance that a slot's cap is drawn anew in a tick."""


class RandomCaps(Heuristic):
    """All slots on, each under a cap that is drawn anew from time to time.

    Args:
        task: What may be known beforehand.
        seed: Seed of its draws.
    """

    def __init__(self, task: Task, seed: int) -> None:
        super().__init__(task)
        self._rng = np.random.default_rng(seed)
        self._cap_w = self._drawn()

    def decide(self, view: View) -> ClusterAction:
        """All on; see :class:`Heuristic`."""
        changes = self._rng.random(len(self._cap_w)) < CHANGES
        self._cap_w = np.where(changes, self._drawn(), self._cap_w)
        return replace(all_on(self.task, "least-outstanding"), cap_w=self._cap_w)

    def _drawn(self) -> np.ndarray:
        fleet = self.task.fleet
        return self._rng.uniform(fleet.cap_min_w, fleet.cap_max_w)


def record(scenario: Scenario, agent: str, seed: int) -> Telemetry:
    """Metered telemetry of one episode: the slots, and last the whole cluster.

    Args:
        scenario: The scenario.
        agent: Name of an agent, or ``random-caps``.
        seed: Seed of the episode.

    Returns:
        Power of every second; covariates as the environment hands them to a forecaster, in the last second of a tick.
    """
    env = LLMClusterEnv(scenario_for(agent, scenario), forecaster="none")
    task = Task.of(env)
    actor: Agent = RandomCaps(task, seed) if agent == RANDOM_CAPS else make_agent(agent, task)
    observation, info = env.reset(seed=seed)
    if isinstance(actor, Watcher):
        actor.watch(env)
    watts, beside = [], []
    start, state, truncated = np.ones(1, bool), None, False
    while not truncated:
        action, state = actor.predict(observation, state, start, action_masks=info["action_mask"])
        start = np.zeros(1, bool)
        observation, _, _, truncated, info = env.step(action)
        watts.append(power_w(env.telemetry))
        beside.append(covariates(env.telemetry))
    return Telemetry(
        np.concatenate(watts),
        (*env.fleet.slots, WHOLE),
        covariates={name: np.concatenate([part[name] for part in beside]) for name in READ},
        scale_w=scales_w(env.fleet),
        source=f"{scenario.name}/{agent}/{seed}",
    )


def record_all(scenarios: Sequence[Scenario], agents: Sequence[str], seeds: Sequence[int]) -> list[Telemetry]:
    """Every agent in every scenario at every seed."""
    return [record(scenario, agent, seed) for scenario in scenarios for agent in agents for seed in seeds]
