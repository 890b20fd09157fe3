"""The gateway: requests come in, wait for room, are sent to slots."""

from __future__ import annotations

from .compile import kernel, part
from .leave import leave
from .queues import push_back
from .replica import run_replica
from .router import FULL, choose
from .state import (
    AT_GATEWAY,
    C_GATEWAY_COUNT,
    C_GATEWAY_DUE,
    C_GATEWAY_HEAD,
    C_GATEWAY_TAIL,
    C_LIMITED,
    C_PATIENCE,
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


@kernel
def hold(engine: Engine, request: int) -> None:
    """Keeps ``request`` at the gateway until some slot has room for it."""
    cursor, row = engine.cursor, engine.requests[request]
    row.status = AT_GATEWAY
    row.link = -1
    if cursor[C_GATEWAY_TAIL] >= 0:
        engine.requests[cursor[C_GATEWAY_TAIL]].link = request
    else:
        cursor[C_GATEWAY_HEAD] = request
    cursor[C_GATEWAY_TAIL] = request
    cursor[C_GATEWAY_COUNT] += 1
    if row.timeout_ps >= 0 and row.generated == 0:
        cursor[C_PATIENCE] = min(cursor[C_PATIENCE], row.sent_ps + row.timeout_ps)


@part
def unhold(engine: Engine, before: int, request: int) -> None:
    """Takes ``request``, which follows ``before`` (-1: is the head), out of those held."""
    cursor, following = engine.cursor, engine.requests[request].link
    if before >= 0:
        engine.requests[before].link = following
    else:
        cursor[C_GATEWAY_HEAD] = following
    if following < 0:
        cursor[C_GATEWAY_TAIL] = before
    cursor[C_GATEWAY_COUNT] -= 1


@kernel
def expire(engine: Engine, now: int) -> None:
    """Lets the clients go who have been held for too long."""
    cursor, requests = engine.cursor, engine.requests
    if now <= cursor[C_PATIENCE]:
        return
    cursor[C_PATIENCE] = FOREVER
    before, request = -1, cursor[C_GATEWAY_HEAD]
    while request >= 0:
        following = requests[request].link
        until = requests[request].sent_ps + requests[request].timeout_ps
        if requests[request].timeout_ps < 0 or requests[request].generated > 0:
            before = request
        elif now > until:
            unhold(engine, before, request)
            leave(engine, request, TIMED_OUT, now)
        else:
            cursor[C_PATIENCE] = min(cursor[C_PATIENCE], until)
            before = request
        request = following


@kernel
def serve(engine: Engine, now: int) -> None:
    """Tries every held request once more, in the order in which they came to be held.

    Once there is no room for a model in a phase (prompt or transferred), its further requests are passed over.
    """
    cursor, requests = engine.cursor, engine.requests
    cursor[C_GATEWAY_DUE] = FOREVER
    expire(engine, now)
    settle(engine, now)
    blocked = engine.blocked
    for place in range(blocked.shape[0]):
        blocked[place] = 0
    open_places = blocked.shape[0]
    before, request = -1, cursor[C_GATEWAY_HEAD]
    while request >= 0 and open_places > 0:
        following, remote = requests[request].link, requests[request].remote
        place = 2 * (requests[request].model + 1) + remote
        r = FULL if blocked[place] else choose(engine, request)
        if r >= 0:
            unhold(engine, before, request)
            run_replica(engine, r, now)
            queue_up(engine, r, request)
        else:
            before = request
        if r == FULL:
            last = place if place > 1 else blocked.shape[0] - 2 + remote
            for other in range(place, last + 1, 2):
                open_places -= 1 - blocked[other]
                blocked[other] = 1
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
