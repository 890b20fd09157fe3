"""Agents that follow the load: just enough slots for the traffic, caps within the budget."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..envs.actions import ClusterAction
from ..envs.telemetry import LEAD_TIMES_S
from ..simulator.kernels.state import COMPUTE, LINK, MEMORY
from ..simulator.units import PS_PER_S
from .base import Agent, Heuristic, Task, View
from .static import first_fit, highest_level, only

if TYPE_CHECKING:
    from ..envs.cluster_env import LLMClusterEnv

TARGET_LOADS = (0.6, 0.8, 1.0, 1.2, 1.4, 1.6)
PATIENCES = (1, 3, 6)
CAPACITY_BATCH = 48
"""Batch size at which a slot counts as well filled."""


def capacity_requests_per_s(task: Task, prompt_tokens: float, output_tokens: float) -> NDArray[np.float64]:
    """Requests per second that each slot sustains at a well-filled batch, from its cost tables (R,)."""
    held = [deployment_requests_per_s(task, int(d), prompt_tokens, output_tokens) for d in task.blueprint.initial]
    return np.array(held)


def deployment_requests_per_s(task: Task, d: int, prompt_tokens: float, output_tokens: float) -> float:
    """Requests per second that a deployment sustains at a well-filled batch, from its cost tables."""
    return float(PS_PER_S / sum(request_ps(task, d, prompt_tokens, output_tokens)))


def request_ps(task: Task, d: int, prompt_tokens: float, output_tokens: float) -> tuple[float, float]:
    """Time of a deployment that a request takes at a well-filled batch, for its prompt and for its output, ps."""
    records, cost = task.blueprint.tables.deployments, task.blueprint.tables.cost
    longest = cost.shape[2] - 1
    prompt, batch = min(int(prompt_tokens), longest), min(CAPACITY_BATCH, task.fleet.max_num_seqs, longest)
    cached = batch * (prompt_tokens + output_tokens / 2)
    host = records["step_ps"][d] + records["sequence_ps"][d] * batch
    memory = cost[d, MEMORY, batch] + records["state_ps"][d] * batch + records["kv_read_ps"][d] * cached
    gaps = records["gap_ps"][d] + records["sample_ps"][d] * batch + cost[d, LINK, batch]
    step = host + gaps + max(cost[d, COMPUTE, batch], memory)
    return float(cost[d, COMPUTE, prompt] * prompt_tokens / max(prompt, 1)), float(output_tokens * step / batch)


class FollowLoad(Heuristic):
    """Serves with the fewest slots, most efficient GPUs first, that carry the observed traffic at a target load.

    Slots are woken at once and put to sleep only after the traffic has been low for a while, since waking takes tens of
    seconds. Where the announced budget is lower than the TDP of the slots in use, all are capped alike.

    Args:
        task: What may be known beforehand.
        load: Target share of each slot's capacity.
        patience: Ticks of low traffic before a slot sleeps.
    """

    def __init__(self, task: Task, load: float = 0.6, patience: int = 3) -> None:
        super().__init__(task)
        self._load, self._patience = load, patience
        per_request = task.scenario.reward.tokens_per_request
        self._capacity = capacity_requests_per_s(task, PROMPT_TOKENS, per_request)
        self._off_w = np.array([task.blueprint.deployments[d].power.off_w for d in task.blueprint.initial])
        self._order = np.argsort(-self._capacity / task.fleet.cap_max_w, kind="stable")
        self._recent: dict[int, list[float]] = {}

    def watch(self, env: LLMClusterEnv) -> None:
        """Forgets the last episode."""
        self._recent = {}

    def forget(self, row: int) -> None:
        """Forgets the last episode of one row of a batch."""
        self._recent.pop(row, None)

    def expected_requests_per_s(self, view: View) -> float:
        """Traffic to be ready for: the highest of the last ticks."""
        recent = [*self._recent.get(view.row, [])[-self._patience :], view.cluster("arrivals")]
        self._recent[view.row] = recent
        return max(recent)

    def decide(self, view: View) -> ClusterAction:
        """Slots for the expected traffic; see :class:`Heuristic`."""
        wanted = self.expected_requests_per_s(view) / self._load
        carried = np.cumsum(self._capacity[self._order])
        count = min(int(np.searchsorted(carried, wanted)) + 1, len(self._order))
        chosen = np.zeros(len(self._order), bool)
        chosen[self._order[:count]] = True
        announced_w = min(view.cluster(f"budget_in_{lead}s") for lead in LEAD_TIMES_S)
        level = highest_level(self.task, chosen, announced_w - float(self._off_w[~chosen].sum()))
        weight = self._capacity / self._capacity.max()
        action = only(self.task, chosen, level, "least-outstanding", weight)
        return replace(action, place=first_fit(self.task, view))


def tuned_over(kind: type[FollowLoad], task: Task) -> dict[str, Agent]:
    """Candidates of ``kind``: every target load with every patience, by names that say so."""
    return {
        f"target load {load:g}, patience {patience} ticks": kind(task, load, patience)
        for load in TARGET_LOADS
        for patience in PATIENCES
    }


class Clairvoyant(FollowLoad):
    """The same, but it knows the arrivals of the next minute. It shows what foresight is worth to such rules."""

    clairvoyant: ClassVar[bool] = True

    def watch(self, env: LLMClusterEnv) -> None:
        """Takes a look at the traffic to come."""
        super().watch(env)
        self._env = env

    def expected_requests_per_s(self, view: View) -> float:
        """The busiest tick until a slot woken now would have been of use."""
        plant = self._env.plant
        assert plant is not None
        tick_ps = self.task.scenario.tick_s * PS_PER_S
        ticks = -(-LEAD_TIMES_S[1] // self.task.scenario.tick_s)
        edges = plant.cluster.now_ps + tick_ps * np.arange(ticks + 1)
        counts = np.diff(np.searchsorted(plant.cluster.requests.arrival_ps, edges))
        return float(counts.max()) / self.task.scenario.tick_s


PROMPT_TOKENS = 1155.0
"""Mean prompt of the Azure 2023 conversation trace (AzurePublicDataset), on which slots are sized."""
