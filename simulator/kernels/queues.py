"""Linked queues of requests, the heap on finishing iterations, and the heap of closed-loop releases."""

from __future__ import annotations

from .compile import part
from .state import I64, Engine


@part
def push_back(engine: Engine, r: int, request: int) -> None:
    """Appends to the waiting queue of slot ``r``."""
    slot, requests = engine.slots[r], engine.requests
    requests[request].link = -1
    if slot.queue_tail >= 0:
        requests[slot.queue_tail].link = request
    else:
        slot.queue_head = request
    slot.queue_tail = request
    slot.waiting += 1


@part
def push_front(engine: Engine, r: int, request: int) -> None:
    """Puts a preempted request at the head of the waiting queue of slot ``r``."""
    slot, requests = engine.slots[r], engine.requests
    requests[request].link = slot.queue_head
    slot.queue_head = request
    if slot.queue_tail < 0:
        slot.queue_tail = request
    slot.waiting += 1


@part
def pop_front(engine: Engine, r: int) -> int:
    """Takes the head of the waiting queue of slot ``r``, which must not be empty."""
    slot, requests = engine.slots[r], engine.requests
    request = slot.queue_head
    slot.queue_head = requests[request].link
    if slot.queue_head < 0:
        slot.queue_tail = -1
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
