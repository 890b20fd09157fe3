"""The window of a long workload that an engine holds: what has left goes, what comes next is added."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .kernels.state import (
    C_ALARMS,
    C_ARRIVAL,
    C_DONE,
    C_GATEWAY_HEAD,
    C_GATEWAY_TAIL,
    C_TIMERS,
    FINISHED,
    FOREVER,
    I64,
    LOST,
    REJECTED,
    TIMED_OUT,
    Engine,
    Records,
    mark_unfit,
)
from .workload.table import spans

GONE = (FINISHED, REJECTED, TIMED_OUT, LOST)


def remaining(engine: Engine) -> NDArray[np.int64]:
    """Rows of the requests that have not left, in order."""
    return np.flatnonzero(~np.isin(engine.requests["status"], GONE))


def roll(engine: Engine, rows: Records, hashes: I64) -> Engine:
    """Drops the requests that have left and appends others, which arrive later.

    The order of rows stays, and with it every tie that is broken by row.

    Args:
        engine: The engine; not to be used any more.
        rows: (N,) REQUEST to append, open loop.
        hashes: (P,) their prefix hashes.

    Returns:
        An engine of the same state that shares all arrays but those of the requests.
    """
    stay = remaining(engine)
    place = np.full(len(engine.requests) + 1, -1, np.int64)  # the last one stands for none
    place[stay] = np.arange(len(stay))
    old = engine.requests[stay]
    for name in ("link", "back"):
        old[name] = place[old[name]]
    kept = spans(old["prefix"], old["units"])
    old["prefix"] = np.cumsum(old["units"]) - old["units"]
    pending = int(np.searchsorted(stay, engine.cursor[C_ARRIVAL]))
    new = rows.copy()
    new["prefix"] += len(kept)
    mark_unfit(engine.deployments, new)
    requests = np.concatenate([old, new])
    _renumber(engine, place)
    engine.cursor[C_ARRIVAL] = pending
    engine.cursor[C_DONE] = 0
    _drop_alarms(engine)
    timer_ps, timer_item = _moved(
        engine.timer_ps, engine.timer_item, int(engine.cursor[C_TIMERS]), place, len(requests)
    )
    alarm_ps, alarm_item = _moved(
        engine.alarm_ps, engine.alarm_item, int(engine.cursor[C_ALARMS]), place, len(requests)
    )
    return engine.having(
        requests=requests,
        done=np.full(len(requests), -1, np.int64),
        timer_ps=timer_ps,
        timer_item=timer_item,
        alarm_ps=alarm_ps,
        alarm_item=alarm_item,
        hashes=np.concatenate([engine.hashes[kept], hashes]),
        held=np.concatenate([engine.held[kept], np.full(len(hashes), -1, np.int64)]),
    )


def _drop_alarms(engine: Engine) -> None:
    """Alarms of requests that have left would have no row; the others keep their order, which makes a heap."""
    alarms = int(engine.cursor[C_ALARMS])
    live = ~np.isin(engine.requests["status"][engine.alarm_item[:alarms]], GONE)
    pairs = sorted(zip(engine.alarm_ps[:alarms][live].tolist(), engine.alarm_item[:alarms][live].tolist(), strict=True))
    engine.cursor[C_ALARMS] = len(pairs)
    if pairs:
        engine.alarm_ps[: len(pairs)], engine.alarm_item[: len(pairs)] = np.array(pairs).T


def _moved(
    times_ps: I64, items: I64, size: int, place: NDArray[np.int64], rows: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A heap over the new rows."""
    new_ps, new_items = np.full(rows, FOREVER), np.full(rows, -1, np.int64)
    new_ps[:size], new_items[:size] = times_ps[:size], place[items[:size]]
    return new_ps, new_items


def _renumber(engine: Engine, place: NDArray[np.int64]) -> None:
    """Moves every mention of a request to its new row."""
    slots = engine.slots
    for name in ("partial", "queue_head"):
        slots[name] = place[slots[name]]
    engine.level_tail[:] = place[engine.level_tail]
    for r, (decodes, joiners) in enumerate(zip(slots["decodes"], slots["joiners"], strict=True)):
        engine.heap_request[r, :decodes] = place[engine.heap_request[r, :decodes]]
        engine.joiner[r, :joiners] = place[engine.joiner[r, :joiners]]
    for cell in (C_GATEWAY_HEAD, C_GATEWAY_TAIL):
        engine.cursor[cell] = place[engine.cursor[cell]]
