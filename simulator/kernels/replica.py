"""Continuous batching of one slot: iterations that end, iterations that begin, and leaps over many.

Iterations with a prefill are taken one at a time. While only decodes run, the batch is a line in the number of
iterations, and the engine leaps to the next finish, arrival, bin edge, block shortage or change of the roofline.
"""

from __future__ import annotations

import math

from .compile import kernel, part
from .leave import hand_over, leave, make_room
from .physics import book_flight, energy_of, fixed_ps, govern, host_ps, rest, sample_ps, spend
from .prefix import blocks, give_back, take_blocks
from .queues import sift_up
from .scheduler import blocks_for, forget_decode, schedule
from .state import (
    BIN_PS,
    BINS,
    C_BOUNDED,
    C_EVENTS,
    CLOCK,
    COMPUTE,
    DRAINING,
    FINISHED,
    FOREVER,
    LINK,
    MEMORY,
    PREFILL,
    SERVING,
    Engine,
)

MANY = 2**40


@part
def pop_finished(engine: Engine, r: int, now: int) -> None:
    """Ends the requests whose last token came with the iteration just done."""
    slot = engine.slots[r]
    while slot.decodes > 0 and engine.heap_key[r, 0] == slot.iteration:
        request = forget_decode(engine, r, 0, 0)
        make_room(engine, r, now)
        leave(engine, request, FINISHED, now)


@part
def land_joiners(engine: Engine, r: int, now: int) -> None:
    """Gives a token to every request whose prefill has ended; it decodes on, is done or is handed over."""
    slot, requests = engine.slots[r], engine.requests
    shift = engine.deployments[slot.deployment].block_shift
    for j in range(slot.joiners):
        request = engine.joiner[r, j]
        row = requests[request]
        cached = row.prompt + row.generated
        row.generated += 1
        if row.first_token_ps < 0:
            row.first_token_ps = now
        if row.generated == row.output:
            give_back(engine, r, request, blocks(cached, shift))
            make_room(engine, r, now)
            leave(engine, request, FINISHED, now)
        elif slot.role == PREFILL:
            give_back(engine, r, request, blocks(cached, shift))
            hand_over(engine, r, request, now)
        else:
            n = slot.decodes
            engine.heap_key[r, n] = slot.iteration + row.output - row.generated
            engine.heap_request[r, n] = request
            sift_up(engine.heap_key[r], engine.heap_request[r], n)
            slot.decodes += 1
            slot.context += cached
            engine.phase[r, (cached - slot.iteration) & ((1 << shift) - 1)] += 1
    slot.joiners = 0


@part
def land(engine: Engine, r: int) -> None:
    """Applies the iteration in flight on slot ``r`` at its end: energy, tokens, first tokens, finishes."""
    slot = engine.slots[r]
    now = slot.flight_end_ps
    count_tokens(engine, r, now, slot.flight_prefill, slot.decodes + slot.joiners)
    book_flight(engine, r, now)
    slot.now_ps = now
    slot.flight_end_ps = -1
    slot.iteration += 1
    slot.context += slot.decodes
    if slot.flight_prefill > 0:
        slot.governed = 0
    pop_finished(engine, r, now)
    land_joiners(engine, r, now)
    engine.cursor[C_EVENTS] += 1


