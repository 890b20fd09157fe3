"""KV blocks of one slot and their prefix cache: free blocks queue up, the least recently used leave first.

The queue of free blocks holds cells: a registered unit (blocks of one prefix hash that no request holds) or a run of
blocks without a hash (``holders`` -1). Without prefix caching only the number of free blocks is kept.
"""

from __future__ import annotations

from .compile import kernel, part
from .state import C_UNIT_TOKENS, Engine

NO_HASH = -1
SPREAD = -7046029254386353131  # 2^64 over the golden ratio, odd: Knuth's multiplicative hashing


@part
def blocks(tokens: int, shift: int) -> int:
    """KV blocks of ``1 << shift`` tokens that hold ``tokens``."""
    return (tokens + (1 << shift) - 1) >> shift


@part
def caches(engine: Engine) -> bool:
    """Whether prefixes are cached."""
    return engine.cursor[C_UNIT_TOKENS] > 0


@part
def unit_blocks(engine: Engine, r: int) -> int:
    """KV blocks under one prefix hash."""
    return engine.cursor[C_UNIT_TOKENS] >> engine.deployments[engine.slots[r].deployment].block_shift


@part
def home(engine: Engine, key: int) -> int:
    """Where ``key`` would like to be in a hash table."""
    return ((key * SPREAD) >> 20) & (engine.table.shape[1] - 1)


@part
def seek(engine: Engine, r: int, key: int) -> int:
    """Place of ``key`` in the hash table of slot ``r``, or the free place at which it would be."""
    mask = engine.table.shape[1] - 1
    i = home(engine, key)
    while engine.table[r, i] >= 0 and engine.cells[r, engine.table[r, i]].hash != key:
        i = (i + 1) & mask
    return i


@kernel
def forget(engine: Engine, r: int, cell: int) -> None:
    """Takes a unit out of the hash table; those behind it move up (Knuth, TAOCP 6.4, algorithm R)."""
    table, cells = engine.table, engine.cells
    mask = table.shape[1] - 1
    i = seek(engine, r, cells[r, cell].hash)
    cells[r, cell].holders = NO_HASH
    table[r, i] = -1
    j = i
    while True:
        j = (j + 1) & mask
        if table[r, j] < 0:
            return
        if ((j - home(engine, cells[r, table[r, j]].hash)) & mask) >= ((j - i) & mask):
            table[r, i] = table[r, j]
            table[r, j] = -1
            i = j


@part
def new_cell(engine: Engine, r: int, count: int, holders: int) -> int:
    """A cell out of the unused ones."""
    cell = engine.slots[r].spare
    engine.slots[r].spare = engine.cells[r, cell].after
    engine.cells[r, cell].blocks = count
    engine.cells[r, cell].holders = holders
    return cell


@part
def enqueue(engine: Engine, r: int, cell: int) -> None:
    """Appends a cell to the queue of free blocks."""
    slot, cells = engine.slots[r], engine.cells
    cells[r, cell].before = slot.free_tail
    cells[r, cell].after = -1
    if slot.free_tail >= 0:
        cells[r, slot.free_tail].after = cell
    else:
        slot.free_head = cell
    slot.free_tail = cell


@part
def unlink(engine: Engine, r: int, cell: int) -> None:
    """Takes a cell out of the queue of free blocks."""
    slot, cells = engine.slots[r], engine.cells
    before, after = cells[r, cell].before, cells[r, cell].after
    if before >= 0:
        cells[r, before].after = after
    else:
        slot.free_head = after
    if after >= 0:
        cells[r, after].before = before
    else:
        slot.free_tail = before


@part
def discard(engine: Engine, r: int, cell: int) -> None:
    """Takes a cell out of the queue and puts it to the unused ones."""
    unlink(engine, r, cell)
    engine.cells[r, cell].after = engine.slots[r].spare
    engine.slots[r].spare = cell


@part
def join_following(engine: Engine, r: int, cell: int) -> None:
    """Makes one of two neighbouring runs of blocks without a hash, ``cell`` and the one behind it."""
    cells = engine.cells
    if cell < 0 or cells[r, cell].holders != NO_HASH:
        return
    after = cells[r, cell].after
    if after >= 0 and cells[r, after].holders == NO_HASH:
        cells[r, cell].blocks += cells[r, after].blocks
        discard(engine, r, after)


@kernel
def take_queued(engine: Engine, r: int, count: int) -> None:
    """Takes ``count`` blocks from the front of the queue; units that lose a block are forgotten."""
    slot, cells = engine.slots[r], engine.cells
    while count > 0:
        head = slot.free_head
        if cells[r, head].holders != NO_HASH:
            forget(engine, r, head)
            join_following(engine, r, head)
        taken = min(count, cells[r, head].blocks)
        cells[r, head].blocks -= taken
        count -= taken
        if cells[r, head].blocks == 0:
            discard(engine, r, head)


