"""The simulated cluster: SimPy for what is rare, the compiled engine for what is dense."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from functools import cached_property
from typing import Literal

import numpy as np
import simpy
from numpy.typing import ArrayLike, NDArray

from .agenda import Agenda
from .blueprint import Blueprint
from .coupling import note_coupling
from .drivers import CompiledDriver, ReferenceDriver, make_driver
from .errors import InputError
from .facility import Facility
from .faults import Faults, FaultSpec
from .history import History
from .kernels.state import (
    ARRAYS,
    C_ARRIVAL,
    C_DONE,
    C_EVENTS,
    C_GATEWAY_COUNT,
    C_ROUTER,
    C_SEED,
    C_SENT,
    C_SENT_TOKENS,
    C_UNIT_TOKENS,
    CLOCK,
    EXTERNAL,
    ROUTER_NAMES,
    UNLIMITED,
    Engine,
    Tables,
)
from .lifecycle import Lifecycle
from .protection import BRAKE_CLOCK, Protection
from .reference.engine import ReferenceEngine
from .reference.observer import Observer
from .routing import Router
from .rows import rows_of
from .settings import Settings
from .snapshot import Snapshot, copied, fingerprint, overwrite
from .start import start
from .units import PS_PER_S, to_ps
from .window import remaining
from .workload.combine import concatenate
from .workload.table import RequestTable

EngineName = Literal["compiled", "reference"]

MAX_SLOT_W = 92_000.0
"""A second of a slot holds the energy of so many watts."""

INLETS_PS = 60 * PS_PER_S
"""Inlet temperatures follow the mean load of each minute, whatever the tick; the ring of bins holds as much."""

CONSTANT = {*Tables._fields, "hashes"}
"""Arrays of the engine that never change: they belong to the blueprint and the workload."""


class Cluster:
    """A running cluster.

    Args:
        blueprint: The cluster.
        requests: The workload; model names in it must be among the blueprint's.
        rng: Source of all randomness of this run; each subsystem gets a generator spawned from it.
        expected_s: Expected length of the run, seconds.
        faults: What breaks, and when.
        facility: What sets the inlet temperatures; by default nothing but place and the servers' own heat does.
        engine: ``compiled``, or ``reference``: SimPy, one event per iteration, to the same result.
        observer: Is told of everything as it happens; needs the reference engine.
        protection: What happens above power limits; by default what the specification says.

    Raises:
        InputError: The workload names a model that the cluster does not have, or a fault a place.
    """

    def __init__(
        self,
        blueprint: Blueprint,
        requests: RequestTable,
        rng: np.random.Generator,
        expected_s: int = 1024,
        faults: Sequence[FaultSpec] = (),
        facility: Facility | None = None,
        engine: EngineName = "compiled",
        observer: Observer | None = None,
        protection: Protection | None = None,
    ) -> None:
        self.blueprint = blueprint
        self.requests = requests
        self.agenda = Agenda(simpy.Environment(initial_time=0))
        by_priority = blueprint.spec.engine.scheduling_policy == "priority"
        self._priorities = np.unique(requests.priority) if by_priority else None
        self._current = make_driver(engine, start(blueprint, requests, self._priorities), observer)
        self._router: Router | None = None
        self._closed_loop = bool((requests.think_ps >= 0).any())
        note_coupling(self.engine, closed_loop=self._closed_loop)
        self.history = History(len(blueprint.slots), expected_s)
        life_rng, route_rng, fault_rng = rng.spawn(3)
        self.engine.cursor[C_SEED] = route_rng.integers(2**62)
        most_w = np.array([d.power.cap_max_w for d in blueprint.deployments])
        self._settings = Settings(
            self.agenda,
            self.engine.slots,
            blueprint.cap_ps,
            blueprint.lock_ps,
            self._steps(np.full(len(blueprint.slots), BRAKE_CLOCK)),
            most_w,
        )
        self.lifecycle = Lifecycle(
            self.agenda,
            self.engine.slots,
            blueprint.deployments,
            blueprint.index,
            life_rng,
            self._current.clear_cache,
            self._settings.refresh,
            self._current.evict,
        )
        self.facility = facility or Facility(blueprint.spec, blueprint.slots)
        self.protection = protection or Protection(blueprint.spec, blueprint.slots, blueprint.cap_max_w)
        self.faults = Faults(faults, blueprint.slots, self.agenda, self.lifecycle, fault_rng)
        self._now_ps, self._changed = 0, True
        self._update_inlets(np.zeros(len(blueprint.slots)))

    @property
    def engine(self) -> Engine:
        """The arrays of the engine."""
        return self._current.engine

    @property
    def world(self) -> simpy.Environment:
        """The SimPy environment; restoring a state replaces it."""
        return self.agenda.world

    @property
    def now_ps(self) -> int:
        """Time that the cluster has reached, picoseconds."""
        return self._now_ps

    @property
    def done(self) -> NDArray[np.int64]:
        """Rows of the requests that have left for good, in the order in which the engine came upon it."""
        return self.engine.done[: self.engine.cursor[C_DONE]]

    @property
    def sent(self) -> int:
        """Number of requests that clients have sent, closed loops included."""
        return int(self.engine.cursor[C_SENT])

    @property
    def sent_prompt_tokens(self) -> int:
        """Prompt tokens of the requests that clients have sent."""
        return int(self.engine.cursor[C_SENT_TOKENS])

    @property
    def arrived(self) -> int:
        """Number of rows of the workload that have arrived (open loop)."""
        return int(self.engine.cursor[C_ARRIVAL])

    @property
    def held_at_gateway(self) -> int:
        """Requests that no slot serves at present."""
        return int(self.engine.cursor[C_GATEWAY_COUNT])

    @property
    def events(self) -> int:
        """Landings and leaps of the compiled engine so far."""
        return int(self.engine.cursor[C_EVENTS])

    @property
    def finished(self) -> bool:
        """Whether every request has left."""
        return len(self.done) == len(self.requests)

    def route(self, weight: ArrayLike, router: str | Router | None = None) -> None:
        """Sets the routing weight of each slot (R,), not negative, and the router.

        Args:
            weight: The weights.
            router: One of ``ROUTER_NAMES``, or an object that is asked for every request; by default as it is.

        Raises:
            InputError: A weight is negative or no number, or the router is unknown.
        """
        weights = self._per_slot("weight", weight)
        if (weights < 0).any():
            raise InputError("weight", f"{weights.tolist()} has a negative one", "Give weights of at least 0")
        if isinstance(router, str) and router not in ROUTER_NAMES[:EXTERNAL]:
            known = ", ".join(ROUTER_NAMES[:EXTERNAL])
            raise InputError("router", f"'{router}' is unknown", f"Use one of {known}, or an object")
        self.engine.slots["route_weight"] = weights
        self._changed = True
        if router is not None:
            self._router = None if isinstance(router, str) else router
            self.engine.cursor[C_ROUTER] = ROUTER_NAMES.index(router) if isinstance(router, str) else EXTERNAL
            note_coupling(self.engine, closed_loop=self._closed_loop)

    def limit(self, in_flight: ArrayLike) -> None:
        """Sets how many requests each slot has in flight at most (R,); 0 or less lifts the limit."""
        limits = self._per_slot("in_flight", in_flight)
        if (limits % 1 != 0).any():
            raise InputError("in_flight", f"{limits.tolist()} are not all whole", "Give whole numbers")
        self.engine.slots["limit"] = np.where(limits > 0, limits, UNLIMITED)
        self._changed = True
        note_coupling(self.engine, closed_loop=self._closed_loop)

    def cap(self, cap_w: ArrayLike) -> None:
        """Sets the power limit of each slot, watts (R,), clipped to what the driver accepts.

        It holds after the GPU's transition time.
        """
        limits = self._per_slot("cap_w", cap_w)
        self._settings.cap(self._now_ps, np.clip(limits, self.blueprint.cap_min_w, self.blueprint.cap_max_w))

    def lock_clock(self, ratio: ArrayLike) -> None:
        """Sets the highest clock of each slot relative to the GPU's own, (R,) in [0, 1].

        It holds after the GPU's transition time.
        """
        ratios = self._per_slot("ratio", ratio)
        if not ((ratios >= 0) & (ratios <= 1)).all():
            raise InputError("ratio", f"{ratios.tolist()} are not all shares", "Give shares from 0 to 1")
        self._settings.lock(self._now_ps, self._steps(ratios))

    def _steps(self, ratios: NDArray[np.float64]) -> NDArray[np.int64]:
        """The highest step of each slot's clock ladder that does not exceed a ratio, or else the lowest."""
        clocks = self.engine.ladder[self.engine.slots["deployment"], CLOCK]
        steps = [
            np.searchsorted(own, limit + 1e-9, side="right") - 1 for own, limit in zip(clocks, ratios, strict=True)
        ]
        return np.maximum(np.array(steps, np.int64), 0)

    def _per_slot(self, name: str, values: ArrayLike) -> NDArray[np.float64]:
        """Numbers for every slot, or one for all; raises `InputError` unless they are."""
        numbers = np.asarray(values, np.float64)
        size = len(self.engine.slots)
        if numbers.shape not in ((), (size,)) or not np.isfinite(numbers).all():
            raise InputError(name, f"is {numbers.tolist()}", f"Give {size} finite numbers, or one for all slots")
        return np.broadcast_to(numbers, size)

    def _check_slots(self, *slots: int) -> None:
        size = len(self.engine.slots)
        strange = [slot for slot in slots if not 0 <= slot < size]
        if strange:
            raise InputError("slot", f"there is no slot {strange[0]}", f"Give 0 to {size - 1}")

    def command(self, slot: int, target: int) -> None:
        """Gives a slot a life-cycle target, see :class:`Target`."""
        self._check_slots(slot)
        self._enter_simpy(self._now_ps)
        self.lifecycle.command(slot, target)

    def reconfigure(self, slot: int, variant: int) -> None:
        """Lets a slot serve with another of its variants, see :meth:`Lifecycle.reconfigure`.

        Args:
            slot: The slot.
            variant: Number of the variant among ``blueprint.variants`` of the slot.

        Raises:
            InputError: There is no such slot or variant.
        """
        self._check_slots(slot)
        own = self.blueprint.variants[slot]
        if not 0 <= variant < len(own):
            raise InputError(f"slot {slot}", f"has no variant {variant}", f"Give 0 to {len(own) - 1}")
        if self.lifecycle.chosen[slot, own[variant].model] != own[variant].deployment:
            self._enter_simpy(self._now_ps)
            self.lifecycle.reconfigure(slot, own[variant].deployment)

    def fail(self, *slots: int, repair_s: float) -> None:
        """Lets slots fail now, see :meth:`Lifecycle.fail`."""
        self._check_slots(*slots)
        self._enter_simpy(self._now_ps)
        self.lifecycle.fail(*slots, repair_ps=to_ps(repair_s))

    def occupy(self, slot: int, load_w: float) -> None:
        """Gives a slot to a foreign machine, see :meth:`Lifecycle.occupy`; ``lifecycle.set_load`` changes its draw."""
        self._check_slots(slot)
        if load_w >= MAX_SLOT_W:
            raise InputError("load_w", f"is {load_w} W", "Give the watts of one slot, below 92 kW")
        self._enter_simpy(self._now_ps)
        self.lifecycle.occupy(slot, load_w)

    def vacate(self, slot: int) -> None:
        """Lets the foreign machine leave a slot, see :meth:`Lifecycle.vacate`."""
        self._check_slots(slot)
        self._enter_simpy(self._now_ps)
        self.lifecycle.vacate(slot)

    def settle(self) -> None:
        """Lets happen what is due now: commands take effect at the next chance, not at once."""
        self._enter_simpy(self._now_ps)

    def advance(self, until_ps: int) -> None:
        """Runs to ``until_ps``; SimPy is entered only where one of its events is due."""
        while self._now_ps < until_ps:
            stop = self.next_stop(until_ps)
            if stop > self._now_ps:
                self._current.run(self, self._router, stop, self.take_changes())
            self.take_stock(stop)

    def next_stop(self, until_ps: int) -> int:
        """Time to which the engine alone can go on the way to ``until_ps``."""
        due, look_ps = self.world.peek(), PS_PER_S if self.protection.is_needed else INLETS_PS
        return int(min(until_ps, max(due, self._now_ps), (self._now_ps // look_ps + 1) * look_ps))

    def take_changes(self) -> bool:
        """Whether control has changed anything since the engine was last run; asked once, before it is."""
        changed, self._changed = self._changed, False
        return changed

    def take_stock(self, now_ps: int) -> None:
        """Records what the engine has done up to ``now_ps`` and lets SimPy do what is due."""
        if now_ps > self._now_ps:
            self._now_ps = now_ps
            self.history.take(self.engine.bins, now_ps // PS_PER_S, self.engine.slots["status"])
            if now_ps % INLETS_PS == 0:
                self._update_inlets(self.history.column("energy_j", INLETS_PS // PS_PER_S).mean(axis=0))
            if now_ps % PS_PER_S == 0 and self.protection.is_needed:
                self._protect(now_ps // PS_PER_S)
        if self.world.peek() <= now_ps:
            self._enter_simpy(now_ps)

    def _protect(self, second: int) -> None:
        """Lets the limits on power have their consequences for the second that has just passed."""
        for strike in self.protection.look(second - 1, self.history.column("energy_j", 1)[0]):
            self._enter_simpy(self._now_ps)
            self.lifecycle.fail(*strike.slots, repair_ps=strike.repair_ps)
        self._settings.brake(self.protection.is_braked(second))

    @property
    def is_compiled(self) -> bool:
        """Whether compiled code alone runs the engine, so that it can be run together with others."""
        return self._router is None and isinstance(self._current, CompiledDriver)

    def follow_with(self, requests: RequestTable) -> NDArray[np.int64]:
        """Appends requests that arrive from now on, and forgets those that have left: for workloads without end.

        Rows, `requests` and `done` are counted anew; states saved before are of another workload.

        Args:
            requests: The next ones, open loop, with the same models and SLO classes.

        Returns:
            Rows that remain, which are now the first.

        Raises:
            InputError: They arrive too early, wait for others, or name what the cluster does not have.
        """
        early = len(requests) > 0 and requests.arrival_ps[0] < max(self._now_ps, *self.requests.arrival_ps[-1:])
        if early or self._closed_loop or (requests.think_ps >= 0).any():
            raise InputError("workload", "goes back in time or is a closed loop", "Give open-loop requests in order")
        prefixes = self.engine.cursor[C_UNIT_TOKENS] > 0
        if len(requests.prefix_hash) and self.blueprint.spec.engine.enable_prefix_caching and not prefixes:
            problem = "prefix hashes appear after a first chunk that has none"
            raise InputError("workload", problem, "Play it whole, or set enable_prefix_caching = false")
        rows = rows_of(requests, self.blueprint.models, self._priorities, prefixes=prefixes)
        stay = remaining(self.engine)
        self._current.roll(rows, requests.prefix_hash if prefixes else np.zeros(0, np.int64))
        self.requests = concatenate([self.requests.take(stay), requests])
        self.__dict__.pop("fingerprint", None)  # it was that of another workload
        return stay

    @property
    def reference(self) -> ReferenceEngine:
        """The reference engine, to which requests can be submitted as they come.

        Raises:
            InputError: The cluster runs on another one.
        """
        if not isinstance(self._current, ReferenceDriver):
            raise InputError("engine", "the compiled one takes no live requests", 'Use engine="reference"')
        return self._current.reference

    def drain(self, patience_s: float = 3600.0) -> bool:
        """Runs on until every request has left, for ``patience_s`` at most; returns whether that is so."""
        stop = self._now_ps + round(patience_s) * PS_PER_S
        while not self.finished and self._now_ps < stop:
            # To the next whole second, so that the history holds all of it.
            self.advance((self._now_ps // PS_PER_S + 1) * PS_PER_S)
        return self.finished

    @cached_property
    def fingerprint(self) -> str:
        """Digest of all that a saved state leaves out: cluster, workload, faults, and how the engine is laid out."""
        plan, requests = self.blueprint, self.requests
        return fingerprint(
            plan.spec.model_dump_json(),
            *plan.tables,
            [(d.model, d.load_s, d.wake_s) for d in plan.deployments],
            *(getattr(requests, field.name) for field in fields(requests)),
            self.faults.specs,
            [(name, dtype.descr, getattr(self.engine, name).shape) for name, (dtype, _) in ARRAYS.items()],
        )

    def save_state(self) -> Snapshot:
        """The state of the run, to be restored into this cluster or into another one that was made alike.

        What a router object of the user remembers is not in it.

        Raises:
            InputError: There are SimPy processes in ``world``, or the engine is the reference: these cannot be saved.
        """
        if not isinstance(self._current, CompiledDriver):
            raise InputError("engine", "the reference engine cannot be saved", "Use the compiled one")
        arrays = {name: copied(getattr(self.engine, name)) for name in ARRAYS if name not in CONSTANT}
        return Snapshot(
            self.fingerprint,
            {
                "now_ps": self._now_ps,
                "changed": self._changed,
                "agenda": self.agenda.save_state(),
                "engine": arrays,
                "history": self.history.save_state(),
                "lifecycle": self.lifecycle.save_state(),
                "faults": self.faults.save_state(),
                "settings": self._settings.save_state(),
                "facility": self.facility.save_state(),
                "protection": self.protection.save_state(),
            },
        )

    def restore_state(self, snapshot: Snapshot) -> None:
        """Goes back, or on, to a saved state; what follows is the same, to the byte, as what followed then.

        Raises:
            InputError: It was taken of another cluster, workload or version, or under a router object that this cluster
                does not have, or there are SimPy processes in ``world``.
        """
        state = snapshot.state_for(self.fingerprint)
        external = state["engine"]["cursor"][C_ROUTER] == EXTERNAL
        if external and self._router is None:
            raise InputError("snapshot", "was taken under a router object", "Hand it to cluster.route() before")
        self.agenda.restore_state(state["agenda"])
        self._now_ps, self._changed = state["now_ps"], state["changed"]
        self._router = self._router if external else None
        for name, array in state["engine"].items():
            overwrite(getattr(self.engine, name), array)
        self.history.restore_state(state["history"])
        self.lifecycle.restore_state(state["lifecycle"])
        self.faults.restore_state(state["faults"])
        self._settings.restore_state(state["settings"])
        self.facility.restore_state(state["facility"])
        self.protection.restore_state(state["protection"])

    def _enter_simpy(self, now_ps: int) -> None:
        self._changed = True
        if now_ps > self.world.now:
            self.world.run(until=now_ps)
        while self.world.peek() <= now_ps:
            self.world.step()

    def _update_inlets(self, power_w: NDArray[np.float64]) -> None:
        self.engine.slots["inlet_c"] = self.facility.inlet_c(self._now_ps, power_w)
