"""The gateway: requests come in, wait for room, are sent to slots."""

from __future__ import annotations

from .compile import kernel, part
from .leave import leave
from .queues import heap_remove, push_back, sift_up
from .replica import run_replica
from .router import FULL, choose
from .state import (
    AT_GATEWAY,
    C_ALARMS,
    C_GATEWAY_COUNT,
    C_GATEWAY_DUE,
    C_GATEWAY_HEAD,
    C_GATEWAY_TAIL,
    C_LIMITED,
    C_ROUTER,
    C_SENT,
    C_SENT_TOKENS,
    FOREVER,
    IN_TRANSFER,
    PREFIX_AFFINITY,
    REJECTED,
    ROUND_ROBIN,
    TIMED_OUT,
    WAITING,
    Engine,
)


@kernel
def settle(engine: Engine, now: int) -> None:
    """Lets the requests that leave by ``now`` leave, if the router cares.

    All that the slots have done is needed where it looks into their caches.
    """
    cursor = engine.cursor
    if cursor[C_ROUTER] == ROUND_ROBIN and not cursor[C_LIMITED]:
        return
    for r in range(engine.slots.shape[0]):
        if engine.slots[r].bound_ps <= now or cursor[C_ROUTER] == PREFIX_AFFINITY:
            run_replica(engine, r, now)


@part
def queue_up(engine: Engine, r: int, request: int) -> None:
    """Puts ``request`` into the queue of slot ``r``, which has been run to the present."""
    slot, row = engine.slots[r], engine.requests[request]
    row.status = WAITING
    row.slot = r
    slot.outstanding += 1
    push_back(engine, r, request)
    slot.bound_ps = max(slot.now_ps, slot.flight_end_ps)


@kernel
def send(engine: Engine, r: int, request: int, now: int) -> None:
    """Sends ``request`` to slot ``r`` at time ``now``."""
    run_replica(engine, r, now)
    queue_up(engine, r, request)


@part
def place_of(engine: Engine, request: int) -> int:
    """Where ``request`` counts among those held: by model, any being the first, and by phase."""
    return 2 * (engine.requests[request].model + 1) + engine.requests[request].remote


@kernel
def hold(engine: Engine, request: int) -> None:
    """Keeps ``request`` at the gateway until some slot has room for it."""
    cursor, row = engine.cursor, engine.requests[request]
    row.status = AT_GATEWAY
    row.link = -1
    row.back = cursor[C_GATEWAY_TAIL]
    if row.back >= 0:
        engine.requests[row.back].link = request
    else:
        cursor[C_GATEWAY_HEAD] = request
    cursor[C_GATEWAY_TAIL] = request
    cursor[C_GATEWAY_COUNT] += 1
    engine.crowd[place_of(engine, request)] += 1
    if row.timeout_ps >= 0 and not row.alarmed:
        set_alarm(engine, request)


@part
def set_alarm(engine: Engine, request: int) -> None:
    """Notes when the client of ``request`` gives up; each has one alarm at most, which may find it gone or patient."""
    row, size = engine.requests[request], engine.cursor[C_ALARMS]
    engine.alarm_ps[size] = row.sent_ps + row.timeout_ps + 1
    engine.alarm_item[size] = request
    sift_up(engine.alarm_ps, engine.alarm_item, size)
    engine.cursor[C_ALARMS] = size + 1
    row.alarmed = 1


@part
def unhold(engine: Engine, request: int) -> None:
    """Takes ``request`` out of those held."""
    cursor, row = engine.cursor, engine.requests[request]
    if row.back >= 0:
        engine.requests[row.back].link = row.link
    else:
        cursor[C_GATEWAY_HEAD] = row.link
    if row.link >= 0:
        engine.requests[row.link].back = row.back
    else:
        cursor[C_GATEWAY_TAIL] = row.back
    cursor[C_GATEWAY_COUNT] -= 1
    engine.crowd[place_of(engine, request)] -= 1


@kernel
def expire(engine: Engine, now: int) -> bool:
    """Lets the clients go who have been held for too long; whether there were any."""
    cursor, left = engine.cursor, False
    while cursor[C_ALARMS] > 0 and engine.alarm_ps[0] <= now:
        request = engine.alarm_item[0]
        row = engine.requests[request]
        heap_remove(engine.alarm_ps, engine.alarm_item, 0, cursor[C_ALARMS])
        cursor[C_ALARMS] -= 1
        row.alarmed = 0
        if row.status == AT_GATEWAY and row.generated == 0:
            if now > row.sent_ps + row.timeout_ps:
                unhold(engine, request)
                leave(engine, request, TIMED_OUT, now)
                left = True
            else:
                set_alarm(engine, request)
    return left


@kernel
def serve(engine: Engine, now: int) -> None:
    """Tries every held request once more, in the order in which they came to be held.

    Once there is no room for a model in a phase (prompt or transferred), its further requests are passed over.
    """
    cursor, requests, blocked, crowd = engine.cursor, engine.requests, engine.blocked, engine.crowd
    cursor[C_GATEWAY_DUE] = FOREVER
    expire(engine, now)
    settle(engine, now)
    hopeful = cursor[C_GATEWAY_COUNT]
    for place in range(blocked.shape[0]):
        blocked[place] = 0
    request = cursor[C_GATEWAY_HEAD]
    while request >= 0 and hopeful > 0:
        following, remote = requests[request].link, requests[request].remote
        place = place_of(engine, request)
        if not blocked[place]:
            r = choose(engine, request)
            if r >= 0:
                hopeful -= 1
                unhold(engine, request)
                run_replica(engine, r, now)
                queue_up(engine, r, request)
            elif r == FULL:
                last = place if place > 1 else blocked.shape[0] - 2 + remote
                for other in range(place, last + 1, 2):
                    if not blocked[other]:
                        blocked[other] = 1
                        hopeful -= crowd[other]
        request = following


@kernel
def dispatch(engine: Engine, request: int, now: int) -> None:
    """Routes one request at time ``now``, or holds it."""
    settle(engine, now)
    r = choose(engine, request)
    if r < 0:
        hold(engine, request)
    else:
        run_replica(engine, r, now)
        queue_up(engine, r, request)


@part
def come_in(engine: Engine, request: int, now: int) -> bool:
    """A request is sent, sent again or transferred; whether it wants a slot: one that none could hold is rejected."""
    row, cursor = engine.requests[request], engine.cursor
    if row.status == IN_TRANSFER:
        return True
    cursor[C_SENT] += 1
    cursor[C_SENT_TOKENS] += row.prompt
    row.sent_ps = now
    if row.think_ps >= 0 and row.attempts == 0:
        row.arrival_ps = now
    if row.unfit:
        leave(engine, request, REJECTED, now)
        return False
    return True
