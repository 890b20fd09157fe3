"""How requests leave a slot: for good, for another try, or for the slot that decodes them."""

from __future__ import annotations

from .compile import kernel, part
from .queues import push_timer
from .state import (
    C_BACKOFF_PS,
    C_DONE,
    C_GATEWAY_COUNT,
    C_GATEWAY_DUE,
    C_LIMITED,
    C_RETRIES,
    IN_TRANSFER,
    PENDING,
    TIMED_OUT,
    Engine,
)


@part
def make_room(engine: Engine, r: int, now: int) -> None:
    """A request has left slot ``r``: where requests are held for want of room, the gateway is served soon.

    One picosecond later at least, as everything that a finish causes elsewhere: the slots have scheduled by then.
    """
    cursor = engine.cursor
    engine.slots[r].outstanding -= 1
    if cursor[C_LIMITED] and cursor[C_GATEWAY_COUNT] > 0:
        cursor[C_GATEWAY_DUE] = min(cursor[C_GATEWAY_DUE], now + 1)


@part
def leave(engine: Engine, request: int, status: int, now: int) -> None:
    """Ends ``request``, or lets its client try again; in a closed loop, schedules the client's next one."""
    row, cursor = engine.requests[request], engine.cursor
    if status == TIMED_OUT and row.attempts < cursor[C_RETRIES]:
        push_timer(engine, now + max(cursor[C_BACKOFF_PS] << row.attempts, 1), request)
        row.status = PENDING
        row.attempts += 1
        return
    row.status = status
    row.finish_ps = now
    engine.done[cursor[C_DONE]] = request
    cursor[C_DONE] += 1
    if row.follower >= 0:
        following = engine.requests[row.follower]
        if following.think_ps >= 0:
            push_timer(engine, max(now + max(following.think_ps, 1), following.arrival_ps), row.follower)


@kernel
def hand_over(engine: Engine, r: int, request: int, now: int) -> None:
    """Sends the KV cache of a prompt from slot ``r`` over its link, which takes one transfer at a time."""
    slot, row = engine.slots[r], engine.requests[request]
    dep = engine.deployments[slot.deployment]
    slot.link_free_ps = max(now, slot.link_free_ps) + row.prompt * dep.transfer_ps
    row.status = IN_TRANSFER
    row.remote = 1
    push_timer(engine, max(slot.link_free_ps + dep.transfer_latency_ps, now + 1), request)
    make_room(engine, r, now)
