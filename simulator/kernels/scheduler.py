"""What a slot computes next: vLLM's V1 scheduler, see docs/engine.md."""

from __future__ import annotations

from .compile import kernel, part
from .leave import leave, make_room
from .prefix import blocks, caches, count_hits, cover, give_back, hold_units, take_blocks, unit_blocks
from .queues import heap_remove, pop_front, push_preempted
from .state import C_UNIT_TOKENS, RUNNING, TIMED_OUT, WAITING, Engine

PARTIAL = -1


@part
def forget_decode(engine: Engine, r: int, cell: int, extra: int) -> int:
    """Removes heap cell ``cell`` of slot ``r`` from the decoding batch, frees its blocks and ``extra``; the request."""
    slot, requests = engine.slots[r], engine.requests
    shift = engine.deployments[slot.deployment].block_shift
    request = engine.heap_request[r, cell]
    requests[request].generated = requests[request].output - (engine.heap_key[r, cell] - slot.iteration)
    cached = requests[request].prompt + requests[request].generated - 1
    heap_remove(engine.heap_key[r], engine.heap_request[r], cell, slot.decodes)
    slot.decodes -= 1
    slot.context -= cached
    give_back(engine, r, request, blocks(cached, shift) + extra)
    engine.phase[r, (cached - slot.iteration) & ((1 << shift) - 1)] -= 1
    slot.governed = 0
    return request


@part
def less_urgent(engine: Engine, a: int, b: int) -> bool:
    """Whether ``a`` is preempted before ``b`` under priority scheduling."""
    x, y = engine.requests[a], engine.requests[b]
    if x.level != y.level:
        return x.level > y.level
    return x.arrival_ps > y.arrival_ps or (x.arrival_ps == y.arrival_ps and a > b)


@part
def choose_victim(engine: Engine, r: int) -> int:
    """Heap cell of the request to preempt, or PARTIAL."""
    slot, requests = engine.slots[r], engine.requests
    by_priority = engine.deployments[slot.deployment].by_priority
    if slot.partial >= 0 and not by_priority:
        return PARTIAL  # It was admitted last.
    worst = 0
    for i in range(1, slot.decodes):
        a, b = engine.heap_request[r, i], engine.heap_request[r, worst]
        if less_urgent(engine, a, b) if by_priority else requests[a].admission > requests[b].admission:
            worst = i
    if slot.partial >= 0 and (slot.decodes == 0 or less_urgent(engine, slot.partial, engine.heap_request[r, worst])):
        return PARTIAL
    return worst


@kernel
def preempt(engine: Engine, r: int, taken: int) -> int:
    """Sends a running request of slot ``r`` back to the queue, to be recomputed.

    Args:
        engine: The engine.
        r: The slot.
        taken: Blocks that the decodes have been given for the iteration to come.

    Returns:
        How many of these remain taken.
    """
    slot, requests = engine.slots[r], engine.requests
    shift = engine.deployments[slot.deployment].block_shift
    cell = choose_victim(engine, r)
    if cell == PARTIAL:
        request = slot.partial
        slot.partial = -1
        give_back(engine, r, request, blocks(slot.partial_done, shift))
    else:
        request = engine.heap_request[r, cell]
        cached = requests[request].prompt + requests[request].output - (engine.heap_key[r, cell] - slot.iteration) - 1
        extra = 1 if taken > 0 and cached & ((1 << shift) - 1) == 0 else 0
        taken -= extra
        forget_decode(engine, r, cell, extra)
    requests[request].status = WAITING
    requests[request].remote = 0
    requests[request].preemptions += 1
    push_preempted(engine, r, request)
    return taken


@part
def blocks_for(engine: Engine, r: int, iterations: int, shift: int) -> int:
    """New blocks that the decoding batch of slot ``r`` takes in the next ``iterations``."""
    slot = engine.slots[r]
    mask = (1 << shift) - 1
    need = (iterations >> shift) * slot.decodes
    # Blocks run full where cached tokens fill them, which is phase == -iteration: each iteration moves one phase down.
    for i in range(iterations & mask):
        need += engine.phase[r, (-slot.iteration - i) & mask]
    return need


