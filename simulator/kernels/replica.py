"""Continuous batching of one slot, after vLLM V1: decodes first, chunked prefill, paged KV cache, preemption.

Iterations with a prefill are taken one at a time. While only decodes run, the batch is a line in the number of
iterations, and the engine leaps to the next finish, arrival, bin edge, block shortage or change of the roofline.
"""

from __future__ import annotations

import math

from .compile import kernel, part
from .physics import account, busy_power_w, govern, idle_until
from .queues import heap_remove, pop_front, push_front, sift_up
from .state import (
    BIN_PS,
    BINS,
    C_ADMITTED,
    C_DONE,
    C_RELEASES,
    CLOCK,
    COMPUTE,
    DRAINING,
    FINISHED,
    FIXED,
    FOREVER,
    MEMORY,
    RUNNING,
    SERVING,
    TIMED_OUT,
    WAITING,
    Engine,
)

MANY = 2**40


@part
def blocks(tokens: int, block_size: int) -> int:
    """KV blocks that hold ``tokens``."""
    return (tokens + block_size - 1) // block_size


@kernel
def leave(engine: Engine, r: int, request: int, status: int, now: int) -> None:
    """Takes ``request`` out of slot ``r`` for good and, in a closed loop, schedules the client's next one."""
    requests = engine.requests
    requests[request].status = status
    requests[request].finish_ps = now
    engine.done[engine.cursor[C_DONE]] = request
    engine.cursor[C_DONE] += 1
    if r >= 0:
        engine.slots[r].outstanding -= 1
    follower = requests[request].follower
    if follower >= 0 and requests[follower].think_ps >= 0:
        # One picosecond at least: the engine has scheduled its next iteration before a client can answer.
        size = engine.cursor[C_RELEASES]
        due = now + max(requests[follower].think_ps, 1)
        engine.release_key[size] = max(due, requests[follower].arrival_ps)
        engine.release_item[size] = follower
        sift_up(engine.release_key, engine.release_item, size)
        engine.cursor[C_RELEASES] += 1


@part
def forget_decode(engine: Engine, r: int, cell: int) -> int:
    """Removes heap cell ``cell`` of slot ``r`` from the decoding batch and frees its blocks; returns the request."""
    slot, requests = engine.slots[r], engine.requests
    size = engine.deployments[slot.deployment].block_size
    request = engine.heap_request[r, cell]
    remaining = engine.heap_key[r, cell] - slot.iteration
    requests[request].generated = requests[request].output - remaining
    cached = requests[request].prompt + requests[request].generated - 1
    heap_remove(engine.heap_key[r], engine.heap_request[r], cell, slot.decodes)
    slot.decodes -= 1
    slot.context -= cached
    slot.free_blocks += blocks(cached, size)
    engine.phase[r, (cached - slot.iteration) % size] -= 1
    slot.governed = 0
    return request


@part
def pop_finished(engine: Engine, r: int, now: int) -> None:
    """Ends the requests whose last token came with the iteration just done."""
    slot = engine.slots[r]
    while slot.decodes > 0 and engine.heap_key[r, 0] == slot.iteration:
        leave(engine, r, forget_decode(engine, r, 0), FINISHED, now)


