"""The simulated cluster as a plant: actions in, telemetry out, and the outcome of each tick for the reward."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..simulator.blueprint import Blueprint
from ..simulator.cluster import Cluster
from ..simulator.kernels.state import LOADING
from ..simulator.lifecycle import Target
from ..simulator.metrics import SloLimits, Summary, met_slo, overdue, summarize
from ..simulator.signals import PiecewiseLinear, random_holds
from ..simulator.snapshot import Snapshot, fingerprint, generator_from, generator_state
from ..simulator.units import PS_PER_S, to_ps
from ..simulator.workload.table import RequestTable
from .actions import NOWHERE, ClusterAction
from .scenario import Scenario
from .telemetry import F64, LEAD_TIMES_S, Fleet, Telemetry


@dataclass(frozen=True)
class TickOutcome:
    """What a tick brought, as truth rather than telemetry; rewards are made of it.

    Attributes:
        energy_j: GPU energy.
        good_tokens: Output tokens of requests that left and met their SLO.
        left: Requests that left.
        misses: Requests that left and missed it.
        overdue: Requests still there that can no longer meet it (counted once, at the end of the episode).
        over_budget_j: Energy above the budget.
        pending_instances: Instances waiting for a slot.
    """

    energy_j: float
    good_tokens: int
    left: int
    misses: int
    overdue: int
    over_budget_j: float
    pending_instances: int


def fleet_of(blueprint: Blueprint) -> Fleet:
    """The controllable side of a blueprint."""
    return Fleet(
        slots=tuple(s.name for s in blueprint.slots),
        gpus=tuple(s.spec.gpu for s in blueprint.slots),
        models=blueprint.models,
        fits=blueprint.index >= 0,
        cap_min_w=blueprint.cap_min_w,
        cap_max_w=blueprint.cap_max_w,
        max_num_seqs=blueprint.spec.engine.max_num_seqs,
    )


def slo_limits(scenario: Scenario) -> SloLimits:
    """The scenario's SLO classes in the order of their numbers."""
    specs = scenario.slo.values()
    return SloLimits(
        ttft_ps=np.array([to_ps(s.ttft_s) for s in specs], np.int64),
        tpot_ps=np.array([to_ps(s.tpot_s) for s in specs], np.int64),
    )


