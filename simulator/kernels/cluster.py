"""Arrivals, routing and the advance of all slots of a cluster."""

from __future__ import annotations

from typing import Any

from .compile import kernel, part
from .queues import push_back, sift_down
from .replica import leave, run_replica
from .state import (
    AT_GATEWAY,
    C_ARRIVAL,
    C_CLOSED_LOOP,
    C_GATEWAY_COUNT,
    C_GATEWAY_HEAD,
    C_GATEWAY_TAIL,
    C_NOW,
    C_RELEASES,
    C_SENT,
    C_SENT_TOKENS,
    FOREVER,
    LEAST_OUTSTANDING,
    REJECTED,
    SERVING,
    TIMED_OUT,
    WAITING,
    Engine,
)

HELD = -1


@part
def fits(engine: Engine, r: int, request: int) -> bool:
    """Whether the KV cache and the model's context of slot ``r`` can hold ``request`` to its end."""
    requests = engine.requests
    dep = engine.deployments[engine.slots[r].deployment]
    tokens = requests[request].prompt + requests[request].output
    return tokens <= dep.max_model_len and tokens <= dep.kv_blocks * dep.block_size


@part
def serves(engine: Engine, r: int, request: int) -> bool:
    """Whether slot ``r`` takes new requests of the model that ``request`` asks for."""
    slot, model = engine.slots[r], engine.requests[request].model
    return slot.status == SERVING and (model < 0 or engine.deployments[slot.deployment].model == model)


@kernel
def choose(engine: Engine, request: int) -> int:
    """Slot for ``request``: among serving slots of its model that can hold it, by the router in force; else HELD.

    Where all candidates have weight 0, they count as equal: weights steer, they never strand a request.
    """
    slots = engine.slots
    candidates, total = 0, 0.0
    for r in range(slots.shape[0]):
        if serves(engine, r, request) and fits(engine, r, request):
            candidates += 1
            total += slots[r].route_weight
    if candidates == 0:
        return HELD
    equal = total <= 0.0
    best, best_score, weights = -1, 0.0, 0.0
    for r in range(slots.shape[0]):
        weight = 1.0 if equal else slots[r].route_weight
        if weight <= 0.0 or not serves(engine, r, request) or not fits(engine, r, request):
            continue
        if engine.router[0] == LEAST_OUTSTANDING:
            score = -(slots[r].outstanding + 1) / weight
        else:
            # Smooth weighted round robin (nginx): everyone earns its weight, the richest pays the total.
            slots[r].route_credit += weight
            weights += weight
            score = slots[r].route_credit
        if best < 0 or score > best_score:
            best, best_score = r, score
    if engine.router[0] != LEAST_OUTSTANDING:
        slots[best].route_credit -= weights
    return best


@kernel
def hold(engine: Engine, request: int) -> None:
    """Keeps ``request`` at the gateway until some slot serves its model."""
    cursor, requests = engine.cursor, engine.requests
    requests[request].status = AT_GATEWAY
    requests[request].link = -1
    if cursor[C_GATEWAY_TAIL] >= 0:
        requests[cursor[C_GATEWAY_TAIL]].link = request
    else:
        cursor[C_GATEWAY_HEAD] = request
    cursor[C_GATEWAY_TAIL] = request
    cursor[C_GATEWAY_COUNT] += 1


@kernel
def dispatch(engine: Engine, request: int, now: int) -> None:
    """Routes one request at time ``now``."""
    slots, requests = engine.slots, engine.requests
    if engine.router[0] == LEAST_OUTSTANDING:
        for r in range(slots.shape[0]):
            if slots[r].bound_ps <= now:
                run_replica(engine, r, now)
    r = choose(engine, request)
    if r == HELD:
        hold(engine, request)
        return
    run_replica(engine, r, now)
    requests[request].status = WAITING
    requests[request].slot = r
    slots[r].outstanding += 1
    push_back(engine, r, request)
    slots[r].bound_ps = max(slots[r].now_ps, slots[r].flight_end_ps)


@kernel
def arrive(engine: Engine, request: int, now: int) -> None:
    """A client's request comes in at time ``now``; one that no slot could ever hold is rejected."""
    requests, cursor = engine.requests, engine.cursor
    cursor[C_SENT] += 1
    cursor[C_SENT_TOKENS] += requests[request].prompt
    if requests[request].unfit:
        leave(engine, -1, request, REJECTED, now)
    else:
        dispatch(engine, request, now)


@kernel
def empty_gateway(engine: Engine, now: int) -> None:
    """Tries every held request once more, in order of arrival; drops those whose client has gone."""
    cursor, requests = engine.cursor, engine.requests
    request = cursor[C_GATEWAY_HEAD]
    cursor[C_GATEWAY_HEAD], cursor[C_GATEWAY_TAIL], cursor[C_GATEWAY_COUNT] = -1, -1, 0
    while request >= 0:
        following = requests[request].link
        patience = requests[request].timeout_ps
        if patience >= 0 and now > requests[request].arrival_ps + patience:
            leave(engine, -1, request, TIMED_OUT, now)
        else:
            dispatch(engine, request, now)
        request = following


@kernel
def next_arrival(engine: Engine) -> Any:
    """Time of the next open-loop arrival; skips rows that a closed-loop client releases."""
    cursor, requests = engine.cursor, engine.requests
    while cursor[C_ARRIVAL] < requests.shape[0] and requests[cursor[C_ARRIVAL]].think_ps >= 0:
        cursor[C_ARRIVAL] += 1
    if cursor[C_ARRIVAL] >= requests.shape[0]:
        return FOREVER
    return requests[cursor[C_ARRIVAL]].arrival_ps


@kernel
def advance_closed_loop(engine: Engine, until: int) -> int:
    """Brings every slot to the earliest time at which a finish could release a request before ``until``.

    Returns:
        The release due now, or -1 where none is left before ``until``.
    """
    cursor, requests, slots = engine.cursor, engine.requests, engine.slots
    while True:
        due = engine.release_key[0] if cursor[C_RELEASES] > 0 else FOREVER
        bound: Any = FOREVER
        for r in range(slots.shape[0]):
            bound = min(bound, slots[r].bound_ps)
        if min(due, bound) >= until:
            return -1
        if due <= bound:
            cursor[C_RELEASES] -= 1
            last = cursor[C_RELEASES]
            request = engine.release_item[0]
            engine.release_key[0] = engine.release_key[last]
            engine.release_item[0] = engine.release_item[last]
            sift_down(engine.release_key, engine.release_item, 0, last)
            requests[request].arrival_ps = due
            return request
        for r in range(slots.shape[0]):
            if slots[r].bound_ps <= bound:
                run_replica(engine, r, bound + 1)


@kernel
def advance(engine: Engine, until: int) -> None:
    """Runs the cluster to ``until``: arrivals before it are routed, iterations that begin before it are launched."""
    cursor = engine.cursor
    if cursor[C_GATEWAY_COUNT] > 0:
        empty_gateway(engine, cursor[C_NOW])
    while True:
        arrival = min(next_arrival(engine), until)
        if cursor[C_CLOSED_LOOP]:
            released = advance_closed_loop(engine, arrival)
            if released >= 0:
                arrive(engine, released, engine.requests[released].arrival_ps)
                continue
        if arrival >= until:
            break
        request = cursor[C_ARRIVAL]
        cursor[C_ARRIVAL] += 1
        arrive(engine, request, arrival)
    for r in range(engine.slots.shape[0]):
        run_replica(engine, r, until)
    cursor[C_NOW] = until
