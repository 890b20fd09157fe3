"""A real cluster as a plant: actions in, telemetry out, by the same seam as the simulated one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..envs.actions import SERVE, ClusterAction
from ..envs.telemetry import LEAD_TIMES_S, NOBODY_ASKS, Fleet, Telemetry
from ..simulator.kernels.state import DRAINING, FAILED, LOADING, SERVING
from .capping import Capper, Log
from .fallback import Trouble, fallback
from .guards import Caps
from .lifecycle import Life
from .readings import EngineReading, GatewayClient, GatewayReading, ReadingError
from .sampler import Held, Look, Sampler
from .slots import SlotMeters
from .surroundings import Surroundings

F64 = NDArray[np.float64]
EQUAL = 1.0


@dataclass(frozen=True, eq=False)
class Plan:
    """An action as it may be carried out.

    Attributes:
        action: The action, its caps guarded.
        caps: What is to be written.
        budget_w: The budget that they hold.
    """

    action: ClusterAction
    caps: Caps
    budget_w: float


@dataclass(frozen=True, eq=False)
class _Tick:
    """What the rates of a tick are differences from."""

    time_s: F64
    prompt_tokens: F64
    output_tokens: F64
    gateway: GatewayReading | None


class RealPlant:
    """GPUs, inference servers and a gateway.

    Call :meth:`look` once a second; :meth:`read` at the end of a tick.

    Args:
        fleet: The controllable side of the scenario.
        tick_s: Time between decisions.
        sampler: Reads all sources.
        meters: What the GPUs of each slot say.
        lives: Life of each slot's server.
        surroundings: What no server tells.
        capper: Writes limits.
        gateway: Is steered; `None` in a dry run.
        stale_s: The last reading holds for so long.
        log: The audit log.
        clock: Monotonic seconds.

    Attributes:
        lives: Life of each slot's server.
        troubles: What was wrong at the last :meth:`read`.
        now: The last look.
    """

    def __init__(
        self,
        fleet: Fleet,
        tick_s: int,
        sampler: Sampler,
        meters: SlotMeters,
        lives: tuple[Life, ...],
        surroundings: Surroundings,
        capper: Capper,
        gateway: GatewayClient | None,
        stale_s: float,
        log: Log,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fleet, self._tick_s, self._sampler, self._meters, self.lives = fleet, tick_s, sampler, meters, lives
        self._surroundings, self._capper, self._gateway = surroundings, capper, gateway
        self._stale_s, self._log, self._clock = stale_s, log, clock
        size = len(fleet)
        self._weight = np.full(size, EQUAL)
        self._router: str | None = None
        self._limit = np.full(size, fleet.max_num_seqs, np.int64)
        self._wish_w = np.full(size, np.nan)
        self._steer_fault = ""
        self.troubles: tuple[Trouble, ...] = ()
        self.now = self._sampler.look()
        self._meters.take(self.now)
        self._since = self._counters()
        self.default_w = self._meters.cap_w(self.now)

    @property
    def fleet(self) -> Fleet:
        """What can be controlled."""
        return self._fleet

    def look(self) -> Look:
        """Looks at everything, lets lives go on, and renews what the gateway was told."""
        self.now = self._sampler.look()
        for second_w in self._meters.take(self.now):
            self._surroundings.carry(second_w)
        in_flight = self._gateway_now.in_flight if self._gateway_now else {}
        for r, (slot, life) in enumerate(zip(self._fleet.slots, self.lives, strict=True)):
            if self._gateway is not None:
                life.pursue(self._engine(r), in_flight.get(slot, 0), partial(self._announce, slot))
        self._steer()
        return self.now

    def _announce(self, slot: str, verb: str) -> None:
        self._log("server", slot=slot, verb=verb)

    def _engine(self, r: int) -> EngineReading | None:
        return self.now.engines[self._fleet.slots[r]].fresh(self.now.time_s, self._stale_s)

    @property
    def _gateway_now(self) -> GatewayReading | None:
        return self.now.gateway.fresh(self.now.time_s, self._stale_s)

    def _lost(self) -> NDArray[np.bool_]:
        return self._meters.lost(self.now)

    def status(self) -> NDArray[np.int64]:
        """State of each slot by the simulator's numbers (R,)."""
        own = np.array([life.status(self._engine(r)) for r, life in enumerate(self.lives)], np.int64)
        return np.where(self._lost(), FAILED, own)

    def read(self) -> Telemetry:
        """Readings of the tick that has just ended; what is wrong with them is in :attr:`troubles`."""
        fleet, now = self._fleet, self.now
        before, self._since = self._since, self._counters()
        passed_s = np.maximum(self._since.time_s - before.time_s, 1e-9)
        engines = [self._engine(r) or EngineReading(now.time_s) for r in range(len(fleet))]
        arrivals, arriving, held, attainment = _gateway_rates(before.gateway, self._since.gateway)
        budget_w = self._surroundings.budget_w()
        power_w = self._meters.power_w(self._tick_s)
        around = self._surroundings.read(power_w[-1])
        self.troubles = self._find_troubles()
        return Telemetry(
            power_w=power_w,
            temperature_c=self._meters.temperature_c(now),
            clock_ratio=self._meters.clock_ratio(now),
            cap_w=self._meters.cap_w(now),
            status=self.status(),
            ready_in_s=np.array([life.ready_in_s for life in self.lives]),
            model=np.array([fleet.models.index(life.model) for life in self.lives]),
            running=np.array([e.running for e in engines], np.float64),
            waiting=np.array([e.waiting for e in engines], np.float64),
            kv_used=np.array([e.kv_used for e in engines], np.float64),
            prompt_tokens_per_s=_rate(before.prompt_tokens, self._since.prompt_tokens, passed_s),
            output_tokens_per_s=_rate(before.output_tokens, self._since.output_tokens, passed_s),
            route_weight=self._routed(),
            arrivals_per_s=arrivals,
            arriving_tokens_per_s=arriving,
            held_at_gateway=held,
            slo_attainment=attainment,
            budget_w=budget_w,
            pending_instances=0,
            pending_model=NOBODY_ASKS,
            in_flight_limit=self._limited(),
            braked=self._meters.braked(now),
            **around,
        )

    def _routed(self) -> F64:
        """Weights in force: what was decided, or in a dry run what the gateway has."""
        told = self._gateway_now
        if self._gateway is not None or told is None:
            return self._weight.copy()
        return np.array([told.weights.get(slot, EQUAL) for slot in self._fleet.slots])

    def _limited(self) -> F64:
        """In-flight limits in force, `max_num_seqs` for none."""
        most, told = self._fleet.max_num_seqs, self._gateway_now
        if self._gateway is not None or told is None:
            return self._limit.astype(np.float64)
        return np.array([min(told.limits.get(slot, 0) or most, most) for slot in self._fleet.slots], np.float64)

    def _counters(self) -> _Tick:
        read = [self.now.engines[slot].reading for slot in self._fleet.slots]
        return _Tick(
            np.array([e.time_s if e else np.nan for e in read]),
            np.array([e.prompt_tokens if e else np.nan for e in read]),
            np.array([e.output_tokens if e else np.nan for e in read]),
            self.now.gateway.reading,
        )

    def plan(self, action: ClusterAction, telemetry: Telemetry) -> Plan:
        """What of an action may be carried out; nothing is changed."""
        wish_w = self._wish_w if action.cap_w is None else action.cap_w
        wish_w = np.where(np.isnan(wish_w), self.default_w, wish_w)
        # A server whose metrics are silent may serve all the same; one that shall serve may begin at any time.
        on = np.isin(telemetry.status, (LOADING, SERVING, DRAINING, FAILED))
        on |= np.array([life.shall_serve for life in self.lives])
        if action.lifecycle is not None:
            on |= action.lifecycle >= SERVE
        lost = self._lost()
        on &= ~lost
        until_s = next((lead for lead in LEAD_TIMES_S[1:] if lead >= self._tick_s), LEAD_TIMES_S[-1])
        told_w = telemetry.budget_w[np.array(LEAD_TIMES_S) <= until_s]
        budget_w = min(float(told_w.min()), self._surroundings.dip_w(until_s))
        # What a GPU draws that is lost nobody knows, but for the limit that it had.
        beside_w = np.where(lost, telemetry.cap_w, telemetry.power_w[-1])
        caps = self._capper.plan(wish_w, telemetry.cap_w, on, float(beside_w[~on].sum()), budget_w)
        return Plan(replace(action, cap_w=caps.watts), caps, budget_w)

    def apply(self, action: ClusterAction) -> None:
        """Carries an action out, guarded, as :class:`~llmcluster.envs.telemetry.Plant` asks."""
        telemetry = self.read()
        self.carry_out(action, self.plan(action, telemetry), telemetry)

    def carry_out(self, action: ClusterAction, plan: Plan, telemetry: Telemetry) -> None:
        """Carries a plan out; what the action leaves at ``None`` stays."""
        if action.cap_w is not None:
            self._wish_w = action.cap_w.copy()
        self._capper.write(plan.caps, telemetry.cap_w, self._lost())
        if action.clock_ratio is not None:
            self._capper.lock(self._meters.highest_mhz(self.now, action.clock_ratio))
        if action.lifecycle is not None:
            for life, target in zip(self.lives, action.lifecycle.tolist(), strict=True):
                life.command(target)
        self.route(action)

    def forget(self) -> None:
        """The keeper has undone everything; limits and clocks are set anew when they shall be."""
        self._capper.forget()

    def route(self, action: ClusterAction) -> None:
        """Carries out what of an action is the gateway's."""
        self._router = action.router or self._router
        if action.route_weight is not None:
            self._weight = action.route_weight.copy()
        if action.concurrency is not None:
            self._limit = np.minimum(action.concurrency, self._fleet.max_num_seqs)
        self._steer()

    def _steer(self) -> None:
        if self._gateway is None:
            return
        is_open = self.status() == SERVING
        bounded = np.where(self._limit < self._fleet.max_num_seqs, self._limit, 0)
        weights = dict(zip(self._fleet.slots, self._weight.tolist(), strict=True))
        limits = dict(zip(self._fleet.slots, bounded.tolist(), strict=True))
        closed = tuple(slot for slot, opened in zip(self._fleet.slots, is_open, strict=True) if not opened)
        try:
            self._gateway.steer(self._router, weights, limits, closed=closed)
            self._steer_fault = ""
        except ReadingError as fault:
            self._steer_fault = str(fault)

    def restore(self) -> None:
        """Lets the keeper undo all limits, and the gateway treat all backends alike."""
        self._capper.restore()
        self.route(fallback(self._fleet, self.default_w))

    def _find_troubles(self) -> tuple[Trouble, ...]:
        now, stale_s = self.now, self._stale_s
        found: list[Trouble] = []

        def silent(readings: Mapping[str, Held[Any]]) -> bool:
            return all(held.fresh(now.time_s, stale_s) is None for held in readings.values())

        sources: dict[str, Mapping[str, Held[Any]]] = {"GPU": now.gpus, "server": now.engines}
        for kind, readings in sources.items():
            if silent(readings):
                faults = sorted({held.fault for held in readings.values()})
                found.append(Trouble("telemetry", f"every {kind}", "; ".join(faults)))
        found += [
            Trouble("gpu", name, held.fault or "is silent")
            for name, held in now.gpus.items()
            if held.fault or held.fresh(now.time_s, stale_s) is None
        ]
        for slot, life in zip(self._fleet.slots, self.lives, strict=True):
            engine = now.engines[slot]
            if engine.fault and life.status(self._engine(self._fleet.slots.index(slot))) == FAILED:
                found.append(Trouble("engine", slot, engine.fault))
            if life.fault:
                found.append(Trouble("start", slot, life.fault))
        if self._gateway_now is None:
            found.append(Trouble("gateway", "gateway", now.gateway.fault))
        if self._steer_fault:
            found.append(Trouble("steer", "gateway", self._steer_fault))
        found += [Trouble("limits", gpu, why) for gpu, why in self._capper.faults.items()]
        return (*found, *self._surroundings.troubles)


def _rate(before: F64, now: F64, passed_s: F64) -> F64:
    """Counts per second; none where a counter is not known at both ends."""
    return np.nan_to_num((now - before) / passed_s).clip(min=0.0)


def _gateway_rates(before: GatewayReading | None, now: GatewayReading | None) -> tuple[float, float, int, float]:
    """Arrivals and their tokens per second, requests held, and the share of SLOs that were met."""
    if now is None:
        return 0.0, 0.0, 0, 1.0
    if before is None or now.arrivals < before.arrivals or now.time_s <= before.time_s:
        return 0.0, 0.0, now.held, 1.0  # the gateway has been started anew
    passed_s, left = now.time_s - before.time_s, now.left - before.left
    return (
        (now.arrivals - before.arrivals) / passed_s,
        (now.arriving_tokens - before.arriving_tokens) / passed_s,
        now.held,
        (now.met_slo - before.met_slo) / left if left else 1.0,
    )
