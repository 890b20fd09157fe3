"""The built-in routers: each chooses one of some slots, which have positive weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .replica import Replica
from .request import Request

MASK = 2**64 - 1
BALANCE = 1.25  # how far above its share of the load a slot may go for the sake of its cache


def total(weights: Sequence[float]) -> float:
    """The sum from left to right; since Python 3.12, ``sum`` rounds otherwise."""
    result = 0.0
    for weight in weights:
        result += weight
    return result


def round_robin(slots: Sequence[Replica], weights: Sequence[float]) -> Replica:
    """Smooth weighted round robin (nginx): everyone earns its weight, the richest is chosen and pays for all."""
    for slot, weight in zip(slots, weights, strict=True):
        slot.credit += weight
    chosen = max(slots, key=lambda slot: slot.credit)
    chosen.credit -= total(weights)
    return chosen


def least_outstanding(slots: Sequence[Replica], weights: Sequence[float]) -> Replica:
    """The slot with the fewest requests for its weight, the new one included."""
    return _least(range(len(slots)), slots, weights)


def power_of_two(slots: Sequence[Replica], weights: Sequence[float], ticket: int) -> Replica:
    """The less loaded of two slots drawn at random; the ticket determines the draw."""
    n = len(slots)
    if n == 1:
        return slots[0]
    draw = mix(ticket) & MASK >> 1
    first = draw % n
    second = (first + 1 + (draw >> 32) % (n - 1)) % n
    return _least((first, second), slots, weights)


def prefix_affinity(slots: Sequence[Replica], weights: Sequence[float], request: Request) -> Replica:
    """The slot that has most of the prompt cached, among those whose load is not much above their share."""
    load = sum(slot.outstanding for slot in slots) + 1
    whole = total(weights)
    bounded = [
        i for i, slot in enumerate(slots) if slot.outstanding + 1 <= math.ceil(BALANCE * load * weights[i] / whole)
    ]
    cached = [len(slots[i].scheduler.hit(request)) for i in bounded]
    return _least([i for i, units in zip(bounded, cached, strict=True) if units == max(cached)], slots, weights)


def mix(x: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    x &= MASK
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


def _least(among: Sequence[int], slots: Sequence[Replica], weights: Sequence[float]) -> Replica:
    return slots[min(among, key=lambda i: (slots[i].outstanding + 1) / weights[i])]
