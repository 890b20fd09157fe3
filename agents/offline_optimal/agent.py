"""The assignment as a controller of a cluster: each tick a linear program over what is expected, and its prices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...envs.actions import ClusterAction
from ...simulator.workload.table import ANY_MODEL
from ..base import Agent, Heuristic, Task, View
from ..kinds import cap_shares, kinds_of, serve, usable
from ..traffic import Demand, Traffic
from .assignment import Shares, assign
from .simulated import IN_FLIGHT, simulated_model

if TYPE_CHECKING:
    from ...envs.cluster_env import LLMClusterEnv

F64 = NDArray[np.float64]

LOADS = (0.65, 0.8, 0.95)
PATIENCES = (3, 12, 30)
CAP_LEVELS = 3
TPOT_MARGIN = 0.8
"""Share of the TPOT limit that the mean of a full batch may take."""
TURNED_AWAY = 10.0
"""Turning a request away costs so many times what the dearest slot would take: it happens when all are full."""
RATE_STEP, LENGTH_STEP = 1.1, 1.25
"""Expectations are rounded up to powers of these, so that most ticks find their program solved already."""
LOG_STEPS = np.log([[RATE_STEP], [LENGTH_STEP], [LENGTH_STEP]])
ROUNDS = 4
KEPT = 20_000


@dataclass(frozen=True)
class Plan:
    """What a program comes to.

    Attributes:
        slots: Slots of each kind that serve (K,).
        rate: Requests per second of each of them (K,).
        cap_share: Power limit of each kind as a share of its range (K,).
        price: What a further slot of each kind would save, watts (K,): positive where the kind is used up.
    """

    slots: NDArray[np.int64]
    rate: F64
    cap_share: F64
    price: F64


class OfflineOptimal(Heuristic):
    """Shares the traffic out among kinds of slots at least energy by linear program, with predicted output lengths.

    Kinds are the paper's systems, with energy and runtime models from sweeps of the simulator; a slot's draw at rest is
    spread over what it serves, and those that the program leaves empty sleep. The shares γ are the slots there are. Of
    the power limits each kind gets the one that is cheapest at the price of its time: where slots are short it is dear,
    and higher limits pay. All requests of a model are of one quality here, so that ζ is 1: energy alone counts.

    Args:
        task: What may be known beforehand.
        load: Share of each slot's time that is planned with: the rest is for bursts.
        patience: Ticks of low traffic before a slot sleeps.
    """

    def __init__(self, task: Task, load: float = 0.8, patience: int = 3) -> None:
        super().__init__(task)
        self.kinds, self._load = kinds_of(task), load
        self._traffic = Traffic(task, patience)
        engine = task.blueprint.spec.engine
        self._cap_shares = np.array(cap_shares(task, CAP_LEVELS))
        self._models = [[simulated_model(kind.slot, engine, s) for s in self._cap_shares] for kind in self.kinds]
        self._in_flight = min(IN_FLIGHT, engine.max_num_seqs)
        first = [kind.members[0] for kind in self.kinds]
        power = [task.blueprint.deployments[task.blueprint.initial[r]].power for r in first]
        self._idle_w = np.array([p.idle_w - p.off_w for p in power])
        streams = self._traffic.streams
        self._tpot_s = np.array([stream.slo.tpot_s for stream in streams])
        self._can = np.array([[s.model in (kind.model, ANY_MODEL) for kind in self.kinds] for s in streams], bool)
        self._solved: dict[tuple[float, ...], Plan] = {}

    def watch(self, env: LLMClusterEnv) -> None:
        """Forgets the last episode."""
        self._traffic.forget()

    def forget(self, row: int) -> None:
        """Forgets the last episode of one row of a batch."""
        self._traffic.forget(row)

    def decide(self, view: View) -> ClusterAction:
        """Carries out the plan for the traffic to be ready for; see :class:`Heuristic`."""
        demand = self._traffic.demand(view)
        slots = [usable(view, kind) for kind in self.kinds]
        there = np.array([len(members) for members in slots])
        figures = np.stack([demand.requests_per_s, demand.prompt_tokens, demand.output_tokens])
        rounded = np.ceil(np.log(np.maximum(figures, 1e-6)) / LOG_STEPS)
        key = (*rounded.ravel().tolist(), *there.tolist())
        if key not in self._solved:
            if len(self._solved) >= KEPT:
                self._solved.clear()
            self._solved[key] = self.plan(Demand(*np.exp(rounded * LOG_STEPS)), there)
        plan = self._solved[key]
        chosen = [members[:count] for members, count in zip(slots, plan.slots, strict=True)]
        return serve(self.task, view, chosen, self.kinds, plan.rate, plan.cap_share)

    def plan(self, demand: Demand, there: NDArray[np.int64]) -> Plan:
        """Solves the program for a demand.

        Args:
            demand: What to be ready for.
            there: Slots of each kind that may serve (K,).

        Returns:
            The plan. Power limits and prices hang on each other: the program is solved again until they agree.
        """
        tokens = demand.prompt_tokens, demand.output_tokens
        energy_j, time_s = (
            np.array([[getattr(model, name)(*tokens) for model in levels] for levels in self._models]).transpose(
                2, 0, 1
            )
            for name in ("energy_j", "runtime_s")
        )
        kinds = np.arange(len(self.kinds))
        price = np.zeros(len(kinds))
        level = self._cheapest(demand, energy_j, time_s, price)
        for _ in range(ROUNDS):
            cost = energy_j[:, kinds, level] + self._idle_w / self._load * time_s[:, kinds, level]
            weight = time_s[:, kinds, level]
            away = TURNED_AWAY * cost.max()
            cost = np.column_stack([np.where(self._can, cost, np.inf), np.full(len(cost), away)])
            weight = np.column_stack([weight, np.zeros(len(weight))])
            shares = Shares(np.zeros(len(kinds) + 1), np.append(self._load * there, np.inf))
            found = assign(cost, demand.requests_per_s, shares, weight, whole=False)
            price = found.price[:-1]
            again = self._cheapest(demand, energy_j, time_s, price)
            if (again == level).all():
                break
            level = again
        used_s = (found.served * weight)[:, :-1].sum(axis=0)
        count = np.minimum(np.ceil(used_s / self._load - 1e-6).astype(np.int64), there)
        rate = found.served[:, :-1].sum(axis=0) / np.maximum(count, 1)
        return Plan(count, rate, self._cap_shares[level], price)

    def _cheapest(self, demand: Demand, energy_j: F64, time_s: F64, price: F64) -> NDArray[np.int64]:
        """The power limit of each kind at which its own traffic costs least, time at its price, within the TPOT."""
        cost = energy_j + (self._idle_w / self._load + price)[:, None] * time_s
        tpot_s = self._in_flight * time_s / demand.output_tokens[:, None, None]
        late = tpot_s > TPOT_MARGIN * self._tpot_s[:, None, None]
        served = (self._can * demand.requests_per_s[:, None])[:, :, None]
        total = np.where((late & self._can[:, :, None]).any(axis=0), np.inf, (cost * served).sum(axis=0))
        highest = total.shape[1] - 1
        return np.asarray(np.where(np.isfinite(total).any(axis=1), total.argmin(axis=1), highest), np.int64)


def candidates(task: Task) -> dict[str, Agent]:
    """Every load with every patience, by names that say so."""
    return {
        f"load {load:g}, patience {patience} ticks": OfflineOptimal(task, load, patience)
        for load in LOADS
        for patience in PATIENCES
    }
