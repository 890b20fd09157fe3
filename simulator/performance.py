"""How long an engine iteration, a load and a wake take, and how much fits: a roofline with fitted efficiencies.

The roofline follows Williams et al. (CACM 2009) with the transformer's operation counts of Pope et al. (MLSys 2023):
two floating-point operations per active parameter and token, four per query-key pair, layer and query channel.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from .catalog import GpuSpec, ModelSpec
from .errors import InputError
from .kernels.tables import IterationCost
from .units import PS_PER_S

FLOP_PER_PARAMETER = 2
FLOP_PER_PAIR_CHANNEL = 4
ALL_REDUCES_PER_LAYER = 2
MAX_BATCHED_TOKENS = 8192
MAX_SEQUENCES = 256
BLOCK_TOKENS = 16
MAX_TP = 8
GPU_MEMORY_UTILIZATION = 0.9


def iteration_cost(model: ModelSpec, gpu: GpuSpec, tp: int, max_tokens: int = MAX_BATCHED_TOKENS) -> IterationCost:
    """Roofline of one engine iteration, tabulated by batched tokens.

    Compute and weight streaming overlap imperfectly: ``overlap_loss`` of the smaller one adds to the larger one, which
    also makes the compute efficiency saturate with the number of tokens. Host work grows with the sequences of a batch,
    of which a batch of t tokens has at most min(t, 256), vLLM's default ``max_num_seqs``.

    Args:
        model: The model.
        gpu: The GPU.
        tp: GPUs that share the model (tensor parallelism).
        max_tokens: Token budget of an iteration, the length of the tables less one.

    Returns:
        Times in integer picoseconds at the highest clock.

    Raises:
        InputError: ``tp`` does not divide the heads, or ``max_tokens`` is not positive.
    """
    _check_tp(model, tp)
    if max_tokens < 1:
        raise InputError("max_tokens", f"is {max_tokens}", "Give a positive token budget, such as 8192")
    timing = gpu.timing
    tokens = np.arange(max_tokens + 1, dtype=np.float64)
    flop_per_s = gpu.flop_per_s(model.dtype_bytes) * timing.compute_efficiency * tp
    bytes_per_s = gpu.memory_bytes_per_s * timing.memory_efficiency
    multiplied = model.active_parameters - model.lookup_parameters
    compute_s = FLOP_PER_PARAMETER * multiplied * tokens / flop_per_s
    streamed = np.array([model.streamed_parameters(t) for t in range(max_tokens + 1)])
    memory_s = streamed * model.dtype_bytes / tp / bytes_per_s
    memory_s[0] = 0
    unhidden_s = timing.overlap_loss * np.minimum(compute_s, memory_s)
    host_s = timing.step_s + timing.sequence_s * np.minimum(tokens, MAX_SEQUENCES)
    attention_flop = FLOP_PER_PAIR_CHANNEL * model.layers * model.heads * model.head_dim / tp
    attention_s = attention_flop / (gpu.bf16_flop_per_s * timing.attention_efficiency)
    kv_read_s = kv_bytes_per_gpu(model, tp) / bytes_per_s
    return IterationCost(
        fixed_ps=_ps(host_s + _all_reduce_s(model, gpu, tp, tokens)),
        compute_ps=_ps(compute_s + unhidden_s),
        memory_ps=_ps(memory_s + unhidden_s),
        kv_read_ps=round(kv_read_s * PS_PER_S),
        attention_ps=round(attention_s * PS_PER_S),
    )


def kv_capacity_tokens(
    model: ModelSpec, gpu: GpuSpec, tp: int, gpu_memory_utilization: float = GPU_MEMORY_UTILIZATION
) -> int:
    """Tokens whose keys and values fit beside the weights, in whole blocks of 16.

    Args:
        model: The model.
        gpu: The GPU.
        tp: GPUs that share the model.
        gpu_memory_utilization: Share of the memory that the engine may use, as vLLM's option of that name.

    Returns:
        Capacity in tokens.

    Raises:
        InputError: The model does not fit; the message says what would.
    """
    _check_tp(model, tp)
    if not 0 < gpu_memory_utilization <= 1:
        raise InputError("gpu_memory_utilization", f"is {gpu_memory_utilization}", "Give a share above 0, at most 1")
    capacity = _capacity(model, gpu, tp, gpu_memory_utilization)
    if capacity < gpu.host.min_kv_tokens:
        needed = model.weight_bytes / tp + gpu.host.runtime_bytes + gpu.host.min_kv_tokens * kv_bytes_per_gpu(model, tp)
        available = gpu.memory_bytes * gpu_memory_utilization
        fitting = (n for n in tensor_parallel_sizes(model) if n > tp)
        larger = next(
            (n for n in fitting if _capacity(model, gpu, n, gpu_memory_utilization) >= gpu.host.min_kv_tokens), None
        )
        remedy = f"Use tp={larger}, or a smaller model" if larger else "Use a smaller model or a GPU with more memory"
        problem = f"needs {needed / 1e9:.1f} GB on each GPU, {available / 1e9:.1f} GB are available"
        raise InputError(f"{model.name} on {gpu.name} with tp={tp}", problem, remedy)
    return capacity


def load_time_s(model: ModelSpec, gpu: GpuSpec, tp: int) -> float:
    """Time from an empty slot to a serving engine, seconds.

    Args:
        model: The model.
        gpu: The GPU.
        tp: GPUs that share the model, each of which fetches its share of the weights.

    Returns:
        Process start, weight transfer and warm-up.
    """
    return gpu.host.start_s + _transfer_s(model, gpu, tp) + gpu.host.warm_up_s


def wake_time_s(model: ModelSpec, gpu: GpuSpec, tp: int) -> float:
    """Time from a sleeping engine whose weights were dropped (vLLM's sleep level 2) to a serving one, seconds.

    Args:
        model: The model.
        gpu: The GPU.
        tp: GPUs that share the model.

    Returns:
        Weight transfer and the mapping of memory.
    """
    return _transfer_s(model, gpu, tp) + gpu.host.wake_s


def tensor_parallel_sizes(model: ModelSpec) -> Iterator[int]:
    """Numbers of GPUs, ascending, over which the model's heads divide."""
    return (tp for tp in range(1, MAX_TP + 1) if _divides(model, tp))


def kv_bytes_per_gpu(model: ModelSpec, tp: int) -> float:
    """Bytes of one token's keys and values on each GPU; with more GPUs than KV heads these are replicated."""
    return model.kv_bytes_per_token * max(1, model.kv_heads // tp) / model.kv_heads


def _capacity(model: ModelSpec, gpu: GpuSpec, tp: int, utilization: float) -> int:
    free = gpu.memory_bytes * utilization - model.weight_bytes / tp - gpu.host.runtime_bytes
    return int(free / kv_bytes_per_gpu(model, tp)) // BLOCK_TOKENS * BLOCK_TOKENS


def _transfer_s(model: ModelSpec, gpu: GpuSpec, tp: int) -> float:
    _check_tp(model, tp)
    return model.weight_bytes / tp / gpu.host.storage_bytes_per_s


def _all_reduce_s(model: ModelSpec, gpu: GpuSpec, tp: int, tokens: NDArray[np.float64]) -> NDArray[np.float64]:
    """Two ring all-reduces of the residual stream in every layer: latency and 2·(tp − 1)/tp of the bytes."""
    if tp == 1:
        return np.zeros_like(tokens)
    moved = 2 * (tp - 1) / tp * tokens * model.hidden * model.kv_dtype_bytes
    each_s = gpu.timing.message_s + moved / (gpu.link_bytes_per_s * gpu.timing.link_efficiency)
    return ALL_REDUCES_PER_LAYER * model.layers * each_s


def _divides(model: ModelSpec, tp: int) -> bool:
    return model.heads % tp == 0 and (model.kv_heads % tp == 0 or tp % model.kv_heads == 0)


def _check_tp(model: ModelSpec, tp: int) -> None:
    if tp < 1 or tp > MAX_TP or not _divides(model, tp):
        sizes = ", ".join(str(n) for n in tensor_parallel_sizes(model))
        problem = f"cannot split {model.heads} heads and {model.kv_heads} KV heads of {model.name} over {tp} GPUs"
        raise InputError("tp", problem, f"Use one of {sizes}")


def _ps(seconds: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.rint(seconds * PS_PER_S).astype(np.int64)