@part
def count_tokens(engine: Engine, r: int, now: int, prompt: int, output: int) -> None:
    """Counts tokens of iterations that end at ``now`` in their bin."""
    cell = engine.bins[((now - 1) // BIN_PS) % BINS, r]
    cell.prompt_tokens += prompt
    cell.output_tokens += output


@part
def affordable(engine: Engine, r: int, iterations: int, shift: int, free: int) -> int:
    """How many of the next ``iterations`` can be had for ``free`` blocks."""
    slot = engine.slots[r]
    if ((iterations >> shift) + 1) * slot.decodes <= free or blocks_for(engine, r, iterations, shift) <= free:
        return iterations
    low, high = 0, iterations
    while high - low > 1:
        middle = (low + high) >> 1
        if blocks_for(engine, r, middle, shift) <= free:
            low = middle
        else:
            high = middle
    return low


@part
def take_off(engine: Engine, r: int, total: int, prefill: int, energy: int) -> None:
    """Puts an iteration of ``total`` picoseconds in flight on slot ``r``."""
    slot = engine.slots[r]
    slot.flight_start_ps = slot.now_ps
    slot.flight_end_ps = slot.now_ps + total
    slot.flight_prefill = prefill
    slot.flight_energy = energy
    slot.flight_spent = 0


@part
def leap_time(k: int, base: int, slope: int, cached: int, n: int) -> int:
    """Time of ``k`` decode iterations of ``n`` requests: base, and slope times the tokens read, which grow by n."""
    return k * base + slope * (k * cached + n * (k * (k + 1) // 2))


@part
def leap_within(room: int, k: int, base: int, slope: int, cached: int, n: int) -> int:
    """How many of ``k`` iterations end within ``room``: the root of a quadratic, corrected in integers."""
    if leap_time(k, base, slope, cached, n) <= room:
        return k
    a, b = 0.5 * slope * n, base + slope * (cached + 0.5 * n)
    guess = int(room / b) if a == 0.0 else int((math.sqrt(b * b + 4.0 * a * room) - b) / (2.0 * a))
    guess = min(max(guess, 0), k)
    while guess > 0 and leap_time(guess, base, slope, cached, n) > room:
        guess -= 1
    while leap_time(guess + 1, base, slope, cached, n) <= room:
        guess += 1
    return guess


@part
def decode(engine: Engine, r: int, limit: int, launch_until: int, most: int, taken: int) -> None:
    """Runs the decoding batch of slot ``r`` from its iteration boundary up to ``limit``.

    The iteration that would end after ``limit`` is put in flight if it begins before ``launch_until``, or if it is the
    first. At most ``most`` iterations are taken; the first one has ``taken`` blocks already.
    """
    slot = engine.slots[r]
    d, n, now, cached = slot.deployment, slot.decodes, slot.now_ps, slot.context
    dep = engine.deployments[d]
    host, link, sample = host_ps(engine, d, n), engine.cost[d, LINK, n], sample_ps(engine, d, n)
    fixed, weights, kv = fixed_ps(engine, d, n, link), engine.cost[d, MEMORY, n] + dep.state_ps * n, dep.kv_read_ps
    if slot.governed == 0:
        compute = engine.cost[d, COMPUTE, n] + dep.attention_ps * (cached + n)
        govern(engine, r, n, link, compute, weights, kv * (cached + n))
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
    k = affordable(engine, r, k, dep.block_shift, slot.free_blocks + taken)

    within = leap_within(limit - now, k, fixed + base, slope, cached, n)
    if within > 0:
        read = within * cached + n * (within * (within + 1) // 2)
        total = leap_time(within, fixed + base, slope, cached, n)
        compute, memory = within * matrix + attention * read, within * (weights + sample)
        energy = energy_of(engine, d, step, total, within * host, within * link, compute, memory, kv * read)
        spend(engine, r, energy)
        take_blocks(engine, r, blocks_for(engine, r, within, dep.block_shift) - taken)
        slot.now_ps = now + total
        slot.iteration += within
        slot.context += n * within
        count_tokens(engine, r, slot.now_ps, 0, n * within)
        engine.cursor[C_EVENTS] += 1
        if within == k or slot.now_ps >= launch_until:
            pop_finished(engine, r, slot.now_ps)
            return
        taken = 0
    read = slot.context + n
    total = fixed + base + slope * read
    take_blocks(engine, r, blocks_for(engine, r, 1, dep.block_shift) - taken)
    compute, memory = matrix + attention * read, weights + sample
    take_off(engine, r, total, 0, energy_of(engine, d, step, total, host, link, compute, memory, kv * read))


@part
def launch_mixed(engine: Engine, r: int, prefill: int, read: int, pairs: int) -> None:
    """Puts one iteration with a prefill in flight on slot ``r``."""
    slot = engine.slots[r]
    d = slot.deployment
    dep = engine.deployments[d]
    tokens = prefill + slot.decodes
    decoded = slot.context + slot.decodes
    sequences = slot.decodes + slot.joiners + (slot.partial >= 0)
    host, link = host_ps(engine, d, sequences), engine.cost[d, LINK, tokens]
    fixed, sample = fixed_ps(engine, d, sequences, link), sample_ps(engine, d, sequences)
    compute = engine.cost[d, COMPUTE, tokens] + dep.attention_ps * (pairs + decoded)
    memory, cache = engine.cost[d, MEMORY, tokens] + dep.state_ps * sequences, dep.kv_read_ps * (read + decoded)
    step = govern(engine, r, sequences, link, compute, memory, cache)
    compute = round(compute / engine.ladder[d, CLOCK, step])
    total = fixed + max(compute, memory + cache)
    energy = energy_of(engine, d, step, total, host, link, compute, memory + sample, cache)
    take_off(engine, r, total, prefill, energy)


@part
def next_leave_bound(engine: Engine, r: int) -> int:
    """A time before which no request of slot ``r`` can leave, if nothing arrives."""
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
    if ((k >> engine.deployments[d].block_shift) + 1) * n > slot.free_blocks:
        return flight  # A preemption would leave a smaller batch, whose iterations are shorter.
    dep = engine.deployments[d]
    memory = engine.cost[d, MEMORY, n] + dep.state_ps * n + dep.kv_read_ps * slot.context
    shortest = fixed_ps(engine, d, n, engine.cost[d, LINK, n]) + memory
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
    return max(slot.now_ps, head.sent_ps + head.timeout_ps)


@kernel
def run_replica(engine: Engine, r: int, limit: int) -> None:
    """Advances slot ``r`` to ``limit``: iterations that begin before it are launched, those that end by it land."""
    slot = engine.slots[r]
    while True:
        if slot.flight_end_ps >= 0:
            if slot.flight_end_ps > limit:
                if slot.edge_ps <= limit:
                    book_flight(engine, r, limit)
                break
            land(engine, r)
        if slot.now_ps >= limit:
            break
        serving = slot.status == SERVING or slot.status == DRAINING
        if not serving or slot.outstanding == 0:
            rest(engine, r, limit)
            return
        prefill, read, pairs, taken, again = schedule(engine, r)
        if prefill > 0:
            launch_mixed(engine, r, prefill, read, pairs)
        elif slot.decodes > 0:
            # No leap reaches the edge of the bin: what a meter shows then is the power of one iteration, not of a leap.
            edge = min(limit, slot.edge_ps - 1)
            deadline = queue_deadline(engine, r)
            # Blocks that a preemption has freed may let the queue in at the very next iteration.
            most = 1 if again else MANY
            decode(engine, r, min(edge, deadline), edge if edge < deadline else 0, most, taken)
    if engine.cursor[C_BOUNDED]:
        slot.bound_ps = next_leave_bound(engine, r)
