"""Power, meter, heat and the clock governor of one slot, in one-second bins."""

from __future__ import annotations

from .compile import part
from .state import (
    BIN_PS,
    BINS,
    CLOCK,
    DECAY,
    DRAINING,
    FAILED,
    FOREVER,
    LOADING,
    RESISTANCE,
    SCALE,
    SERVING,
    TENANT,
    Engine,
)


@part
def base_power_w(engine: Engine, r: int) -> float:
    """Power of the slot without work."""
    status = engine.slots[r].status
    dep = engine.deployments[engine.slots[r].deployment]
    if status in (SERVING, DRAINING, LOADING):
        return dep.idle_w
    if status == FAILED:
        return 0.0
    if status == TENANT:
        return engine.slots[r].load_w
    return dep.off_w


@part
def govern(engine: Engine, r: int, fixed: int, compute: int, memory: int) -> int:
    """Highest ladder step at which an iteration of these times stays under the cap; also kept in ``slots.step``.

    The rule holds from one change of the batch or bin edge to the next, whichever comes first.
    """
    slot = engine.slots[r]
    d = slot.deployment
    dep = engine.deployments[d]
    top = slot.clock_limit
    if slot.throttled:
        top = min(top, engine.ladder.shape[2] // 4)
    low, high = 0, top
    first = True
    while low < high or first:
        # The highest step is tried first: mostly nothing caps it.
        i = high if first else (low + high + 1) >> 1
        busy = compute / engine.ladder[d, CLOCK, i]
        total = fixed + max(busy, float(memory))
        power = dep.idle_w + engine.ladder[d, SCALE, i] * (dep.active_w + dep.compute_w * busy / total)
        power += dep.memory_w * memory / total
        if power <= slot.cap_w:
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
def close_bin(engine: Engine, r: int, b: int) -> None:
    """Ends bin ``b`` of slot ``r``: meter, temperature, throttle, gauges."""
    slot = engine.slots[r]
    d = slot.deployment
    dep = engine.deployments[d]
    now = engine.bins[b % BINS, r]
    mean_w = now.energy_j * (1e12 / BIN_PS)
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
def account(engine: Engine, r: int, start: int, stop: int, power_w: float) -> None:
    """Spreads ``power_w`` over ``[start, stop)`` into the bins and closes every bin that ends by ``stop``."""
    engine.slots[r].instant_w = power_w
    b = start // BIN_PS
    while start < stop:
        edge = (b + 1) * BIN_PS
        until = min(edge, stop)
        engine.bins[b % BINS, r].energy_j += power_w * ((until - start) * 1e-12)
        if until == edge:
            close_bin(engine, r, b)
            b += 1
        start = until


@part
def busy_power_w(engine: Engine, d: int, step: int, total: int, compute: int, memory: int) -> float:
    """Mean power while iterations of these summed times (ps, compute at the clock of ``step``) run."""
    dep = engine.deployments[d]
    active = dep.active_w + dep.compute_w * (compute / total)
    return dep.idle_w + engine.ladder[d, SCALE, step] * active + dep.memory_w * (memory / total)


@part
def idle_until(engine: Engine, r: int, limit: int) -> None:
    """Lets slot ``r`` pass the time to ``limit`` without work."""
    slot = engine.slots[r]
    account(engine, r, slot.now_ps, limit, base_power_w(engine, r))
    slot.now_ps = limit
    slot.bound_ps = FOREVER