@part
def land(engine: Engine, r: int) -> None:
    """Applies the iteration in flight on slot ``r`` at its end: tokens, first tokens, finishes."""
    slot, requests, bins = engine.slots[r], engine.requests, engine.bins
    size = engine.deployments[slot.deployment].block_size
    now = slot.flight_end_ps
    slot.now_ps = now
    slot.flight_end_ps = -1
    slot.iteration += 1
    slot.context += slot.decodes
    cell = ((now - 1) // BIN_PS) % BINS
    bins[cell, r].output_tokens += slot.decodes + slot.joiners
    bins[cell, r].prompt_tokens += slot.flight_prefill
    if slot.flight_prefill > 0:
        slot.governed = 0
    pop_finished(engine, r, now)
    for j in range(slot.joiners):
        request = engine.joiner[r, j]
        cached = requests[request].prompt + requests[request].generated
        requests[request].generated += 1
        if requests[request].first_token_ps < 0:
            requests[request].first_token_ps = now
        if requests[request].generated == requests[request].output:
            slot.free_blocks += blocks(cached, size)
            leave(engine, r, request, FINISHED, now)
            continue
        n = slot.decodes
        engine.heap_key[r, n] = slot.iteration + requests[request].output - requests[request].generated
        engine.heap_request[r, n] = request
        sift_up(engine.heap_key[r], engine.heap_request[r], n)
        slot.decodes += 1
        slot.context += cached
        engine.phase[r, (cached - slot.iteration) % size] += 1
    slot.joiners = 0


@kernel
def preempt_newest(engine: Engine, r: int) -> None:
    """Sends the newest running request of slot ``r`` back to the head of the queue, to be recomputed."""
    slot, requests = engine.slots[r], engine.requests
    if slot.partial >= 0:
        request = slot.partial
        size = engine.deployments[slot.deployment].block_size
        slot.free_blocks += blocks(slot.partial_done, size)
        slot.partial = -1
    else:
        newest = 0
        for i in range(1, slot.decodes):
            if requests[engine.heap_request[r, i]].admission > requests[engine.heap_request[r, newest]].admission:
                newest = i
        request = forget_decode(engine, r, newest)
    requests[request].status = WAITING
    requests[request].preemptions += 1
    push_front(engine, r, request)


@part
def blocks_for(engine: Engine, r: int, iterations: int, block_size: int) -> int:
    """New blocks that the decoding batch of slot ``r`` takes in the next ``iterations``."""
    slot = engine.slots[r]
    full = iterations // block_size
    need = full * slot.decodes
    # Blocks run full where cached % size == 0, which is phase == -iteration: each iteration moves one phase down.
    phase = (-slot.iteration) % block_size
    for _ in range(iterations - full * block_size):
        need += engine.phase[r, phase]
        phase = phase - 1 if phase > 0 else block_size - 1
    return need


@part
def affordable(engine: Engine, r: int, iterations: int, block_size: int) -> int:
    """How many of the next ``iterations`` the free blocks allow."""
    slot = engine.slots[r]
    free = slot.free_blocks
    if (iterations // block_size + 1) * slot.decodes <= free or blocks_for(engine, r, iterations, block_size) <= free:
        return iterations
    low, high = 0, iterations
    while high - low > 1:
        middle = (low + high) >> 1
        if blocks_for(engine, r, middle, block_size) <= free:
            low = middle
        else:
            high = middle
    return low


@part
def decode(engine: Engine, r: int, limit: int, most: int) -> None:
    """Runs the decoding batch of slot ``r`` from its iteration boundary up to ``limit``, or launches one flight.

    The iteration that would end after ``limit`` stays in flight; at most ``most`` iterations are taken.
    """
    slot = engine.slots[r]
    d, n, now, cached = slot.deployment, slot.decodes, slot.now_ps, slot.context
    dep = engine.deployments[d]
    size = dep.block_size
    fixed, weights, kv = engine.cost[d, FIXED, n], engine.cost[d, MEMORY, n], dep.kv_read_ps
    if slot.governed == 0:
        compute = engine.cost[d, COMPUTE, n] + dep.attention_ps * (cached + n)
        govern(engine, r, fixed, compute, weights + kv * (cached + n))
    step = slot.step
    ratio = engine.ladder[d, CLOCK, step]
    matrix = round(engine.cost[d, COMPUTE, n] / ratio)
    attention = round(dep.attention_ps / ratio)

    k = min(most, engine.heap_key[r, 0] - slot.iteration)
    memory_bound = weights + kv * (cached + n) >= matrix + attention * (cached + n)
    base, slope = (weights, kv) if memory_bound else (matrix, attention)
    other, other_slope = (matrix, attention) if memory_bound else (weights, kv)
    if other_slope > slope:
        # The other side of the roofline takes over once the cache has grown past `turn` tokens.
        turn = (base - other) // (other_slope - slope)
        k = min(k, max(1, (turn - cached) // n))
    k = affordable(engine, r, k, size)

    room = limit - now
    total = k * (fixed + base) + slope * (k * cached + n * (k * (k + 1) // 2))
    if total > room:
        a, b = 0.5 * slope * n, fixed + base + slope * (cached + 0.5 * n)
        guess = int(room / b) if a == 0.0 else int((math.sqrt(b * b + 4.0 * a * room) - b) / (2.0 * a))
        guess = min(max(guess, 0), k)
        while guess > 0 and guess * (fixed + base) + slope * (guess * cached + n * (guess * (guess + 1) // 2)) > room:
            guess -= 1
        while (guess + 1) * (fixed + base) + slope * (
            (guess + 1) * cached + n * ((guess + 1) * (guess + 2) // 2)
        ) <= room:
            guess += 1
        flight = guess == 0
        k = max(guess, 1)
        total = k * (fixed + base) + slope * (k * cached + n * (k * (k + 1) // 2))
    else:
        flight = False

    read = k * cached + n * (k * (k + 1) // 2)
    power = busy_power_w(engine, d, step, total, k * matrix + attention * read, k * weights + kv * read)
    slot.free_blocks -= blocks_for(engine, r, k, size)
    account(engine, r, now, now + total, power)
    if flight:
        slot.flight_end_ps = now + total
        slot.flight_prefill = 0
        return
    slot.now_ps = now + total
    slot.iteration += k
    slot.context += n * k
    engine.bins[((now + total - 1) // BIN_PS) % BINS, r].output_tokens += n * k
    pop_finished(engine, r, now + total)


@part
def admit(engine: Engine, r: int) -> tuple[int, int, int, int, bool]:
    """Schedules the prefill part of the next iteration of slot ``r``.

    Returns:
        Prompt tokens scheduled, cached tokens they read, query-key pairs, KV blocks that the whole iteration takes, and
        whether a request was preempted.
    """
    slot, requests = engine.slots[r], engine.requests
    d, now = slot.deployment, slot.now_ps
    dep = engine.deployments[d]
    size = dep.block_size
    preempted = False
    need = 0
    while slot.decodes > 0:
        need = blocks_for(engine, r, 1, size)
        if need <= slot.free_blocks:
            break
        preempt_newest(engine, r)
        preempted = True
    if slot.decodes == 0:
        need = 0
    budget = dep.max_batched_tokens - slot.decodes
    prefill, read, pairs = 0, 0, 0
    if slot.partial >= 0:
        done = slot.partial_done
        chunk = min(slot.partial_target - done, budget)
        more = blocks(done + chunk, size) - blocks(done, size)
        if need + more > slot.free_blocks:
            preempt_newest(engine, r)
            preempted = True
        else:
            need += more
            budget -= chunk
            prefill, read, pairs = chunk, done, chunk * done + chunk * (chunk + 1) // 2
            slot.partial_done = done + chunk
            if done + chunk == slot.partial_target:
                engine.joiner[r, 0] = slot.partial
                slot.joiners = 1
                slot.partial = -1
    while (
        not preempted
        and slot.waiting > 0
        and budget > 0
        and slot.partial < 0
        and slot.decodes + slot.joiners < dep.max_num_seqs
    ):
        request = slot.queue_head
        patience = requests[request].timeout_ps
        if patience >= 0 and requests[request].generated == 0 and now > requests[request].arrival_ps + patience:
            leave(engine, r, pop_front(engine, r), TIMED_OUT, now)
            continue
        target = requests[request].prompt + requests[request].generated
        chunk = min(target, budget)
        more = blocks(chunk, size)
        if need + more > slot.free_blocks:
            break
        pop_front(engine, r)
        need += more
        budget -= chunk
        prefill += chunk
        pairs += chunk * (chunk + 1) // 2
        requests[request].status = RUNNING
        if requests[request].admit_ps < 0:
            requests[request].admit_ps = now
        engine.cursor[C_ADMITTED] += 1
        requests[request].admission = engine.cursor[C_ADMITTED]
        if chunk == target:
            engine.joiner[r, slot.joiners] = request
            slot.joiners += 1
        else:
            slot.partial = request
            slot.partial_done = chunk
            slot.partial_target = target
    return prefill, read, pairs, need, preempted


@part
def launch_mixed(engine: Engine, r: int, prefill: int, read: int, pairs: int, need: int) -> None:
    """Puts one iteration with a prefill in flight on slot ``r``."""
    slot = engine.slots[r]
    d, now = slot.deployment, slot.now_ps
    dep = engine.deployments[d]
    tokens = prefill + slot.decodes
    decoded = slot.context + slot.decodes
    compute = engine.cost[d, COMPUTE, tokens] + dep.attention_ps * (pairs + decoded)
    memory = engine.cost[d, MEMORY, tokens] + dep.kv_read_ps * (read + decoded)
    step = govern(engine, r, engine.cost[d, FIXED, tokens], compute, memory)
    compute = round(compute / engine.ladder[d, CLOCK, step])
    total = engine.cost[d, FIXED, tokens] + max(compute, memory)
    slot.free_blocks -= need
    slot.flight_end_ps = now + total
    slot.flight_prefill = prefill
    account(engine, r, now, now + total, busy_power_w(engine, d, step, total, compute, memory))


@part
def next_finish_bound(engine: Engine, r: int) -> int:
    """A time before which no request of slot ``r`` can finish, if nothing arrives."""
    slot = engine.slots[r]
    flight = slot.flight_end_ps
    if flight < 0:
        return slot.now_ps
    n = slot.decodes
    if slot.joiners > 0 or slot.waiting > 0 or slot.partial >= 0 or n == 0 or slot.governed == 0:
        return flight
    # At the clock now held, until the next bin edge may change it; KV growth only makes iterations longer.
    d = slot.deployment
    k = engine.heap_key[r, 0] - slot.iteration - 1
    if (k // engine.deployments[d].block_size + 1) * n > slot.free_blocks:
        return flight  # A preemption would leave a smaller batch, whose iterations are shorter.
    shortest = engine.cost[d, FIXED, n] + engine.cost[d, MEMORY, n] + engine.deployments[d].kv_read_ps * slot.context
    edge = (flight // BIN_PS + 1) * BIN_PS
    return max(flight, min(edge, flight + k * shortest))


@part
def queue_deadline(engine: Engine, r: int) -> int:
    """Time to which the head of the queue of slot ``r`` waits for blocks; what follows it may be served after that."""
    slot = engine.slots[r]
    if slot.waiting == 0 or slot.decodes >= engine.deployments[slot.deployment].max_num_seqs:
        return int(FOREVER)
    head = engine.requests[slot.queue_head]
    if head.timeout_ps < 0 or head.generated > 0:
        return int(FOREVER)
    return max(slot.now_ps, head.arrival_ps + head.timeout_ps)


@kernel
def run_replica(engine: Engine, r: int, limit: int) -> None:
    """Advances slot ``r`` to ``limit``: iterations that begin before it are launched, those that end by it land."""
    slot = engine.slots[r]
    while True:
        if slot.flight_end_ps >= 0:
            if slot.flight_end_ps > limit:
                break
            land(engine, r)
        if slot.now_ps >= limit:
            break
        serving = slot.status == SERVING or slot.status == DRAINING
        if not serving or slot.outstanding == 0:
            idle_until(engine, r, limit)
            return
        prefill, read, pairs, need, preempted = admit(engine, r)
        if prefill > 0:
            launch_mixed(engine, r, prefill, read, pairs, need)
        elif slot.decodes > 0:
            # No leap reaches the edge of the bin: what a meter shows then is the power of one iteration, not of a leap.
            edge = (slot.now_ps // BIN_PS + 1) * BIN_PS - 1
            # Blocks that a preemption has freed may let the queue in at the very next iteration.
            stop = min(limit, edge, queue_deadline(engine, r))
            decode(engine, r, stop, 1 if preempted else MANY)
    slot.bound_ps = next_finish_bound(engine, r)
