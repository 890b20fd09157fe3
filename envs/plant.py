"""The simulated cluster as a plant: actions in, telemetry out, and the outcome of each tick for the reward."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import cached_property
from math import nan

import numpy as np

from ..simulator.blueprint import Blueprint
from ..simulator.cluster import Cluster, EngineName
from ..simulator.facility import Facility
from ..simulator.kernels.state import EMPTY, LOADING, SLEEPING
from ..simulator.lifecycle import Target
from ..simulator.limits import PowerLimit
from ..simulator.metrics import SloLimits, Summary, met_slo, overdue, summarize
from ..simulator.protection import Protection
from ..simulator.reference.observer import Observer
from ..simulator.signals import PiecewiseLinear, constant
from ..simulator.snapshot import Snapshot, fingerprint, generator_from, generator_state
from ..simulator.tenants import Tenants
from ..simulator.units import J_PER_KWH, PS_PER_S, to_ps
from ..simulator.workload.table import RequestTable
from .actions import KEEP, NOWHERE, ClusterAction
from .scenario import Scenario
from .telemetry import F64, I64, LEAD_TIMES_S, NOBODY_ASKS, TENANT_ASKS, Fleet, Telemetry
from .world import World, draw_world
from .world_spec import USUAL_CARBON_G_PER_KWH, USUAL_PRICE_PER_KWH

FREE = (EMPTY, SLEEPING)
"""States of a slot that an instance or a tenant may take, those that lose nothing first."""


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
        pending_instances: Instances and tenants waiting for a slot.
        over_rows_j: Energy above the limit of each row that has one.
        energy_cost: Price of the energy, 0 without a price.
        carbon_g: Its CO₂, grams, 0 without a carbon intensity.
        trips: Breakers that opened.
        sheds: Servers that the site switched off.
        braked_s: Seconds of slots under a power brake.
    """

    energy_j: float
    good_tokens: int
    left: int
    misses: int
    overdue: int
    over_budget_j: float
    pending_instances: int
    over_rows_j: tuple[float, ...] = ()
    energy_cost: float = 0.0
    carbon_g: float = 0.0
    trips: int = 0
    sheds: int = 0
    braked_s: int = 0


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
        variants=tuple(("keep", *(v.name for v in own)) for own in blueprint.variants),
        quality=tuple((nan, *(v.quality for v in own)) for own in blueprint.variants),
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
        engine: ``compiled`` or ``reference``, see :class:`Cluster`.
        observer: Watches the reference engine.
        world: What the world does, for planning; drawn from the scenario by default.
    """

    def __init__(
        self,
        scenario: Scenario,
        blueprint: Blueprint,
        fleet: Fleet,
        requests: RequestTable,
        rng: np.random.Generator,
        engine: EngineName = "compiled",
        observer: Observer | None = None,
        world: World | None = None,
    ) -> None:
        self.scenario, self._fleet = scenario, fleet
        cluster_rng, budget_rng, instance_rng, world_rng, tenants_rng = rng.spawn(5)
        self._world_rngs = [generator_state(budget_rng), generator_state(world_rng)]
        self._given_world = world
        self.world = world = self._drawn_world(blueprint)
        facility = Facility(blueprint.spec, blueprint.slots, world.outside_c, world.airflow)
        guards = Protection(blueprint.spec, blueprint.slots, blueprint.cap_max_w, world.feeds, scenario.budget.shed)
        expected_s = scenario.horizon_s + 64
        self.cluster = Cluster(
            blueprint, requests, cluster_rng, expected_s, scenario.faults, facility, engine, observer, guards
        )
        self.limits = slo_limits(scenario)
        self.pending: deque[int] = deque()
        self._instance_rngs = instance_rng.spawn(len(scenario.instances))
        self.cluster.agenda.on("instance", self._ask)
        for number in range(len(scenario.instances)):
            self._await_instance(number)
        self.tenants: Tenants | None = None
        if scenario.tenants is not None:
            self.tenants = Tenants(scenario.tenants, self.cluster, tenants_rng, self.pending, TENANT_ASKS)
        self._models = np.array([d.model for d in blueprint.deployments])
        self._variants = np.zeros((len(fleet), len(blueprint.deployments)), np.int64)
        for r, own in enumerate(blueprint.variants):
            self._variants[r, [v.deployment for v in own]] = np.arange(1, len(own) + 1)
        self._left = 0
        self._sent = np.zeros(2, np.int64)
        self._attainment = 1.0

    @property
    def fleet(self) -> Fleet:
        """What can be controlled."""
        return self._fleet

    @property
    def budget(self) -> PowerLimit:
        """The site's power budget."""
        return self.world.budget

    def _drawn_world(self, blueprint: Blueprint) -> World:
        """The world that was given, or that of the generators' states, which are all that a saved run needs of it."""
        if self._given_world is not None:
            return self._given_world
        return draw_world(self.scenario, blueprint, *(generator_from(rng) for rng in self._world_rngs))

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
        if action.concurrency is not None:
            # What the engine itself does not exceed is no limit.
            bounded = action.concurrency < self._fleet.max_num_seqs
            cluster.limit(np.where(bounded, action.concurrency, 0))
        if action.variant is not None:
            for slot in np.flatnonzero(action.variant != KEEP):
                cluster.reconfigure(int(slot), int(action.variant[slot]) - 1)
        if action.lifecycle is not None:
            for slot in np.flatnonzero(
                (action.lifecycle != Target.KEEP) & (action.lifecycle != cluster.lifecycle.target)
            ):
                cluster.command(int(slot), int(action.lifecycle[slot]))
        if action.place != NOWHERE and self.pending and self._may_hold(action.place, self.pending[0]):
            self._place(action.place, self.pending.popleft())
        if "place" not in self.scenario.actions.groups:
            self._seat_tenants()

    def _may_hold(self, slot: int, asks: int) -> bool:
        """Whether a slot is free, and large enough for the model that asks."""
        if asks == TENANT_ASKS:
            self.cluster.settle()  # lest an instance be on its way in
        free = self.cluster.engine.slots["status"][slot] in FREE
        return free and (asks == TENANT_ASKS or bool(self._fleet.fits[slot, asks]))

    def _place(self, slot: int, asks: int) -> None:
        if asks != TENANT_ASKS:
            self.cluster.command(slot, Target.SERVE + asks)
        elif self.tenants is not None:
            self.tenants.move_in(slot)

    def _seat_tenants(self) -> None:
        """Where nobody places them, tenants take the first slot that is empty, or else the first that is asleep."""
        if TENANT_ASKS not in self.pending:
            return
        self.cluster.settle()
        status = self.cluster.engine.slots["status"]
        free = [slot for state in FREE for slot in np.flatnonzero(status == state).tolist()]
        for slot in free[: self.pending.count(TENANT_ASKS)]:
            self.pending.remove(TENANT_ASKS)
            self._place(slot, TENANT_ASKS)

    @property
    def next_tick_ps(self) -> int:
        """When the tick ends that begins now, picoseconds."""
        return self.cluster.now_ps + self.scenario.tick_s * PS_PER_S

    def advance(self) -> TickOutcome:
        """Runs one tick."""
        self.cluster.advance(self.next_tick_ps)
        return self.take_stock()

    def take_stock(self) -> TickOutcome:
        """What the tick brought that has just ended; to be asked once."""
        cluster, tick = self.cluster, self.scenario.tick_s
        done = cluster.done[self._left :]
        self._left += len(done)
        met = met_slo(cluster, done, self.limits)
        self._attainment = float(met.mean()) if len(done) else 1.0
        second = cluster.now_ps // PS_PER_S
        seconds = np.arange(second - tick, second)
        slot_w = cluster.history.column("energy_j", tick)
        power_w = slot_w.sum(axis=1)
        over_w = power_w - self.budget.at(seconds)
        over_rows_w = self.world.rows.over_w(slot_w, seconds)
        last = second >= self.scenario.horizon_s
        return TickOutcome(
            energy_j=float(power_w.sum()),
            good_tokens=int(cluster.engine.requests["output"][done[met]].sum()),
            left=len(done),
            misses=len(done) - int(np.count_nonzero(met)),
            overdue=overdue(cluster, self.limits) if last else 0,
            over_budget_j=float(over_w.clip(min=0).sum()),
            pending_instances=len(self.pending),
            over_rows_j=tuple(over_rows_w.sum(axis=0).tolist()),
            energy_cost=_billed(power_w, self.world.price_per_kwh, seconds),
            carbon_g=_billed(power_w, self.world.carbon_g_per_kwh, seconds),
            **cluster.protection.tally(int(second - tick), int(second))._asdict(),
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
        ahead_s = now_s + np.array(LEAD_TIMES_S)
        world = self.world
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
            budget_w=self.budget.foreseen(now_s, LEAD_TIMES_S),
            pending_instances=len(self.pending),
            pending_model=self.pending[0] if self.pending else NOBODY_ASKS,
            inlet_c=slots["inlet_c"].copy(),
            row_headroom_w=world.rows.headroom_w(last("metered_w"), now_s, LEAD_TIMES_S) if world.rows.rows else None,
            outside_c=_at(world.outside_c, ahead_s),
            price_per_kwh=_at(world.price_per_kwh, ahead_s),
            carbon_g_per_kwh=_at(world.carbon_g_per_kwh, ahead_s),
            in_flight_limit=np.minimum(slots["limit"], self._fleet.max_num_seqs).astype(np.float64),
            variant=self._variants[np.arange(len(self._fleet)), slots["deployment"]],
            rack_breaker=cluster.protection.heat("rack"),
            row_breaker=cluster.protection.heat("row"),
            braked=cluster.protection.is_braked(int(now_s)),
        )

    def foresee(self, seconds: int) -> F64:
        """What the meters will say if nothing is done any more, watts (seconds, R): the run goes on and is taken back.

        Raises:
            InputError: The run cannot be saved, see :meth:`Cluster.save_state`.
        """
        state = self.save_state()
        try:
            self.cluster.advance(self.cluster.now_ps + seconds * PS_PER_S)
            ahead_w: F64 = self.cluster.history.column("metered_w", seconds).copy()
        finally:
            self.restore_state(state)
        return ahead_w

    def summary(self, warmup_s: int = 0, until_s: int | None = None) -> Summary:
        """Results so far, see :func:`summarize`; at average price and carbon intensity where the scenario has none."""
        seconds, world = np.arange(len(self.cluster.history)), self.world
        return summarize(
            self.cluster,
            self.limits,
            self.budget.at(seconds),
            warmup_s,
            until_s,
            over_rows_w=world.rows.over_w(self.cluster.history.column("energy_j"), seconds),
            price_per_kwh=(world.price_per_kwh or constant(USUAL_PRICE_PER_KWH)).at(seconds),
            carbon_g_per_kwh=(world.carbon_g_per_kwh or constant(USUAL_CARBON_G_PER_KWH)).at(seconds),
        )

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
                "world_rngs": self._world_rngs,
                "tenants": self.tenants and self.tenants.save_state(),
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
        self._world_rngs = state["world_rngs"]
        self.world = self._drawn_world(self.cluster.blueprint)
        self.cluster.facility.outside_c, self.cluster.facility.airflow = self.world.outside_c, self.world.airflow
        self.cluster.protection.feeds = self.world.feeds
        if self.tenants is not None:
            self.tenants.restore_state(state["tenants"])
        self.pending.clear()
        self.pending.extend(state["pending"])
        self._instance_rngs = [generator_from(rng) for rng in state["instance_rngs"]]
        self._left, self._sent, self._attainment = state["left"], state["sent"], state["attainment"]


def _at(signal: PiecewiseLinear | None, time_s: F64 | I64) -> F64 | None:
    return None if signal is None else signal.at(time_s)


def _billed(power_w: F64, per_kwh: PiecewiseLinear | None, seconds: I64) -> float:
    """Energy of the seconds times what a kilowatt-hour of it costs; 0 where it costs nothing."""
    return 0.0 if per_kwh is None else float(power_w @ per_kwh.at(seconds)) / J_PER_KWH
