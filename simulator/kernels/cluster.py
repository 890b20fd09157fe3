"""The advance of all slots of a cluster from event to event, and the failure of one."""

from __future__ import annotations

from typing import Any

from .compile import kernel, part
from .gateway import come_in, dispatch, expire, hold, serve, settle
from .leave import leave
from .physics import spend, spent_by
from .prefix import clear_cache
from .queues import pop_timer
from .replica import run_replica
from .state import (
    C_ALARMS,
    C_ARRIVAL,
    C_COUPLED,
    C_GATEWAY_COUNT,
    C_GATEWAY_DUE,
    C_NOW,
    C_ON_FAILURE,
    C_ROUTER,
    C_TIMERS,
    EXTERNAL,
    FAIL,
    FOREVER,
    LOST,
    RESTART,
    RUNNING,
    WAITING,
    Engine,
)

REACHED, GATEWAY = -1, -2


@part
def next_arrival(engine: Engine) -> Any:
    """Time of the next open-loop arrival; skips rows that a closed-loop client releases."""
    cursor, requests = engine.cursor, engine.requests
    while cursor[C_ARRIVAL] < requests.shape[0] and requests[cursor[C_ARRIVAL]].think_ps >= 0:
        cursor[C_ARRIVAL] += 1
    if cursor[C_ARRIVAL] >= requests.shape[0]:
        return FOREVER
    return requests[cursor[C_ARRIVAL]].arrival_ps


@part
def gateway_due(engine: Engine) -> Any:
    """When the gateway is to be looked after: room may have come, or a held client gives up."""
    cursor = engine.cursor
    if cursor[C_GATEWAY_COUNT] == 0:
        return FOREVER
    alarm: Any = engine.alarm_ps[0] if cursor[C_ALARMS] > 0 else FOREVER
    return min(cursor[C_GATEWAY_DUE], alarm)


@kernel
def earliest_bound(engine: Engine) -> Any:
    """A time before which no request leaves any slot."""
    bound: Any = FOREVER
    for r in range(engine.slots.shape[0]):
        bound = min(bound, engine.slots[r].bound_ps)
    return bound


@kernel
def advance(engine: Engine, until: int, control: bool) -> Any:
    """Runs the cluster to ``until``: arrivals before it are routed, iterations that begin before it are launched.

    Args:
        engine: The engine.
        until: Picoseconds.
        control: Whether something was changed from outside, so that the gateway is served first.

    Returns:
        REACHED. With a router object, also a request that wants a slot, or GATEWAY if the held ones do, at ``C_NOW``;
        to be called again when that is done.
    """
    cursor, slots = engine.cursor, engine.slots
    external = cursor[C_ROUTER] == EXTERNAL
    if control and cursor[C_GATEWAY_COUNT] > 0:
        if external:
            return GATEWAY
        serve(engine, cursor[C_NOW])
    while True:
        arrival = min(next_arrival(engine), until)
        timer: Any = engine.timer_ps[0] if cursor[C_TIMERS] > 0 else FOREVER
        gateway = gateway_due(engine)
        due = min(timer, gateway)
        if cursor[C_COUPLED]:
            bound = earliest_bound(engine)
            if bound < min(arrival, due):
                for r in range(slots.shape[0]):
                    if slots[r].bound_ps <= bound:
                        run_replica(engine, r, bound + 1)
                continue
        now = min(arrival, due)
        if now >= until:
            break
        cursor[C_NOW] = now
        if due < arrival and gateway <= timer:
            room = cursor[C_GATEWAY_DUE] <= now
            left = expire(engine, now)
            if external and (room or left):
                settle(engine, now)
                return GATEWAY
            if room:
                serve(engine, now)
            continue
        if due < arrival:
            request = pop_timer(engine)
        else:
            request = cursor[C_ARRIVAL]
            cursor[C_ARRIVAL] += 1
        if come_in(engine, request, now):
            if external:
                settle(engine, now)
                return request
            dispatch(engine, request, now)
    for r in range(slots.shape[0]):
        run_replica(engine, r, until)
    cursor[C_NOW] = until
    return REACHED


@kernel
def empty_slot(engine: Engine, r: int, now: int) -> None:
    """Drops whatever slot ``r`` does at time ``now``, which it has reached; its requests keep their status."""
    slot, requests = engine.slots[r], engine.requests
    if slot.flight_end_ps >= 0:
        spend(engine, r, spent_by(engine, r, now) - slot.flight_spent)
    for i in range(slot.decodes):
        request = engine.heap_request[r, i]
        requests[request].generated = requests[request].output - (engine.heap_key[r, i] - slot.iteration)
    for i in range(engine.phase.shape[1]):
        engine.phase[r, i] = 0
    for level in range(engine.level_tail.shape[1]):
        engine.level_tail[r, level] = -1
    slot.now_ps, slot.bound_ps = now, now
    slot.flight_end_ps, slot.partial, slot.queue_head = -1, -1, -1
    slot.decodes, slot.context, slot.joiners, slot.waiting, slot.outstanding, slot.governed = 0, 0, 0, 0, 0, 0
    clear_cache(engine, r)


@kernel
def evict(engine: Engine, r: int, now: int) -> None:
    """Slot ``r`` fails: its requests, in the order of their rows, fail or go back to the gateway, by policy."""
    policy = engine.cursor[C_ON_FAILURE]
    empty_slot(engine, r, now)
    for request in range(engine.requests.shape[0]):
        row = engine.requests[request]
        if row.slot != r or (row.status != WAITING and row.status != RUNNING):
            continue
        row.covered = 0
        if policy == FAIL or (policy != RESTART and row.first_token_ps >= 0):
            leave(engine, request, LOST, now)
        else:
            row.generated, row.first_token_ps, row.remote = 0, -1, 0
            hold(engine, request)
