"""One slot: a process that carries out one iteration after the other."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

import simpy

from ..errors import InputError
from ..kernels.state import (
    C_UNIT_TOKENS,
    DRAINING,
    FINISHED,
    IN_TRANSFER,
    PREFILL,
    RUNNING,
    SERVING,
    TIMED_OUT,
    WAITING,
    Engine,
)
from .control import Control
from .meter import Flight, Meter
from .moments import LAND, SCHEDULE, World
from .observer import Observer
from .physics import Governor, Physics, Work
from .request import Request
from .scheduler import Plan, Scheduler

if TYPE_CHECKING:
    from .gateway import Gateway


class Replica:
    """One slot.

    Args:
        world: The clock.
        engine: The arrays that others read.
        physics: Of each deployment.
        slot: Its number.
        control: What is set for it.
        gateway: Where requests go that leave it.
        observer: Who watches.

    Attributes:
        scheduler: Its requests and its KV cache.
        meter: What it draws.
        credit: What the smooth weighted round robin owes it.
        governor: What clock it runs at.
        link_free_ps: When the link over which it hands prompts on is free again.
    """

    def __init__(
        self,
        world: World,
        engine: Engine,
        physics: Sequence[Physics],
        slot: int,
        control: Control,
        gateway: Gateway,
        observer: Observer,
    ) -> None:
        self.slot, self.credit, self.link_free_ps = slot, 0.0, 0
        self.governor, self.meter = Governor(), Meter(engine, slot, control)
        self._world, self._engine, self._physics = world, engine, physics
        self._gateway, self._observer = gateway, observer
        self._work = world.event()
        self._aborted: list[Request] = []
        self._install()
        self._process = world.process(self._serve())

    @property
    def control(self) -> Control:
        """What is set for the slot."""
        return self.meter.control

    @property
    def outstanding(self) -> int:
        """Requests in flight: running and waiting."""
        return len(self.scheduler)

    def enqueue(self, request: Request) -> None:
        """The gateway sends a request."""
        request.record["status"], request.record["slot"] = WAITING, self.slot
        self.scheduler.add(request)
        self._observer.queued(self.slot, request.row, self._world.now_ps)
        if not self._work.triggered:
            self._work.succeed()

    def abort(self, request: Request) -> None:
        """The client of a request here has gone for good: it leaves, at the end of an iteration that computes it."""
        flight = self.meter.flight
        if flight is not None and request in self.scheduler.running:
            self._aborted.append(request)
        else:
            self._drop(request)

    def _drop(self, request: Request) -> None:
        self.governor.holds = False
        self.scheduler.drop(request)
        self._gateway.take_back(request, TIMED_OUT, self, for_good=True)

    def clear(self) -> None:
        """Empties the KV cache, and makes it that of the deployment that the slot has now.

        Raises:
            InputError: Requests are here.
        """
        if self.outstanding:
            raise InputError(f"slot {self.slot}", "has requests in its KV cache", "Drain it or let it fail first")
        self._install()

    def _install(self) -> None:
        deployment = self._engine.deployments[self.control.deployment]
        self.scheduler = Scheduler(deployment, int(self._engine.cursor[C_UNIT_TOKENS]))

    def fail(self) -> list[Request]:
        """Loses the iteration under way and the KV cache; returns the requests that were here, in order of rows."""
        if self.meter.flight is not None:
            self._observe(self.meter.end(self._world.now_ps), self._world.now_ps)
            self._process.interrupt()
        self._aborted.clear()
        requests = sorted([*self.scheduler.running, *self.scheduler.waiting], key=lambda request: request.row)
        for request in requests:
            request.give_up_cache()
        self._install()
        return requests

    def publish(self) -> None:
        """Writes what others read."""
        record, scheduler = self._engine.slots[self.slot], self.scheduler
        record["outstanding"], record["waiting"] = self.outstanding, len(scheduler.waiting)
        record["free_blocks"] = scheduler.pool.free
        record["throttled"], record["throttle_events"] = self.meter.heat.throttled, self.meter.heat.events
        record["route_credit"] = self.credit

    def close_second(self, edge_ps: int) -> None:
        """Ends the second before ``edge_ps``; the governor is asked anew."""
        record, scheduler = self.meter.close(edge_ps), self.scheduler
        self.governor.holds = False
        record["clock_ratio"] = self._physics[self.control.deployment].clock[self.governor.step]
        record["running"], record["waiting"] = len(scheduler.running), len(scheduler.waiting)
        record["kv_used"] = 1.0 - scheduler.pool.free / scheduler.pool.blocks
        self._observer.second(self.slot, edge_ps, record)

    # --------------------------------------------------------------------------------------------------- the process

    def _serve(self) -> Generator[simpy.Event, Any, None]:
        while True:
            yield self._world.at(self._world.now_ps, SCHEDULE)
            flight = self._begin()
            if flight is None:
                self._work = self._world.event()
                yield self._work
                continue
            try:
                yield self._world.at(flight.end_ps, LAND)
            except simpy.Interrupt:
                continue  # the slot has failed
            self._land(flight)

    def _begin(self) -> Flight | None:
        """Schedules an iteration, if there is anything to do."""
        if not self.outstanding or self.control.status not in (SERVING, DRAINING):
            return None
        now_ps = self._world.now_ps
        plan = self.scheduler.schedule(now_ps)
        self._record(plan, now_ps)
        if not plan.decodes and not plan.chunks:
            return None
        physics, work = self._physics[self.control.deployment], Work.of(plan)
        step = self.governor.choose(physics, work, self.control, self.meter.heat.throttled)
        length_ps, energy = physics.run(work, step)
        return self.meter.begin(Flight(plan, step, now_ps, now_ps + length_ps, energy))

    def _record(self, plan: Plan, now_ps: int) -> None:
        """Tells what scheduling has changed."""
        for request in plan.gone:
            self._gateway.take_back(request, TIMED_OUT, self)
        for request in plan.preempted:
            self.governor.holds = False
            request.record["status"] = WAITING
            request.record["preemptions"] += 1
            self._observer.preempted(self.slot, request.row, now_ps)
        for request, hit_tokens in plan.admitted:
            request.record["status"] = RUNNING
            if request.record["admit_ps"] < 0:
                request.record["admit_ps"] = now_ps
            self._observer.admitted(self.slot, request.row, now_ps, hit_tokens)

    def _land(self, flight: Flight) -> None:
        """Ends an iteration: every decode has one token more, every prefill that is complete its next one."""
        now_ps, plan = self._world.now_ps, flight.plan
        self._observe(self.meter.end(now_ps), now_ps)
        for request in plan.decodes:
            request.cached += 1
            request.generated += 1
        for request, tokens in plan.chunks:
            request.cached += tokens
        finished = [request for request in plan.decodes if request.generated == request.output]
        ready = [request for request, _ in plan.chunks if not request.prefilling]
        self.meter.count_tokens(now_ps, plan.prefill_tokens, len(plan.decodes) + len(ready))
        for request in sorted(finished, key=lambda request: request.row):
            self._leave(request, FINISHED)
        for request in ready:
            self._first_or_next_token(request, now_ps)
        if finished or plan.chunks:
            self.governor.holds = False
        for request in self._aborted:
            if request in self.scheduler.running:
                self._drop(request)
        self._aborted.clear()

    def _first_or_next_token(self, request: Request, now_ps: int) -> None:
        """What comes with the end of a prefill: the first token, or after a preemption the next."""
        request.generated += 1
        if request.generated == 1:
            request.record["first_token_ps"] = now_ps
            self._observer.first_token(self.slot, request.row, now_ps)
        if request.generated == request.output:
            self._leave(request, FINISHED)
        elif request.generated == 1 and self.control.role == PREFILL:
            self._leave(request, IN_TRANSFER)

    def _leave(self, request: Request, status: int) -> None:
        self.scheduler.finish(request)
        self._gateway.take_back(request, status, self)

    def _observe(self, flight: Flight, end_ps: int) -> None:
        plan, start_ps, energy = flight.plan, flight.start_ps, flight.spent
        self._observer.iteration(
            self.slot, start_ps, end_ps, len(plan.decodes), plan.prefill_tokens, flight.step, energy
        )
