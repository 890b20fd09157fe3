"""Which slot gets a request: candidates and the routers of docs/engine.md."""

from __future__ import annotations

import math

from .compile import kernel, part
from .prefix import caches, count_hits
from .state import (
    C_ROUTER,
    C_SEED,
    C_TICKET,
    DECODE,
    POWER_OF_TWO,
    PREFILL,
    PREFIX_AFFINITY,
    ROUND_ROBIN,
    SERVING,
    Engine,
)

FULL, UNFIT = -1, -2
LOAD_BOUND = 1.25


@part
def fits(engine: Engine, r: int, request: int) -> bool:
    """Whether the KV cache and the model's context of slot ``r`` can hold ``request`` to its end."""
    requests = engine.requests
    dep = engine.deployments[engine.slots[r].deployment]
    return requests[request].prompt + requests[request].output <= dep.max_tokens


@part
def has_room(engine: Engine, r: int, request: int) -> bool:
    """Whether slot ``r`` takes requests of this model in this phase, and one more."""
    slot, row = engine.slots[r], engine.requests[request]
    if slot.status != SERVING or slot.outstanding >= slot.limit or slot.role == (PREFILL if row.remote else DECODE):
        return False
    return row.model < 0 or engine.deployments[slot.deployment].model == row.model


@part
def is_candidate(engine: Engine, r: int, request: int, any_weight: bool) -> bool:
    """Whether ``request`` may go to slot ``r``."""
    return (
        (any_weight or engine.slots[r].route_weight > 0) and has_room(engine, r, request) and fits(engine, r, request)
    )


@part
def load(engine: Engine, r: int, equal: bool) -> float:
    """Requests in flight on slot ``r`` with one more, over its weight."""
    return (engine.slots[r].outstanding + 1) / (1.0 if equal else engine.slots[r].route_weight)


@part
def round_robin(engine: Engine, request: int, equal: bool) -> int:
    """Smooth weighted round robin (nginx): every candidate earns its weight, the richest is chosen and pays the sum."""
    slots = engine.slots
    best, paid = FULL, 0.0
    for r in range(slots.shape[0]):
        if not is_candidate(engine, r, request, equal):
            continue
        weight = 1.0 if equal else slots[r].route_weight
        slots[r].route_credit += weight
        paid += weight
        if best < 0 or slots[r].route_credit > slots[best].route_credit:
            best = r
    if best >= 0:
        slots[best].route_credit -= paid
    return best


@part
def least_outstanding(engine: Engine, request: int, equal: bool) -> int:
    """The candidate with the least load, the first of equals."""
    best, least = FULL, 0.0
    for r in range(engine.slots.shape[0]):
        if is_candidate(engine, r, request, equal):
            mine = load(engine, r, equal)
            if best < 0 or mine < least:
                best, least = r, mine
    return best


@part
def mix(ticket: int) -> int:
    """SplitMix64's finaliser (Steele et al., OOPSLA 2014) in 64 bits, its top bit cleared."""
    z = ticket
    z = (z ^ ((z >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    z = (z ^ ((z >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    return (z ^ ((z >> 31) & 0x1FFFFFFFF)) & 0x7FFFFFFFFFFFFFFF


@part
def nth_candidate(engine: Engine, request: int, equal: bool, n: int) -> int:
    """Slot of candidate number ``n``."""
    for r in range(engine.slots.shape[0]):
        if is_candidate(engine, r, request, equal):
            if n == 0:
                return r
            n -= 1
    return -1


@kernel
def power_of_two(engine: Engine, request: int, equal: bool) -> int:
    """The less loaded of two candidates drawn at random (Mitzenmacher, TPDS 2001)."""
    cursor = engine.cursor
    candidates = 0
    for r in range(engine.slots.shape[0]):
        if is_candidate(engine, r, request, equal):
            candidates += 1
    if candidates == 0:
        return FULL
    cursor[C_TICKET] += 1
    draw = mix(cursor[C_SEED] + cursor[C_TICKET])
    first = draw % candidates
    a = nth_candidate(engine, request, equal, first)
    if candidates == 1:
        return a
    b = nth_candidate(engine, request, equal, (first + 1 + (draw >> 32) % (candidates - 1)) % candidates)
    return b if load(engine, b, equal) < load(engine, a, equal) else a


@kernel
def prefix_affinity(engine: Engine, request: int, equal: bool) -> int:
    """The candidate with most of the prompt in its cache, among those not loaded far beyond their share."""
    slots, row = engine.slots, engine.requests[request]
    outstanding, weights = 0, 0.0
    for r in range(slots.shape[0]):
        if is_candidate(engine, r, request, equal):
            outstanding += slots[r].outstanding
            weights += 1.0 if equal else slots[r].route_weight
    best, most = FULL, -1
    for r in range(slots.shape[0]):
        if not is_candidate(engine, r, request, equal):
            continue
        share = (1.0 if equal else slots[r].route_weight) / weights
        if slots[r].outstanding + 1 > math.ceil(LOAD_BOUND * (outstanding + 1) * share):
            continue
        hits = count_hits(engine, r, request, row.prompt)[0] if caches(engine) and not row.remote else 0
        if hits > most or (hits == most and load(engine, r, equal) < load(engine, best, equal)):
            best, most = r, hits
    return best


@kernel
def choose(engine: Engine, request: int) -> int:
    """Slot for ``request``, by the router in force.

    Where no candidate has a weight, all count as equal: weights steer, they never strand a request.

    Returns:
        The slot; FULL if none of the model has room, UNFIT if none with room fits.
    """
    router = engine.cursor[C_ROUTER]
    for attempt in range(2):
        equal = attempt > 0
        if router == ROUND_ROBIN:
            r = round_robin(engine, request, equal)
        elif router == POWER_OF_TWO:
            r = power_of_two(engine, request, equal)
        elif router == PREFIX_AFFINITY:
            r = prefix_affinity(engine, request, equal)
        else:
            r = least_outstanding(engine, request, equal)
        if r >= 0:
            return r
    for other in range(engine.slots.shape[0]):
        if has_room(engine, other, request):
            return UNFIT
    return FULL
