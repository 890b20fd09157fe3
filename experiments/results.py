"""What an evaluation yields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..simulator.metrics import Summary

SERIES = ("time_s", "power_w", "budget_w", "arrivals_per_s", "serving_slots", "slo_attainment")


@dataclass(frozen=True, eq=False)
class Episode:
    """One agent on one episode.

    Attributes:
        agent: Name of the agent.
        seed: Seed of the episode; equal seeds have equal traffic.
        reward: Sum of rewards over the horizon.
        terms: The same by reward term.
        summary: Results after the warm-up, with the queue drained.
        series: Arrays with one value per tick, by the names in :data:`SERIES`.
        interventions: Decisions that the safety layer changed, by reason; empty without one.
    """

    agent: str
    seed: int
    reward: float
    terms: Mapping[str, float]
    summary: Summary
    series: Mapping[str, NDArray[np.float64]]
    interventions: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """All agents on the same episodes.

    Attributes:
        scenario: Name of the scenario.
        workload: What was played: the scenario's own workload or the name of a trace.
        agents: Names of the agents in the order given.
        clairvoyant: Names of the agents that know the future; they are never called best.
        episodes: Every agent on every seed.
        wall_s: Time it took.
    """

    scenario: str
    workload: str
    agents: tuple[str, ...]
    clairvoyant: frozenset[str]
    episodes: tuple[Episode, ...]
    wall_s: float

    def of(self, agent: str) -> list[Episode]:
        """Episodes of one agent, by seed."""
        return sorted((e for e in self.episodes if e.agent == agent), key=lambda e: e.seed)
