"""The built-in routers: each chooses one of some slots, which have positive weights.

They ask no more of a slot than :class:`Loaded` says, so that a gateway before real servers decides by the same code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

MASK = 2**64 - 1
BALANCE = 1.25  # how far above its share of the load a slot may go for the sake of its cache


class Loaded(Protocol):
    """A slot as routers see it.

    Attributes:
        credit: What it has earned and not yet spent in the round robin.
    """

    credit: float

    @property
    def outstanding(self) -> int:
        """Requests in flight."""


Slot = TypeVar("Slot", bound=Loaded)


def total(weights: Sequence[float]) -> float:
    """The sum from left to right; since Python 3.12, ``sum`` rounds otherwise."""
    result = 0.0
    for weight in weights:
        result += weight
    return result


def round_robin(slots: Sequence[Slot], weights: Sequence[float]) -> Slot:
    """Smooth weighted round robin (nginx): everyone earns its weight, the richest is chosen and pays for all."""
    for slot, weight in zip(slots, weights, strict=True):
        slot.credit += weight
    chosen = max(slots, key=lambda slot: slot.credit)
    chosen.credit -= total(weights)
    return chosen


def least_outstanding(slots: Sequence[Slot], weights: Sequence[float]) -> Slot:
    """The slot with the fewest requests for its weight, the new one included."""
    return _least(range(len(slots)), slots, weights)


def power_of_two(slots: Sequence[Slot], weights: Sequence[float], ticket: int) -> Slot:
    """The less loaded of two slots drawn at random; the ticket determines the draw."""
    n = len(slots)
    if n == 1:
        return slots[0]
    draw = mix(ticket) & MASK >> 1
    first = draw % n
    second = (first + 1 + (draw >> 32) % (n - 1)) % n
    return _least((first, second), slots, weights)


def prefix_affinity(slots: Sequence[Slot], weights: Sequence[float], hits: Callable[[Slot], int]) -> Slot:
    """The slot that has most of the prompt cached, among those whose load is not much above their share.

    Args:
        slots: The slots.
        weights: Their weights.
        hits: How much of the prompt a slot has cached.
    """
    load = sum(slot.outstanding for slot in slots) + 1
    whole = total(weights)
    bounded = [
        i for i, slot in enumerate(slots) if slot.outstanding + 1 <= math.ceil(BALANCE * load * weights[i] / whole)
    ]
    cached = [hits(slots[i]) for i in bounded]
    return _least([i for i, units in zip(bounded, cached, strict=True) if units == max(cached)], slots, weights)


def mix(x: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    x &= MASK
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


def _least(among: Sequence[int], slots: Sequence[Slot], weights: Sequence[float]) -> Slot:
    return slots[min(among, key=lambda i: (slots[i].outstanding + 1) / weights[i])]
