"""Linked queues of requests, by priority level, and heaps."""

from __future__ import annotations

from .compile import part
from .state import C_TIMERS, I64, Engine


@part
def _insert(engine: Engine, r: int, before: int, request: int) -> None:
    """Links ``request`` behind ``before`` in the queue of slot ``r``, or at its head where that is -1."""
    slot, requests = engine.slots[r], engine.requests
    level = requests[request].level
    if before >= 0:
        following = requests[before].link
        requests[before].link = request
    else:
        following = slot.queue_head
        slot.queue_head = request
    requests[request].link = following
    if following < 0 or requests[following].level != level:
        engine.level_tail[r, level] = request
    slot.waiting += 1


@part
def _last_up_to(engine: Engine, r: int, level: int) -> int:
    """The last waiting request of ``level`` or a more urgent one, -1 if there is none."""
    for urgent in range(level, -1, -1):
        if engine.level_tail[r, urgent] >= 0:
            return engine.level_tail[r, urgent]
    return -1


@part
def push_back(engine: Engine, r: int, request: int) -> None:
    """Appends to its level in the waiting queue of slot ``r``."""
    _insert(engine, r, _last_up_to(engine, r, engine.requests[request].level), request)


@part
def push_preempted(engine: Engine, r: int, request: int) -> None:
    """Puts a preempted request back: to the head, or by priority to its place in order of arrival."""
    slot, requests = engine.slots[r], engine.requests
    if not engine.deployments[slot.deployment].by_priority:
        _insert(engine, r, -1, request)
        return
    level, arrival = requests[request].level, requests[request].arrival_ps
    before = _last_up_to(engine, r, level - 1)
    following = requests[before].link if before >= 0 else slot.queue_head
    while following >= 0 and requests[following].level == level:
        other = requests[following].arrival_ps
        if other > arrival or (other == arrival and following > request):
            break
        before, following = following, requests[following].link
    _insert(engine, r, before, request)


@part
def pop_front(engine: Engine, r: int) -> int:
    """Takes the head of the waiting queue of slot ``r``, which must not be empty."""
    slot, requests = engine.slots[r], engine.requests
    request = slot.queue_head
    level = requests[request].level
    slot.queue_head = requests[request].link
    if engine.level_tail[r, level] == request:
        engine.level_tail[r, level] = -1
    slot.waiting -= 1
    return request


@part
def precedes(key: I64, item: I64, i: int, j: int) -> bool:
    """Whether cell ``i`` comes before cell ``j``: by key, and among equals by item, so that the order is defined."""
    return key[i] < key[j] or (key[i] == key[j] and item[i] < item[j])


@part
def sift_up(key: I64, item: I64, i: int) -> None:
    """Restores the heap after cell ``i`` got smaller."""
    while i > 0:
        parent = (i - 1) >> 1
        if not precedes(key, item, i, parent):
            return
        key[parent], key[i] = key[i], key[parent]
        item[parent], item[i] = item[i], item[parent]
        i = parent


@part
def sift_down(key: I64, item: I64, i: int, size: int) -> None:
    """Restores the heap after cell ``i`` got larger."""
    while True:
        child = 2 * i + 1
        if child >= size:
            return
        if child + 1 < size and precedes(key, item, child + 1, child):
            child += 1
        if not precedes(key, item, child, i):
            return
        key[child], key[i] = key[i], key[child]
        item[child], item[i] = item[i], item[child]
        i = child


@part
def heap_remove(key: I64, item: I64, i: int, size: int) -> None:
    """Removes cell ``i`` of a heap of ``size`` cells."""
    last = size - 1
    key[i], item[i] = key[last], item[last]
    if i < last:
        sift_up(key, item, i)
        sift_down(key, item, i, last)


@part
def push_timer(engine: Engine, due: int, request: int) -> None:
    """Lets something happen to ``request`` at ``due``: its release, its next attempt or the end of its transfer."""
    size = engine.cursor[C_TIMERS]
    engine.timer_ps[size] = due
    engine.timer_item[size] = request
    sift_up(engine.timer_ps, engine.timer_item, size)
    engine.cursor[C_TIMERS] = size + 1


@part
def pop_timer(engine: Engine) -> int:
    """Takes the request of the earliest timer."""
    request = engine.timer_item[0]
    size = engine.cursor[C_TIMERS]
    heap_remove(engine.timer_ps, engine.timer_item, 0, size)
    engine.cursor[C_TIMERS] = size - 1
    return request
