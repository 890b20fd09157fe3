"""Model-predictive control: short plans tried on a simulator of what the agent believes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..envs.actions import SERVE, ClusterAction
from ..envs.plant import SimulatedPlant
from ..envs.reward import reward_terms
from ..envs.telemetry import LEAD_TIMES_S
from ..simulator.snapshot import Snapshot
from ..simulator.units import PS_PER_S
from .base import Heuristic, Task, View
from .proactive import ForecastLoad
from .scaling import PROMPT_TOKENS, capacity_requests_per_s
from .static import first_fit, highest_level, only
from .twin import Twin

if TYPE_CHECKING:
    from ..envs.cluster_env import LLMClusterEnv

ROLLOUTS = 14
"""Plans tried in a decision, at most."""
REQUESTS = 40_000
"""Requests that all plans of a decision play together, at most: about 50 ms with eight slots. A count, not a time, so
that runs repeat."""
SEED = 0
MEMORY = 2
"""Ticks of which the busiest counts: traffic comes in bursts, and slots that sleep take long to wake."""
EXPECTED = ("mean_60s_q0.5",)
LEAST_REQUESTS_PER_S = 0.1
"""However quiet it is, some request may come."""


class Plan(NamedTuple):
    """What is held for the horizon: which slots serve, and at which level of its range each row is capped."""

    on: tuple[bool, ...]
    level: tuple[int, ...]


class Mpc(Heuristic):
    """Tries plans on a simulator and takes the first step of the best one (Camacho and Bordons, 2007, ch. 1).

    Each tick it sets up a model cluster as the observation tells it (:class:`~llmcluster.agents.twin.Twin`), with
    Poisson traffic at the rate it believes in: that of the last ticks, or more where the power forecast grows. It knows
    nothing of the true requests. On that model it plays the next minute for each plan, from one saved state and against
    the same requests, and adds up the scenario's own reward. Plans are: to stay, what :class:`ForecastLoad` would do,
    all slots on, one slot of a model more or fewer, and caps of a row, or of all, a level up or down; then the
    neighbours of the best. From the second tick of a plan on, caps give way to the announced budget.

    Args:
        task: What may be known beforehand.
    """

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        tick_s = task.scenario.tick_s
        self._ticks = max(-(-LEAD_TIMES_S[-1] // tick_s), 2)
        self._lengths_rng, self._rng = np.random.default_rng(SEED).spawn(2)
        self._twin = Twin(task, self._ticks * tick_s, self._lengths_rng)
        self._guide = ForecastLoad(task)
        self._recent: dict[int, list[float]] = {}
        self._capacity = capacity_requests_per_s(task, PROMPT_TOKENS, task.scenario.reward.tokens_per_request)
        self._tdp_w = float(task.fleet.cap_max_w.sum())
        slots = task.blueprint.slots
        self._row = np.array([slot.row for slot in slots])
        kinds = [slot.spec.model for slot in slots]
        placed = "place" in task.codec.groups
        order = np.argsort(-self._capacity / task.fleet.cap_max_w, kind="stable")
        self._kinds = [
            [int(r) for r in order if kinds[r] == kind]
            for kind in dict.fromkeys(kinds)
            if kind is not None or not placed
        ]

    def watch(self, env: LLMClusterEnv) -> None:
        """Forgets the last episode, so that a run does not depend on those before."""
        self._guide.watch(env)
        self._recent = {}
        self._rng = np.random.default_rng(SEED).spawn(2)[1]

    def forget(self, row: int) -> None:
        """Forgets the last episode of one row of a batch."""
        self._guide.forget(row)
        self._recent.pop(row, None)

    def decide(self, view: View) -> ClusterAction:
        """The first step of the best plan; see :class:`Heuristic`."""
        guided = self._guide.decide(view)
        plant, state = self._twin.begin(view, self._believed_requests_per_s(view), self._rng)
        affordable = REQUESTS // max(len(plant.cluster.requests), 1)
        best = self._best(view, guided, plant, state, min(max(affordable, 3), ROLLOUTS))
        return replace(self._action(best), place=first_fit(self.task, view))

    def _believed_requests_per_s(self, view: View) -> float:
        """Traffic of the busiest of the last ticks, or their mean grown as the middle of the power forecast has it."""
        recent = [*self._recent.get(view.row, [])[1 - MEMORY :], view.cluster("arrivals")]
        self._recent[view.row] = recent
        grown = float(np.mean(recent)) * self._guide.growth(view, *EXPECTED)
        return max(*recent, grown, LEAST_REQUESTS_PER_S)

    def _best(self, view: View, guided: ClusterAction, plant: SimulatedPlant, state: Snapshot, rollouts: int) -> Plan:
        """Hill climbing from the present plan and the guide's, until no neighbour is better or all rollouts are used.

        Of plans that score alike the first counts, which is to stay.
        """
        stay = self._present(view)
        score: dict[Plan, float] = {}

        def try_out(plans: Iterator[Plan]) -> Plan:
            for plan in plans:
                if plan not in score and len(score) < rollouts:
                    score[plan] = self._reward(plan, plant, state)
            return max(score, key=lambda plan: score[plan])

        best = try_out(iter([stay, self._as_plan(guided), self._all_on(view)]))
        while (better := try_out(self._neighbours(best))) != best and len(score) < rollouts:
            best = better
        return max(score, key=lambda plan: score[plan])

    def _levels(self, cap_w: NDArray[np.float64]) -> tuple[int, ...]:
        """The level of each row's first slot."""
        fleet = self.task.fleet
        share = (cap_w - fleet.cap_min_w) / (fleet.cap_max_w - fleet.cap_min_w)
        levels = np.rint(share * (self.task.codec.steps - 1)).astype(int)
        rows = len(self.task.scenario.cluster.rows)
        return tuple(int(levels[self._row == row][0]) if (self._row == row).any() else 0 for row in range(rows))

    def _present(self, view: View) -> Plan:
        on = view.slot("is_serving") + view.slot("is_loading") > 0
        return Plan(tuple((on if on.any() else ~on).tolist()), self._levels(view.slot("cap")))

    def _as_plan(self, action: ClusterAction) -> Plan:
        assert action.lifecycle is not None and action.cap_w is not None
        return Plan(tuple((action.lifecycle >= SERVE).tolist()), self._levels(action.cap_w))

    def _all_on(self, view: View) -> Plan:
        chosen = np.ones(len(self.task.fleet), bool)
        level = round(highest_level(self.task, chosen, view.cluster("budget_in_0s")) * (self.task.codec.steps - 1))
        return Plan(tuple(chosen.tolist()), (level,) * len(self.task.scenario.cluster.rows))

    def _neighbours(self, plan: Plan) -> Iterator[Plan]:
        """Plans one step away."""
        for members in self._kinds:
            off = [r for r in members if not plan.on[r]]
            on = [r for r in members if plan.on[r]]
            for slot in (*off[:1], *(on[-1:] if len(on) > 1 else ())):
                yield plan._replace(on=(*plan.on[:slot], not plan.on[slot], *plan.on[slot + 1 :]))
        top, rows = self.task.codec.steps - 1, len(plan.level)
        whole = [tuple(range(rows))] + [(row,) for row in range(rows)] * (rows > 1)
        for moved in whole:
            for by in (1, -1):
                level = tuple(min(max(of + by * (row in moved), 0), top) for row, of in enumerate(plan.level))
                yield plan._replace(level=level)

    def _action(self, plan: Plan, ceiling: float = 1.0) -> ClusterAction:
        share = np.minimum(np.array(plan.level)[self._row] / (self.task.codec.steps - 1), ceiling)
        weight = self._capacity / self._capacity.max()
        fleet = self.task.fleet
        action = only(self.task, np.array(plan.on), 1.0, "least-outstanding", weight)
        return replace(action, cap_w=fleet.cap_min_w + share * (fleet.cap_max_w - fleet.cap_min_w))

    def _reward(self, plan: Plan, plant: SimulatedPlant, state: Snapshot) -> float:
        """The reward of the horizon under a plan."""
        plant.restore_state(state)
        tick_s, on, total = self.task.scenario.tick_s, np.array(plan.on), 0.0
        for tick in range(self._ticks):
            ceiling = 1.0
            if tick:
                until_w = plant.budget.at(np.array([tick, tick + 1]) * tick_s).min()
                ceiling = highest_level(self.task, on, float(until_w))
            codec = self.task.codec
            plant.apply(codec.decode(codec.encode(self._action(plan, ceiling))))
            plant.cluster.advance((tick + 1) * tick_s * PS_PER_S)
            total += sum(reward_terms(plant.take_stock(), self._twin.scenario, self._tdp_w).values())
        return total
