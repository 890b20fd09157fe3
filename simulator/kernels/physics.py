"""Power, meter, heat and the clock governor of one slot, in one-second bins."""

from __future__ import annotations

from .compile import part
from .state import (
    ACTIVE,
    BIN_PS,
    BINS,
    CLOCK,
    COMPUTING,
    DECAY,
    DRAINING,
    FAILED,
    FOREVER,
    J_PER_UNIT,
    LOADING,
    RESISTANCE,
    SERVING,
    TENANT,
    UNITS_PER_W,
    Engine,
)

COARSE = 10  # The governor judges by times cut to 2^10 ps: at clocks that it rejects, energies could exceed 64 bits.


@part
def rest_cw(engine: Engine, r: int) -> int:
    """Power of the slot without work, centiwatts."""
    slot = engine.slots[r]
    dep = engine.deployments[slot.deployment]
    if slot.status in (SERVING, DRAINING, LOADING):
        return dep.idle_cw
    if slot.status == FAILED:
        return 0
    if slot.status == TENANT:
        return round(slot.load_w * UNITS_PER_W)
    return dep.off_cw


@part
def host_ps(engine: Engine, d: int, sequences: int) -> int:
    """Time of an iteration in which the GPUs wait for the host."""
    dep = engine.deployments[d]
    return dep.step_ps + dep.sequence_ps * sequences


@part
def sample_ps(engine: Engine, d: int, sequences: int) -> int:
    """Time of an iteration in which next tokens are chosen."""
    return engine.deployments[d].sample_ps * sequences


@part
def fixed_ps(engine: Engine, d: int, sequences: int, link: int) -> int:
    """Time of an iteration in which GPUs neither compute nor read for it."""
    return host_ps(engine, d, sequences) + engine.deployments[d].gap_ps + sample_ps(engine, d, sequences) + link


@part
def energy_of(
    engine: Engine, d: int, step: int, total: int, host: int, link: int, compute: int, memory: int, cache: int
) -> int:
    """Energy of iterations with these summed times (ps, compute at the clock of ``step``), in units of 1e-14 J."""
    dep = engine.deployments[d]
    clocked = engine.watt[d, ACTIVE, step] * (total - host) + engine.watt[d, COMPUTING, step] * compute
    return dep.idle_cw * total + clocked + dep.memory_cw * memory + dep.cache_cw * cache + dep.link_cw * link


@part
def govern(engine: Engine, r: int, n: int, link: int, compute: int, memory: int, cache: int) -> int:
    """Highest ladder step at which an iteration over ``n`` requests stays under the cap; also kept in ``slots.step``.

    The rule holds from one change of the batch or bin edge to the next, whichever comes first. Power grows with the
    step, so the search may halve.
    """
    slot = engine.slots[r]
    d = slot.deployment
    cap_cw = int(slot.cap_w * UNITS_PER_W)
    fixed = fixed_ps(engine, d, n, link)
    read = (memory + sample_ps(engine, d, n)) >> COARSE
    kept = cache >> COARSE
    host, link = host_ps(engine, d, n) >> COARSE, link >> COARSE
    top = slot.clock_limit
    if slot.throttled:
        top = min(top, engine.ladder.shape[2] // 4)
    low, high = 0, top
    first = True
    while low < high or first:
        # The highest step is tried first: mostly nothing caps it.
        i = high if first else (low + high + 1) >> 1
        busy = round(compute / engine.ladder[d, CLOCK, i])
        total = (fixed + max(busy, memory + cache)) >> COARSE
        if energy_of(engine, d, i, total, host, link, busy >> COARSE, read, kept) <= cap_cw * total:
            low = i
        elif first:
            high = max(high - 1, 0)
        else:
            high = i - 1
        first = False
    slot.step = low
    slot.governed = 1
    return low


@part
def close_bin(engine: Engine, r: int) -> None:
    """Ends the open bin of slot ``r``: meter, temperature, throttle, gauges."""
    slot = engine.slots[r]
    d = slot.deployment
    dep = engine.deployments[d]
    now = engine.bins[(slot.edge_ps // BIN_PS - 1) % BINS, r]
    slot.edge_ps += BIN_PS
    mean_w = now.energy * J_PER_UNIT
    now.metered_w = mean_w if dep.averaging else slot.instant_w
    gpu_w = mean_w / dep.gpus
    temperature = slot.inlet_c
    for pole in range(2):
        decay = engine.thermal[d, DECAY, pole]
        engine.pole_k[r, pole] = engine.pole_k[r, pole] * decay + engine.thermal[d, RESISTANCE, pole] * gpu_w * (
            1.0 - decay
        )
        temperature += engine.pole_k[r, pole]
    now.temperature_c = temperature
    if slot.throttled == 0 and temperature >= dep.throttle_c:
        slot.throttled = 1
        slot.throttle_events += 1
    elif slot.throttled == 1 and temperature <= dep.resume_c:
        slot.throttled = 0
    slot.governed = 0
    now.clock_ratio = engine.ladder[d, CLOCK, slot.step]
    now.running = slot.outstanding - slot.waiting
    now.waiting = slot.waiting
    now.kv_used = 1.0 - slot.free_blocks / dep.kv_blocks


@part
def spend(engine: Engine, r: int, energy: int) -> None:
    """Adds to the open bin."""
    engine.bins[(engine.slots[r].edge_ps // BIN_PS - 1) % BINS, r].energy += energy


@part
def spent_by(engine: Engine, r: int, when: int) -> int:
    """Energy that the flight of slot ``r`` has taken by ``when``, which lies inside it."""
    slot = engine.slots[r]
    start, end = slot.flight_start_ps, slot.flight_end_ps
    return slot.flight_energy if when == end else int(slot.flight_energy * ((when - start) / (end - start)))


@part
def book_flight(engine: Engine, r: int, limit: int) -> None:
    """Closes the bins that end by ``limit`` during the flight of slot ``r`` and books its energy."""
    slot = engine.slots[r]
    start, end = slot.flight_start_ps, slot.flight_end_ps
    while slot.edge_ps <= min(limit, end):
        energy = spent_by(engine, r, slot.edge_ps)
        spend(engine, r, energy - slot.flight_spent)
        slot.flight_spent = energy
        slot.instant_w = slot.flight_energy / (end - start) / UNITS_PER_W
        close_bin(engine, r)
    if end <= limit:
        spend(engine, r, slot.flight_energy - slot.flight_spent)


@part
def rest(engine: Engine, r: int, limit: int) -> None:
    """Lets slot ``r`` pass the time to ``limit`` without work."""
    slot = engine.slots[r]
    power_cw = rest_cw(engine, r)
    slot.instant_w = power_cw / UNITS_PER_W
    while slot.edge_ps <= limit:
        spend(engine, r, power_cw * (slot.edge_ps - slot.now_ps))
        slot.now_ps = slot.edge_ps
        close_bin(engine, r)
    spend(engine, r, power_cw * (limit - slot.now_ps))
    slot.now_ps = limit
    slot.bound_ps = FOREVER
