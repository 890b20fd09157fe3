"""The simulated cluster: SimPy for what is rare, the compiled engine for what is dense."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import simpy
from numpy.typing import ArrayLike, NDArray

from .catalog import Catalog
from .deployments import Deployment, deploy, stack
from .errors import InputError
from .facility import Facility
from .history import History
from .kernels import cluster as kernels
from .kernels.state import (
    C_ARRIVAL,
    C_CLOSED_LOOP,
    C_DONE,
    C_GATEWAY_COUNT,
    C_SENT,
    C_SENT_TOKENS,
    CLOCK,
    EMPTY,
    F64,
    I64,
    LEAST_OUTSTANDING,
    REQUEST,
    ROUTER_NAMES,
    SERVING,
    SLEEPING,
    Engine,
    Records,
    allocate,
)
from .lifecycle import Lifecycle
from .topology import ClusterSpec, Slot, lay_out
from .units import PS_PER_S
from .workload.table import ANY_MODEL, RequestTable

CHUNK_PS = 64 * PS_PER_S
"""Longest stretch in one call of the engine: the ring of bins must hold it and the longest iteration."""


@dataclass(frozen=True, eq=False)
class Blueprint:
    """What does not change between runs of one cluster; build it once and share it.

    Attributes:
        spec: The specification.
        slots: All slots, R of them.
        models: Names of the models.
        deployments: Every model on every kind of slot that can hold it.
        index: int64 (R, models): deployment of each model on each slot, -1 if it does not fit.
        stacked: The same as the engine's arrays: records, cost, ladder, thermal.
        initial: int64 (R,): deployment at the start.
    """

    spec: ClusterSpec
    slots: tuple[Slot, ...]
    models: tuple[str, ...]
    deployments: tuple[Deployment, ...]
    index: NDArray[np.int64]
    stacked: tuple[Records, I64, F64, F64]
    initial: NDArray[np.int64]

    @classmethod
    def of(cls, spec: ClusterSpec, catalog: Catalog | None = None) -> Blueprint:
        """Lays the cluster out.

        Raises:
            InputError: A name is unknown, or a model does not fit its slot.
        """
        slots, models = lay_out(spec), spec.served_models()
        if not models:
            raise InputError("cluster.models", "no model is named", "Name one here or as the model of a server")
        deployments, index = deploy(slots, models, spec.engine, catalog or Catalog.builtin())
        initial = [
            index[r, models.index(s.spec.model)] if s.spec.model else index[r].max() for r, s in enumerate(slots)
        ]
        stacked = stack(deployments, spec.engine)
        return cls(spec, slots, models, tuple(deployments), index, stacked, np.array(initial, np.int64))

    @property
    def cap_max_w(self) -> NDArray[np.float64]:
        """Highest power limit of each slot, watts (R,)."""
        return np.array([self.deployments[d].power.cap_max_w for d in self.initial])

    @property
    def cap_min_w(self) -> NDArray[np.float64]:
        """Lowest power limit of each slot, watts (R,)."""
        return np.array([self.deployments[d].power.cap_min_w for d in self.initial])


class Cluster:
    """A running cluster.

    Args:
        blueprint: The cluster.
        requests: The workload; model names in it must be among the blueprint's.
        rng: Source of all randomness of this run; each subsystem gets a generator spawned from it.
        expected_s: Expected length of the run, seconds.
        facility: What sets the inlet temperatures; by default nothing but place and the servers' own heat does.

    Raises:
        InputError: The workload names a model that the cluster does not have.
    """

    def __init__(
        self,
        blueprint: Blueprint,
        requests: RequestTable,
        rng: np.random.Generator,
        expected_s: int = 1024,
        facility: Facility | None = None,
    ) -> None:
        self.blueprint = blueprint
        self.requests = requests
        self.world = simpy.Environment(initial_time=0)
        self.engine = _start(blueprint, requests)
        self.history = History(len(blueprint.slots), expected_s)
        (life_rng,) = rng.spawn(1)
        self.lifecycle = Lifecycle(
            self.world,
            self.engine.slots,
            blueprint.deployments,
            blueprint.index,
            life_rng,
            self.engine.deployments["kv_blocks"],
        )
        self.facility = facility or Facility(blueprint.spec, blueprint.slots)
        self._now_ps = 0
        self._update_inlets(np.zeros(len(blueprint.slots)))

    @property
    def now_ps(self) -> int:
        """Time that the cluster has reached, picoseconds."""
        return self._now_ps

    @property
    def done(self) -> NDArray[np.int64]:
        """Rows of the requests that have left (finished, rejected or timed out), in the order of leaving."""
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
    def finished(self) -> bool:
        """Whether every request has left."""
        return len(self.done) == len(self.requests)

    def route(self, weight: ArrayLike, router: str | None = None) -> None:
        """Sets the routing weight of each slot (R,), not negative, and the router.

        Raises:
            InputError: A weight is negative or no number, or the router is unknown.
        """
        weights = np.asarray(weight, np.float64)
        if not (weights >= 0).all():
            raise InputError(
                "weight", f"{weights.tolist()} has a negative weight or none", "Give weights of at least 0"
            )
        self.engine.slots["route_weight"] = weights
        if router is not None:
            if router not in ROUTER_NAMES:
                raise InputError("router", f"'{router}' is unknown", f"Use one of {', '.join(ROUTER_NAMES)}")
            number = ROUTER_NAMES.index(router)
            if number == LEAST_OUTSTANDING and self.engine.router[0] != number:
                # Bounds are not kept up while nobody needs them.
                self.engine.slots["bound_ps"] = 0
            self.engine.router[0] = number

    def cap(self, cap_w: ArrayLike) -> None:
        """Sets the power limit of each slot, watts (R,), clipped to what the driver accepts."""
        blueprint, slots = self.blueprint, self.engine.slots
        slots["cap_w"] = np.clip(cap_w, blueprint.cap_min_w, blueprint.cap_max_w)
        slots["governed"] = 0

    def lock_clock(self, ratio: ArrayLike) -> None:
        """Sets the highest clock of each slot relative to the GPU's own, (R,) in (0, 1]."""
        slots, ladder = self.engine.slots, self.engine.ladder
        for r, limit in enumerate(np.broadcast_to(ratio, slots.shape)):
            steps = np.searchsorted(ladder[slots["deployment"][r], CLOCK], limit + 1e-9, side="right")
            slots["clock_limit"][r] = max(int(steps) - 1, 0)
        slots["governed"] = 0

    def command(self, slot: int, target: int) -> None:
        """Gives a slot a life-cycle target, see :class:`Target`."""
        self._enter_simpy(self._now_ps)
        self.lifecycle.command(slot, target)

    def advance(self, until_ps: int) -> None:
        """Runs to ``until_ps``; SimPy is entered only where one of its events is due."""
        while self._now_ps < until_ps:
            due = self.world.peek()
            stop = int(min(until_ps, due if due > self._now_ps else self._now_ps, self._now_ps + CHUNK_PS))
            if stop > self._now_ps:
                kernels.advance(self.engine, stop)
                self._now_ps = stop
                status = self.engine.slots["status"]
                self.history.take(self.engine.bins, stop // PS_PER_S, status)
                if len(self.history):
                    self._update_inlets(self.history.column("energy_j", 1)[0])
            if due <= self._now_ps:
                self._enter_simpy(self._now_ps)

    def drain(self, patience_s: float = 3600.0) -> bool:
        """Runs on until every request has left, for ``patience_s`` at most; returns whether that is so."""
        stop = self._now_ps + round(patience_s) * PS_PER_S
        while not self.finished and self._now_ps < stop:
            # To the next whole second, so that the history holds all of it.
            self.advance((self._now_ps // PS_PER_S + 1) * PS_PER_S)
        return self.finished

    def _enter_simpy(self, now_ps: int) -> None:
        if now_ps > self.world.now:
            self.world.run(until=now_ps)
        while self.world.peek() <= now_ps:
            self.world.step()

    def _update_inlets(self, power_w: NDArray[np.float64]) -> None:
        self.engine.slots["inlet_c"] = self.facility.inlet_c(self._now_ps, power_w)


def _start(blueprint: Blueprint, requests: RequestTable) -> Engine:
    """The engine at time zero."""
    records, cost, ladder, thermal = blueprint.stacked
    limits = blueprint.spec.engine.max_num_seqs, blueprint.spec.engine.block_size
    engine = allocate(records, cost, ladder, thermal, _rows(blueprint, requests), len(blueprint.slots), limits)
    initial = {"serving": SERVING, "sleeping": SLEEPING, "empty": EMPTY}
    slots = engine.slots
    slots["status"] = [initial[s.spec.initial] for s in blueprint.slots]
    slots["deployment"] = blueprint.initial
    slots["free_blocks"] = records["kv_blocks"][blueprint.initial]
    slots["cap_w"] = blueprint.cap_max_w
    engine.cursor[C_CLOSED_LOOP] = int((engine.requests["think_ps"] >= 0).any())
    return engine


def _rows(blueprint: Blueprint, requests: RequestTable) -> Records:
    unknown = [m for m in requests.models if m not in blueprint.models]
    if unknown:
        known = ", ".join(blueprint.models)
        raise InputError("workload", f"the cluster does not have model '{unknown[0]}'", f"Use one of {known}")
    models = np.array([blueprint.models.index(m) for m in requests.models] + [ANY_MODEL])
    rows = np.zeros(len(requests), REQUEST)
    for name in ("follower", "slot", "admit_ps", "first_token_ps", "finish_ps", "link"):
        rows[name] = -1
    rows["arrival_ps"] = requests.arrival_ps
    rows["prompt"] = requests.prompt_tokens
    rows["output"] = requests.output_tokens
    rows["timeout_ps"] = requests.timeout_ps
    rows["model"] = models[requests.model]
    rows["follower"], rows["think_ps"] = _followers(requests)
    return rows


def _followers(requests: RequestTable) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The next request of each one's session, and the think times that have a predecessor to wait for."""
    think_ps = requests.think_ps.copy()
    follower = np.full(len(requests), -1, np.int64)
    if (think_ps >= 0).any():
        order = np.argsort(requests.session, kind="stable")
        same = requests.session[order[1:]] == requests.session[order[:-1]]
        follower[order[:-1][same]] = order[1:][same]
        first = np.ones(len(requests), bool)
        first[order[1:][same]] = False
        think_ps[first] = -1
    return follower, think_ps
