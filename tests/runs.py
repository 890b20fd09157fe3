"""Carries a random case out on an engine, to its end, and keeps all that others can see of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from llmcluster.simulator.kernels.state import (
    BIN,
    BIN_PS,
    BINS,
    C_DONE,
    C_GATEWAY_COUNT,
    C_ROUTER,
    C_SENT,
    C_SENT_TOKENS,
    DRAINING,
    EMPTY,
    FAILED,
    LOADING,
    SERVING,
    SLEEPING,
    TENANT,
    UNLIMITED,
)
from llmcluster.tests.machine import Factory, Machine, note_coupling
from llmcluster.tests.strategies import ROUTERS, Action, Case

PATIENCE_S = 40_000
SETTINGS: dict[str, tuple[str, Callable[[float, Machine], float]]] = {
    "cap": ("cap_w", lambda share, machine: machine.idle_w + share * (machine.full_power_w - machine.idle_w)),
    "clock": ("clock_limit", lambda share, machine: round(share * (len(machine.clock) - 1))),
    "weight": ("route_weight", lambda share, machine: (0.0, 0.5, 1.0, 2.0)[round(share * 3)]),
    "limit": ("limit", lambda share, machine: (1, 2, 4, UNLIMITED)[round(share * 3)]),
    "inlet": ("inlet_c", lambda share, machine: 15 + 20 * share),
}
TIMES = ["arrival_ps", "sent_ps", "admit_ps", "first_token_ps", "finish_ps"]
FATE = [*TIMES, "status", "preemptions", "attempts", "generated", "slot"]
LOOK = ["outstanding", "waiting", "free_blocks", "throttled", "throttle_events"]


class Run:
    """A case on an engine.

    Args:
        case: The case.
        factory: The engine.

    Attributes:
        now_ps: How far it is.
        looks: What could be seen at times: of each slot, and the number of requests at the gateway.
        rest_cw: What each slot draws without work, from a time on.
    """

    def __init__(self, case: Case, factory: Factory) -> None:
        self.case, self.engine = case, case.build()
        self.driver = factory(self.engine)
        self.now_ps = 0
        self._seconds: list[np.ndarray] = []
        self.looks: dict[int, dict[str, Any]] = {}
        self.rest_cw: list[tuple[int, list[int]]] = []
        self._changed = True
        self._note_rest()

    def to_the_end(self, cuts: Sequence[int] = ()) -> Run:
        """Carries out the script, and stops at ``cuts`` too, where nothing is changed; then waits for all to leave."""
        script = self.case.script
        last = script[-1].time_ps if script else 0
        for stop in sorted({a.time_ps for a in script} | {t for t in cuts if t < last}):
            self.advance(stop)
            for action in script:
                if action.time_ps == stop:
                    self.obey(action)
        if script:
            self.repair()
        ahead = sorted(t for t in cuts if t > last)
        while self.engine.cursor[C_DONE] < len(self.engine.requests) or self.now_ps % BIN_PS or not self.now_ps:
            assert self.now_ps < last + PATIENCE_S * BIN_PS, "the engine makes no progress"
            edge = (self.now_ps // BIN_PS + 1) * BIN_PS
            for stop in [t for t in ahead if self.now_ps < t < edge]:
                self.advance(stop)
            self.advance(edge)
        self.advance(self.now_ps + BIN_PS)
        return self

    def advance(self, until_ps: int) -> None:
        """Runs on, and looks."""
        if until_ps > self.now_ps:
            self.driver.advance(until_ps, self._changed)
            self._changed, self.now_ps = False, until_ps
        for number in range(len(self._seconds), until_ps // BIN_PS):
            self._seconds.append(self.engine.bins[number % BINS].copy())
            self.engine.bins[number % BINS] = 0
        self.looks[until_ps] = {name: self.engine.slots[name].tolist() for name in LOOK}
        self.looks[until_ps]["held"] = int(self.engine.cursor[C_GATEWAY_COUNT])

    @property
    def seconds(self) -> Any:
        """Bins of the seconds that have passed, (seconds, slots)."""
        return np.array(self._seconds)

    def obey(self, action: Action) -> None:
        """Does what the action says, if the slot is in a state for it."""
        slots, slot, share, kind = self.engine.slots, action.slot, action.share, action.kind
        machine = self.case.machines[slots["deployment"][slot]]
        status, idle = slots["status"][slot], slots["outstanding"][slot] == 0
        if kind in SETTINGS:
            column, value = SETTINGS[kind]
            slots[column][slot] = value(share, machine)
        elif kind == "router":
            self.engine.cursor[C_ROUTER] = ROUTERS[round(share * 3)]
        elif kind == "drain" and status in (SERVING, DRAINING):
            slots["status"][slot] = SERVING if status == DRAINING else DRAINING
        elif kind == "rest" and status in (SERVING, DRAINING) and idle:
            slots["status"][slot] = SLEEPING if share < 0.5 else EMPTY
        elif kind == "tenant" and status in (SLEEPING, EMPTY):
            slots["status"][slot], slots["load_w"][slot] = TENANT, round(400 * share) / 4
        elif kind == "load" and status in (EMPTY, SLEEPING, TENANT, FAILED):
            homes = self.case.homes[slot]
            self._load(slot, homes[round(share * (len(homes) - 1))])
        elif kind == "serve" and status == LOADING:
            slots["status"][slot] = SERVING
        elif kind == "fail":
            self._fail(slot)
        slots["governed"][slot] = 0
        note_coupling(self.engine)
        self._changed = True
        self._note_rest()

    def repair(self) -> None:
        """Brings every slot back to what it was at the start, so that all requests can be served."""
        slots = self.engine.slots
        for slot, (own, *_) in enumerate(self.case.homes):
            if slots["status"][slot] in (SERVING, DRAINING) and slots["deployment"][slot] != own:
                self._fail(slot)
            if slots["status"][slot] not in (SERVING, DRAINING):
                self._load(slot, own)
        slots["status"], slots["governed"] = SERVING, 0
        slots["limit"] = self.case.columns["limit"]
        note_coupling(self.engine)
        self._changed = True
        self._note_rest()

    def _load(self, slot: int, deployment: int) -> None:
        self.engine.slots["deployment"][slot], self.engine.slots["status"][slot] = deployment, LOADING
        self.driver.clear(slot)

    def _fail(self, slot: int) -> None:
        self.engine.slots["status"][slot] = FAILED
        self.driver.evict(slot)

    def _note_rest(self) -> None:
        rest = []
        for slot in self.engine.slots:
            machine = self.case.machines[slot["deployment"]]
            idle_w = {SERVING: machine.idle_w, DRAINING: machine.idle_w, LOADING: machine.idle_w, FAILED: 0.0}
            idle_w[TENANT] = slot["load_w"]
            rest.append(round(idle_w.get(int(slot["status"]), machine.off_w) * 100))
        self.rest_cw.append((self.now_ps, rest))


def fates(run: Run) -> dict[str, list[int]]:
    """What became of the requests, by column."""
    rows = run.engine.requests
    result = {name: rows[name].tolist() for name in FATE}
    result["left"] = sorted(run.engine.done[: run.engine.cursor[C_DONE]].tolist())
    result["sent"] = run.engine.cursor[[C_SENT, C_SENT_TOKENS]].tolist()
    return result


def assert_same(one: Run, other: Run) -> None:
    """Two runs of a case are the same, to the bit, in all that both let be seen."""
    assert fates(one) == fates(other)
    assert one.now_ps == other.now_ps
    for stop in sorted(one.looks.keys() & other.looks.keys()):
        assert one.looks[stop] == other.looks[stop], f"at {stop} ps"
    for name in BIN.names or ():
        assert one.seconds[name].tolist() == other.seconds[name].tolist(), name


def overlap(intervals: Sequence[tuple[int, int]], begin: int, end: int) -> int:
    """How much of ``[begin, end)`` the intervals, which do not overlap, cover."""
    return sum(max(0, min(stop, end) - max(start, begin)) for start, stop in intervals)


def rest_energy(run: Run, slot: int, busy: Sequence[tuple[int, int]]) -> int:
    """What a slot drew while it was not busy."""
    changes = [(time, watts[slot]) for time, watts in run.rest_cw] + [(run.now_ps, 0)]
    return sum(cw * (end - begin - overlap(busy, begin, end)) for (begin, cw), (end, _) in pairwise(changes))
