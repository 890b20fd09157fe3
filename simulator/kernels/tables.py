"""What the compiled engine knows of a deployment (model, GPU, tensor parallelism): plain numbers.

``performance.py`` and ``power.py`` make these from the catalogue; nothing else in the engine depends on physics.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class IterationCost(NamedTuple):
    """Roofline of one engine iteration of one slot, in integer picoseconds.

    An iteration over ``t`` batched tokens (decodes and prefill chunks together) of ``n`` sequences that reads ``kv``
    cached tokens and attends ``qk`` query-key pairs takes, at relative clock ``f``,

    ``step_ps + sequence_ps·n + gap_ps + sample_ps·n + link_ps[t] + max((compute_ps[t] + attention_ps·qk) / f,
    memory_ps[t] + kv_read_ps·kv + state_ps·n)``.

    Attributes:
        step_ps: Host work between iterations, during which the GPUs wait.
        sequence_ps: More of it for each sequence.
        gap_ps: Kernels that start, and what else takes time on the GPUs whatever the batch.
        sample_ps: Choosing the next token of one sequence, on the GPUs.
        link_ps: int64 (T + 1,): communication among the GPUs, by batched tokens.
        compute_ps: int64 (T + 1,): matrix work at the highest clock, by batched tokens.
        memory_ps: int64 (T + 1,): weight traffic, by batched tokens (a mixture of experts reads more with more).
        kv_read_ps: Reading one cached token's keys and values.
        state_ps: Reading and writing what one sequence keeps whatever its length.
        attention_ps: Attending one query token to one context token, at the highest clock.
    """

    step_ps: int
    sequence_ps: int
    gap_ps: int
    sample_ps: int
    link_ps: NDArray[np.int64]
    compute_ps: NDArray[np.int64]
    memory_ps: NDArray[np.int64]
    kv_read_ps: int
    state_ps: int
    attention_ps: int


class PowerCoefficients(NamedTuple):
    """Power of one slot (all its GPUs together), linear in busy fractions.

    While an iteration runs at ladder step ``i``, with ``u_k``, ``u_c``, ``u_m`` and ``u_l`` the fractions of its time
    in which the GPUs do not wait for the host, compute, memory and links are busy,
    ``P = idle_w + scale[i]·(active_w·u_k + compute_w·u_c) + memory_w·u_m + cache_w·u_v + link_w·u_l``, where ``u_v``
    is the part of memory time that goes to keys and values; else ``P = idle_w``.

    Attributes:
        off_w: No weights resident (empty, sleeping).
        idle_w: Weights resident, no work.
        active_w: Added while GPUs work, that is all the time but the host's, at the highest clock.
        compute_w: Added at full compute utilisation, at the highest clock.
        memory_w: Added while weights and states are read and next tokens chosen; does not scale with the clock.
        cache_w: Added while keys and values are read; does not scale with the clock.
        link_w: Added while GPUs communicate; does not scale with the core clock.
        clock_ratio: float64 (K,): ladder of clocks relative to the highest, ascending, last one 1.0.
        scale: float64 (K,): dynamic power at each step relative to the highest, ascending, last one 1.0.
        cap_min_w: Lowest power limit that the driver accepts, times the number of GPUs.
        cap_max_w: Highest one (TDP), times the number of GPUs.
        meter_window_s: Averaging window of the power meter.
        thermal_r_k_per_w: float64 (2,): thermal resistance of each RC pole, kelvin per watt of one GPU.
        thermal_tau_s: float64 (2,): time constant of each pole.
        throttle_c: Die temperature at which the clock is forced down.
        resume_c: Die temperature at which it is released again.
        cap_settles_s: Time until a power limit holds.
        lock_settles_s: Time until a clock lock holds.
        gpus: Number of GPUs in the slot.
    """

    off_w: float
    idle_w: float
    active_w: float
    compute_w: float
    memory_w: float
    cache_w: float
    link_w: float
    clock_ratio: NDArray[np.float64]
    scale: NDArray[np.float64]
    cap_min_w: float
    cap_max_w: float
    meter_window_s: float
    thermal_r_k_per_w: NDArray[np.float64]
    thermal_tau_s: NDArray[np.float64]
    throttle_c: float
    resume_c: float
    cap_settles_s: float
    lock_settles_s: float
    gpus: int
