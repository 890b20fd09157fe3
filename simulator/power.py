"""Power of a slot: coefficients linear in busy fractions, and how they fall with the core clock."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .catalog import GpuSpec, ModelSpec, Scale
from .kernels.tables import PowerCoefficients
from .performance import FLOP_PER_PARAMETER, fp8_share, kv_capacity_tokens

LADDER_STEPS = 81
SCAN_POWER = 0.5
"""A Mamba scan draws this share of what matrix products draw, say the runs that H100-80GB is fitted to."""


def power_coefficients(
    model: ModelSpec, gpu: GpuSpec, tp: int, pp: int = 1, scale: Scale | None = None
) -> PowerCoefficients:
    """Power coefficients of the GPUs that hold one instance of a model.

    Args:
        model: The model, which must fit.
        gpu: The GPU.
        tp: GPUs that share every layer.
        pp: Pipeline stages, each of ``tp`` GPUs.
        scale: Factors fitted for just this; none by default.

    Returns:
        Watts of all GPUs together, the clock ladder, limits, heat and meter.

    Raises:
        InputError: The model does not fit.
    """
    kv_capacity_tokens(model, gpu, tp, pp=pp)
    gpus = tp * pp
    weights = model.weight_bytes / gpus / gpu.memory_bytes
    above_idle = gpus * (scale.power if scale else 1.0)
    computing = above_idle * drawn_share(model, gpu)
    ratio, dynamic = clock_ladder(gpu)
    return PowerCoefficients(
        off_w=gpu.power.off_w * gpus,
        idle_w=(gpu.power.idle_w + gpu.power.resident_w * weights) * gpus,
        active_w=gpu.power.active_w * above_idle,
        compute_w=gpu.power.compute_w * computing,
        memory_w=gpu.power.memory_w * above_idle,
        cache_w=gpu.power.cache_w * above_idle,
        link_w=gpu.power.link_w * above_idle,
        clock_ratio=ratio,
        scale=dynamic,
        cap_min_w=gpu.cap_min_w * gpus,
        cap_max_w=gpu.cap_max_w * gpus,
        meter_window_s=gpu.meter.window_s,
        thermal_r_k_per_w=np.array(gpu.thermal.resistance_k_per_w),
        thermal_tau_s=np.array(gpu.thermal.tau_s),
        throttle_c=gpu.thermal.throttle_c,
        resume_c=gpu.thermal.resume_c,
        cap_settles_s=gpu.transition.cap_s,
        lock_settles_s=gpu.transition.lock_s,
        gpus=gpus,
    )


def drawn_share(model: ModelSpec, gpu: GpuSpec) -> float:
    """Share of ``compute_w`` that a model draws while it computes.

    What matrix products draw goes with their operations: those of experts take longer for the same and draw no more.
    """
    timing = gpu.timing
    flop_per_s = gpu.mixed_flop_per_s(fp8_share(model, gpu), timing.fp8_efficiency) * timing.compute_efficiency
    routed = model.experts_per_token * model.expert_parameters if model.experts > 1 else 0
    dense = model.active_parameters - model.lookup_parameters - routed
    scan_s = timing.scan_s * model.mamba.layers if model.mamba else 0.0
    works_s = FLOP_PER_PARAMETER * (dense + routed) / flop_per_s
    takes_s = FLOP_PER_PARAMETER * (dense + routed / timing.expert_compute_efficiency) / flop_per_s
    return (works_s + SCAN_POWER * scan_s) / (takes_s + scan_s)


def clock_ladder(gpu: GpuSpec, steps: int = LADDER_STEPS) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Clocks that the governor may choose, and dynamic power at each.

    Dynamic power is f·V(f)². Between the anchors of the catalogue it is a power law of the clock; below the lowest one
    the voltage sits at its floor and power is proportional to the clock.

    Args:
        gpu: The GPU.
        steps: Length of the ladder.

    Returns:
        Clocks and dynamic powers relative to those at the highest clock, both ascending to 1.
    """
    ratio = np.linspace(gpu.clock_min_mhz / gpu.clock_max_mhz, 1.0, steps)
    anchor_ratio, anchor_scale = np.array(gpu.clock.ratio), np.array(gpu.clock.scale)
    scale = np.exp(np.interp(np.log(ratio), np.log(anchor_ratio), np.log(anchor_scale)))
    floor = ratio < anchor_ratio[0]
    scale[floor] = anchor_scale[0] * ratio[floor] / anchor_ratio[0]
    return ratio, scale