@kernel
def continue_partial(engine: Engine, r: int, taken: int) -> tuple[int, int, int, int, bool]:
    """Schedules the next chunk of the partial prefill of slot ``r``.

    Returns:
        Prompt tokens scheduled, cached tokens they read, query-key pairs, decodes' blocks still taken, and whether a
        request was preempted.
    """
    slot = engine.slots[r]
    dep = engine.deployments[slot.deployment]
    done = slot.partial_done
    chunk = min(slot.partial_target - done, dep.max_batched_tokens - slot.decodes)
    more = blocks(done + chunk, dep.block_shift) - blocks(done, dep.block_shift)
    preempted = False
    while slot.partial >= 0 and more > slot.free_blocks:
        taken = preempt(engine, r, taken)
        preempted = True
    if slot.partial < 0:
        return 0, 0, 0, taken, preempted
    take_blocks(engine, r, more)
    slot.partial_done = done + chunk
    cover(engine, r, slot.partial, done + chunk)
    if slot.partial_done == slot.partial_target:
        engine.joiner[r, 0] = slot.partial
        slot.joiners = 1
        slot.partial = -1
    return chunk, done, chunk * done + chunk * (chunk + 1) // 2, taken, preempted


@part
def gave_up(engine: Engine, request: int, now: int) -> bool:
    """Whether the client of ``request`` has gone."""
    row = engine.requests[request]
    return row.timeout_ps >= 0 and row.generated == 0 and now > row.sent_ps + row.timeout_ps


@part
def admit(engine: Engine, r: int, budget: int) -> tuple[int, int, int, bool]:
    """Starts waiting requests of slot ``r`` while ``budget`` tokens, blocks and places last.

    Returns:
        Prompt tokens scheduled, cached tokens they read, query-key pairs, and whether a request that found some of its
        prefix in the cache had to wait: it may need less once that is gone.
    """
    slot, requests = engine.slots[r], engine.requests
    dep = engine.deployments[slot.deployment]
    now = slot.now_ps
    prefill, read, pairs = 0, 0, 0
    while slot.waiting > 0 and budget > 0 and slot.partial < 0 and slot.decodes + slot.joiners < dep.max_num_seqs:
        request = slot.queue_head
        row = requests[request]
        if gave_up(engine, request, now):
            pop_front(engine, r)
            make_room(engine, r, now)
            leave(engine, request, TIMED_OUT, now)
            continue
        target = row.prompt + row.generated
        hits, unheld, hit = 0, 0, 0
        if row.remote:
            hit = target - 1
        elif row.units > 0 and caches(engine):
            hits, unheld = count_hits(engine, r, request, target)
            hit = hits * engine.cursor[C_UNIT_TOKENS]
        chunk = min(target - hit, budget)
        fresh = blocks(hit + chunk, dep.block_shift)
        if hits > 0:
            fresh -= hits * unit_blocks(engine, r)
            if fresh + unheld * unit_blocks(engine, r) + dep.watermark > slot.free_blocks:
                return prefill, read, pairs, True
            hold_units(engine, r, request, hits)
        elif fresh + dep.watermark > slot.free_blocks:
            break
        pop_front(engine, r)
        take_blocks(engine, r, fresh)
        cover(engine, r, request, hit + chunk)
        budget -= chunk
        prefill += chunk
        read += hit
        pairs += chunk * hit + chunk * (chunk + 1) // 2
        row.status = RUNNING
        if row.admit_ps < 0:
            row.admit_ps = now
        slot.admitted += 1
        row.admission = slot.admitted
        if hit + chunk == target:
            engine.joiner[r, slot.joiners] = request
            slot.joiners += 1
        else:
            slot.partial = request
            slot.partial_done = hit + chunk
            slot.partial_target = target
    return prefill, read, pairs, False


@part
def schedule(engine: Engine, r: int) -> tuple[int, int, int, int, bool]:
    """Schedules the next iteration of slot ``r``; blocks for its decodes are taken only if a prefill was considered.

    Returns:
        Prompt tokens scheduled, cached tokens they read, query-key pairs, blocks taken for the decodes, and whether the
        iteration after that must be scheduled anew even if nothing ends in this one.
    """
    slot = engine.slots[r]
    dep = engine.deployments[slot.deployment]
    preempted = False
    need = 0
    while slot.decodes > 0:
        need = blocks_for(engine, r, 1, dep.block_shift)
        if need <= slot.free_blocks:
            break
        preempt(engine, r, 0)
        preempted = True
    if slot.decodes == 0:
        need = 0
    if slot.partial < 0 and (slot.waiting == 0 or preempted):
        return 0, 0, 0, 0, preempted
    take_blocks(engine, r, need)
    taken, prefill, read, pairs, again = need, 0, 0, 0, preempted
    if slot.partial >= 0:
        prefill, read, pairs, taken, pushed = continue_partial(engine, r, need)
        again = again or pushed
    if not again and slot.waiting > 0:
        more, reads, squares, again = admit(engine, r, dep.max_batched_tokens - slot.decodes - prefill)
        prefill, read, pairs = prefill + more, read + reads, pairs + squares
    return prefill, read, pairs, taken, again