@part
def take_blocks(engine: Engine, r: int, count: int) -> None:
    """Takes ``count`` free blocks."""
    engine.slots[r].free_blocks -= count
    if caches(engine):
        take_queued(engine, r, count)


@kernel
def queue_blocks(engine: Engine, r: int, count: int) -> None:
    """Puts ``count`` blocks without a hash at the end of the queue."""
    tail = engine.slots[r].free_tail
    if count == 0:
        return
    if tail >= 0 and engine.cells[r, tail].holders == NO_HASH:
        engine.cells[r, tail].blocks += count
    else:
        enqueue(engine, r, new_cell(engine, r, count, NO_HASH))


@kernel
def release_units(engine: Engine, r: int, request: int, count: int) -> None:
    """Gives back ``count`` blocks behind the units of ``request``, then its units from the last to the first."""
    slot, row = engine.slots[r], engine.requests[request]
    size = unit_blocks(engine, r)
    queue_blocks(engine, r, count)
    slot.free_blocks += count
    for j in range(row.prefix + row.covered - 1, row.prefix - 1, -1):
        cell = engine.held[j]
        if cell < 0:
            queue_blocks(engine, r, size)
        else:
            engine.cells[r, cell].holders -= 1
            if engine.cells[r, cell].holders > 0:
                continue
            enqueue(engine, r, cell)
        slot.free_blocks += size
    row.covered = 0


@part
def give_back(engine: Engine, r: int, request: int, count: int) -> None:
    """Frees the ``count`` blocks that ``request`` uses; those that others hold, too, stay."""
    if caches(engine):
        behind = count - engine.requests[request].covered * unit_blocks(engine, r)
        release_units(engine, r, request, behind)
    else:
        engine.slots[r].free_blocks += count


@kernel
def count_hits(engine: Engine, r: int, request: int, target: int) -> tuple[int, int]:
    """Leading units of ``request`` in the cache of slot ``r`` (not the last token), and those that no one holds."""
    row = engine.requests[request]
    most = min(row.units, (target - 1) // engine.cursor[C_UNIT_TOKENS])
    hits, unheld = 0, 0
    while hits < most:
        cell = engine.table[r, seek(engine, r, engine.hashes[row.prefix + hits])]
        if cell < 0:
            break
        hits += 1
        if engine.cells[r, cell].holders == 0:
            unheld += 1
    return hits, unheld


@kernel
def hold_units(engine: Engine, r: int, request: int, hits: int) -> None:
    """Lets ``request`` hold its first ``hits`` units, which are in the cache."""
    slot, row = engine.slots[r], engine.requests[request]
    for j in range(row.prefix, row.prefix + hits):
        cell = engine.table[r, seek(engine, r, engine.hashes[j])]
        if engine.cells[r, cell].holders == 0:
            before = engine.cells[r, cell].before
            unlink(engine, r, cell)
            join_following(engine, r, before)
            slot.free_blocks -= engine.cells[r, cell].blocks
        engine.cells[r, cell].holders += 1
        engine.held[j] = cell
    row.covered = hits


@kernel
def register_units(engine: Engine, r: int, request: int, tokens: int) -> None:
    """Registers the units of ``request`` that its first ``tokens`` fill; what another has registered stays its."""
    row = engine.requests[request]
    while row.covered < row.units and (row.covered + 1) * engine.cursor[C_UNIT_TOKENS] <= tokens:
        key = engine.hashes[row.prefix + row.covered]
        place = seek(engine, r, key)
        if engine.table[r, place] >= 0:
            engine.held[row.prefix + row.covered] = -1
        else:
            cell = new_cell(engine, r, unit_blocks(engine, r), 1)
            engine.cells[r, cell].hash = key
            engine.table[r, place] = cell
            engine.held[row.prefix + row.covered] = cell
        row.covered += 1


@part
def cover(engine: Engine, r: int, request: int, tokens: int) -> None:
    """Notes that the first ``tokens`` of ``request`` are scheduled."""
    if caches(engine):
        register_units(engine, r, request, tokens)


@kernel
def clear_cache(engine: Engine, r: int) -> None:
    """Frees all KV blocks of slot ``r`` and forgets what was in them."""
    slot, cells = engine.slots[r], engine.cells
    slot.free_blocks = engine.deployments[slot.deployment].kv_blocks
    if not caches(engine):
        return
    for i in range(engine.table.shape[1]):
        engine.table[r, i] = -1
    for cell in range(cells.shape[1]):
        cells[r, cell].after = cell + 1
    slot.spare, slot.free_head, slot.free_tail = 0, -1, -1
    queue_blocks(engine, r, slot.free_blocks)
