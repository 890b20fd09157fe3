"""The control loop: look, decide, guard, write, once a tick; and let go of everything at the end."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from ..envs.actions import ClusterAction
from ..envs.telemetry import Telemetry
from .audit import Audit, AuditError
from .beats import Beats
from .fallback import Trouble, fallback
from .mind import Decision, Mind, MindError
from .plant import Plan, RealPlant

SECOND_S = 1.0


@dataclass
class Progress:
    """How the loop is doing, for the exporter and the report.

    Attributes:
        ticks: Decisions so far.
        fallbacks: Of these, those without the agent, by the kind of trouble.
        late: Ticks that took longer than they should.
        telemetry: At the last decision.
        decision: The last one; `None` where it fell back.
        plan: What was, or would have been, carried out.
        troubles: What was wrong.
    """

    ticks: int = 0
    fallbacks: dict[str, int] = field(default_factory=dict)
    late: int = 0
    telemetry: Telemetry | None = None
    decision: Decision | None = None
    plan: Plan | None = None
    troubles: tuple[Trouble, ...] = ()


class ControlLoop:
    """Runs a plant by a mind.

    Args:
        plant: The cluster.
        mind: Who decides.
        audit: The log.
        beats: Tell the keeper that the loop lives.
        tick_s: Time between decisions.
        apply: Whether anything is carried out; else it is a dry run.
        told: Is told of each decision, and of what was carried out.
        clock: Monotonic seconds: where clocks of the wall jump, nothing happens.
        wait: Waits for some seconds, less if the loop is to end.
    """

    def __init__(
        self,
        plant: RealPlant,
        mind: Mind,
        audit: Audit,
        beats: Beats,
        tick_s: int,
        *,
        apply: bool,
        told: Callable[[Progress], None] = lambda progress: None,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], None] | None = None,
    ) -> None:
        self._plant, self._mind, self._audit, self._beats = plant, mind, audit, beats
        self._tick_s, self._apply, self._told, self._clock = tick_s, apply, told, clock
        self._stop = threading.Event()
        self._wait = wait or self._stop.wait
        self._due_s = 0.0
        self.progress = Progress()

    def stop(self) -> None:
        """Lets the loop end before its next second; safe in a signal handler."""
        self._stop.set()

    def run(self, duration_s: float | None = None) -> Progress:
        """Runs until :meth:`stop`, or for some seconds; then everything is restored, whatever has happened."""
        self._due_s = self._clock()
        end_s = self._due_s + (math.inf if duration_s is None else duration_s)
        self._mind.begin(self._plant)
        try:
            with self._beats:
                self.step()
                while not self._stop.is_set() and self._clock() < end_s:
                    if self._pass_tick(end_s):
                        self.step()
        finally:
            if self._apply:
                self._plant.restore()
        return self.progress

    def _pass_tick(self, end_s: float) -> bool:
        """Looks once a second for a tick; whether it was passed to its end, and not until ``end_s`` alone."""
        for _ in range(self._tick_s):
            if self._clock() >= end_s:
                return False
            self._due_s += SECOND_S
            late_s = self._clock() - self._due_s
            if late_s > SECOND_S:
                self._due_s += late_s  # seconds that were missed are not made up for
            self._wait(max(-late_s, 0.0))
            if self._stop.is_set():
                return False
            self._beats.alive()
            with suppress(AuditError):  # the next decision says so
                self._plant.look()
        return True

    def step(self) -> None:
        """One decision, from telemetry to limits."""
        began_s, progress = self._clock(), self.progress
        telemetry = self._plant.read()
        troubles = self._plant.troubles
        if gone := self._beats.take_fault():
            self._plant.forget()
            troubles = (*troubles, Trouble("limits", "keeper", gone))
        decision, troubles = self._decide(telemetry, troubles)
        action = decision.action if decision else fallback(self._plant.fleet, self._plant.default_w)
        plan = self._plant.plan(action, telemetry)
        try:
            self._log(telemetry, decision, plan, troubles)
            if self._apply:
                self._plant.carry_out(plan.action, plan, telemetry)
        except AuditError as fault:
            troubles = (*troubles, Trouble("audit", "log", str(fault)))
            decision = None
            if self._apply:
                self._plant.restore()
        took_s = self._clock() - began_s
        progress.ticks += 1
        progress.late += took_s > self._tick_s
        for kind in {trouble.kind for trouble in troubles if trouble.grave}:
            progress.fallbacks[kind] = progress.fallbacks.get(kind, 0) + 1
        progress.telemetry, progress.decision, progress.plan = telemetry, decision, plan
        progress.troubles = troubles
        self._beats.alive()
        self._told(progress)

    def _decide(
        self, telemetry: Telemetry, troubles: tuple[Trouble, ...]
    ) -> tuple[Decision | None, tuple[Trouble, ...]]:
        """What the agent decides; nothing where something grave is wrong."""
        try:
            if any(trouble.grave for trouble in troubles):
                self._mind.foresee(self._plant, telemetry)
                return None, troubles
            return self._mind.decide(self._plant, telemetry), troubles
        except MindError as fault:
            return None, (*troubles, Trouble(fault.kind, "mind", fault.text))

    def _log(self, telemetry: Telemetry, decision: Decision | None, plan: Plan, troubles: tuple[Trouble, ...]) -> None:
        action: ClusterAction = plan.action
        self._audit.write(
            "decision",
            tick=self.progress.ticks,
            applied=self._apply,
            by="agent" if decision else "fallback",
            troubles=[{"kind": t.kind, "what": t.what, "text": t.text} for t in troubles],
            seconds=decision.seconds if decision else 0.0,
            power_w=telemetry.power_w[-1],
            budget_w=plan.budget_w,
            status=telemetry.status,
            cap_in_force_w=telemetry.cap_w,
            wish_w=decision.action.cap_w if decision else None,
            cap_w=plan.caps.watts,
            written=np.flatnonzero(plan.caps.write),
            guards=plan.caps.reasons,
            router=action.router,
            weights=action.route_weight,
            lifecycle=action.lifecycle,
            concurrency=action.concurrency,
            clock_ratio=action.clock_ratio,
        )