class SimulatedPlant:
    """One run of a scenario.

    Args:
        scenario: The scenario.
        blueprint: Its cluster.
        fleet: Its controllable side.
        requests: The workload of this run.
        rng: Source of all randomness of this run.
    """

    def __init__(
        self, scenario: Scenario, blueprint: Blueprint, fleet: Fleet, requests: RequestTable, rng: np.random.Generator
    ) -> None:
        self.scenario, self._fleet = scenario, fleet
        cluster_rng, budget_rng, instance_rng = rng.spawn(3)
        self.cluster = Cluster(blueprint, requests, cluster_rng, scenario.horizon_s + 64)
        self.budget = random_holds(
            budget_rng,
            scenario.horizon_s + LEAD_TIMES_S[-1],
            tuple(level * float(fleet.cap_max_w.sum()) for level in scenario.budget.levels),
            scenario.budget.mean_hold_s,
            scenario.budget.ramp_s,
        )
        self.limits = slo_limits(scenario)
        self.pending: deque[int] = deque()
        self._instance_rngs = instance_rng.spawn(len(scenario.instances))
        self.cluster.agenda.on("instance", self._ask)
        for number in range(len(scenario.instances)):
            self._await_instance(number)
        self._models = np.array([d.model for d in blueprint.deployments])
        self._left = 0
        self._sent = np.zeros(2, np.int64)
        self._attainment = 1.0

    @property
    def fleet(self) -> Fleet:
        """What can be controlled."""
        return self._fleet

    def _await_instance(self, number: int) -> None:
        """Lets the next instance of a kind ask for a slot in its time."""
        agenda = self.cluster.agenda
        wait_s = self._instance_rngs[number].exponential(self.scenario.instances[number].mean_interval_s)
        agenda.at(agenda.now_ps + to_ps(wait_s), "instance", number)

    def _ask(self, values: tuple[int, ...]) -> None:
        (number,) = values
        self.pending.append(self._fleet.models.index(self.scenario.instances[number].model))
        self._await_instance(number)

    def apply(self, action: ClusterAction) -> None:
        """Carries an action out; what it leaves at ``None`` stays."""
        cluster = self.cluster
        if action.route_weight is not None or action.router is not None:
            weight = action.route_weight
            cluster.route(cluster.engine.slots["route_weight"].copy() if weight is None else weight, action.router)
        if action.cap_w is not None:
            cluster.cap(action.cap_w)
        if action.clock_ratio is not None:
            cluster.lock_clock(action.clock_ratio)
        if action.lifecycle is not None:
            for slot in np.flatnonzero(
                (action.lifecycle != Target.KEEP) & (action.lifecycle != cluster.lifecycle.target)
            ):
                cluster.command(int(slot), int(action.lifecycle[slot]))
        if action.place != NOWHERE and self.pending and self._is_free(action.place):
            cluster.command(action.place, Target.SERVE + self.pending.popleft())

    def _is_free(self, slot: int) -> bool:
        status = self.cluster.engine.slots["status"][slot]
        return status in (0, 4) and bool(self._fleet.fits[slot, self.pending[0]])

    def advance(self) -> TickOutcome:
        """Runs one tick."""
        cluster, tick = self.cluster, self.scenario.tick_s
        cluster.advance(cluster.now_ps + tick * PS_PER_S)
        done = cluster.done[self._left :]
        self._left += len(done)
        met = met_slo(cluster, done, self.limits)
        self._attainment = float(met.mean()) if len(done) else 1.0
        second = cluster.now_ps // PS_PER_S
        power_w = cluster.history.column("energy_j", tick).sum(axis=1)
        over_w = power_w - self.budget.at(np.arange(second - tick, second))
        last = second >= self.scenario.horizon_s
        return TickOutcome(
            energy_j=float(power_w.sum()),
            good_tokens=int(cluster.engine.requests["output"][done[met]].sum()),
            left=len(done),
            misses=len(done) - int(np.count_nonzero(met)),
            overdue=overdue(cluster, self.limits) if last else 0,
            over_budget_j=float(over_w.clip(min=0).sum()),
            pending_instances=len(self.pending),
        )

    def read(self) -> Telemetry:
        """Readings of the tick that has just ended."""
        cluster, tick, slots = self.cluster, self.scenario.tick_s, self.cluster.engine.slots
        history = cluster.history

        def last(name: str) -> F64:
            column = history.column(name, 1)
            return column[0] if len(column) else np.zeros(len(self._fleet))

        def rate(name: str) -> F64:
            column: F64 = history.column(name, tick).sum(axis=0) / tick
            return column

        sent = np.array([cluster.sent, cluster.sent_prompt_tokens])
        arrivals_per_s, arriving_tokens_per_s = ((sent - self._sent) / tick).tolist()
        self._sent = sent
        now_s = cluster.now_ps / PS_PER_S
        ready_in_s = np.where(slots["status"] == LOADING, (cluster.lifecycle.ready_ps - cluster.now_ps) / PS_PER_S, 0.0)
        power_w = history.column("metered_w", tick)
        return Telemetry(
            power_w=power_w if len(power_w) else np.zeros((1, len(self._fleet))),
            temperature_c=last("temperature_c") if len(power_w) else slots["inlet_c"].copy(),
            clock_ratio=last("clock_ratio"),
            cap_w=slots["cap_w"].copy(),
            status=slots["status"].copy(),
            ready_in_s=ready_in_s,
            model=self._models[slots["deployment"]],
            running=last("running"),
            waiting=last("waiting"),
            kv_used=last("kv_used"),
            prompt_tokens_per_s=rate("prompt_tokens"),
            output_tokens_per_s=rate("output_tokens"),
            route_weight=slots["route_weight"].copy(),
            arrivals_per_s=arrivals_per_s,
            arriving_tokens_per_s=arriving_tokens_per_s,
            held_at_gateway=cluster.held_at_gateway,
            slo_attainment=self._attainment,
            budget_w=self.budget.at(now_s + np.array(LEAD_TIMES_S)),
            pending_instances=len(self.pending),
            pending_model=self.pending[0] if self.pending else -1,
        )

    def summary(self, warmup_s: int = 0, until_s: int | None = None) -> Summary:
        """Results so far, see :func:`summarize`."""
        seconds = np.arange(len(self.cluster.history))
        return summarize(self.cluster, self.limits, self.budget.at(seconds), warmup_s, until_s)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the scenario; the cluster has one of its own, with the workload."""
        return fingerprint(self.scenario.model_dump_json())

    def save_state(self) -> Snapshot:
        """The state of the run, to be restored into this plant or into another one that was made alike.

        Raises:
            InputError: There are SimPy processes in the cluster's world, which cannot be saved.
        """
        return Snapshot(
            self.fingerprint,
            {
                "cluster": self.cluster.save_state(),
                "budget": {"times_s": self.budget.times_s, "values": self.budget.values},
                "pending": list(self.pending),
                "instance_rngs": [generator_state(rng) for rng in self._instance_rngs],
                "left": self._left,
                "sent": self._sent,
                "attainment": self._attainment,
            },
        )

    def restore_state(self, snapshot: Snapshot) -> None:
        """Goes back, or on, to a saved state; what follows is the same, to the byte, as what followed then.

        Raises:
            InputError: It was taken of another scenario or workload.
        """
        state = snapshot.state_for(self.fingerprint)
        self.cluster.restore_state(state["cluster"])
        self.budget = PiecewiseLinear(**state["budget"])
        self.pending = deque(state["pending"])
        self._instance_rngs = [generator_from(rng) for rng in state["instance_rngs"]]
        self._left, self._sent, self._attainment = state["left"], state["sent"], state["attainment"]
