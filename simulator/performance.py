"""How long an engine iteration takes and how much KV cache fits: a roofline with fitted efficiencies.

The roofline follows Williams et al. (CACM 2009) with the transformer's operation counts of Pope et al. (MLSys 2023):
two floating-point operations per active parameter and token, four per query-key pair, layer and query channel.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .catalog import GpuSpec, ModelSpec, Scale
from .communication import all_reduce_s, hand_on_s
from .errors import InputError
from .experts import busiest_experts, busiest_pairs
from .kernels.tables import IterationCost
from .parallelism import Stage, check_ep, check_tp, largest_share, pipeline_stages, tensor_parallel_sizes
from .units import PS_PER_S, to_ps

FLOP_PER_PARAMETER = 2
BF16_BYTES = 2
MAX_BATCHED_TOKENS = 8192
BLOCK_TOKENS = 16
GPU_MEMORY_UTILIZATION = 0.9


def iteration_cost(
    model: ModelSpec,
    gpu: GpuSpec,
    tp: int,
    max_tokens: int = MAX_BATCHED_TOKENS,
    pp: int = 1,
    ep: bool = False,
    scale: Scale | None = None,
    greedy: bool = False,
) -> IterationCost:
    """Roofline of one engine iteration, tabulated by batched tokens.

    Starting the kernels of a layer takes time whatever the batch, more of it for those that route tokens to experts and
    for shared experts beside them; quantising the inputs of FP8 layers keeps memory busy.

    Compute and weight streaming overlap imperfectly: ``overlap_loss`` of the smaller one adds to the larger one, which
    also makes the compute efficiency saturate with the number of tokens. Host work and the choice of next tokens
    grow with the sequences of a batch.

    **Pipeline.** vLLM keeps ``pp`` micro-batches in flight, one in each stage. An iteration over t tokens is one lap of
    a full pipeline: every micro-batch of t/pp tokens (at least one) passes every stage, so that every sequence gets one
    token, in pp times the time of the slowest stage and pp − 1 messages between stages. Matrix work, attention and KV
    reads are shared among the stages. Weights are not: a stage reads its own again for every micro-batch, which makes
    the weight traffic that of the whole model over ``tp`` GPUs, with the experts that t/pp tokens touch. Host work is
    done for every micro-batch. Where layers do not divide, the largest stage counts. The output head's weights are read
    by the last stage alone; its work is taken as shared, since of a prompt only the last token passes it.

    This gives the throughput and the inter-token latency of a steady, evenly filled pipeline. It is wrong in these: a
    prompt alone in the engine passes the stages one after the other and takes up to pp times as long as here; fewer
    than pp sequences read their KV cache up to pp times as slowly; and vLLM does not even out its micro-batches, so
    that a real pipeline has bubbles. ``max_tokens`` is the budget of a lap: pp times vLLM's, which is per micro-batch.

    **Experts.** With ``ep`` every GPU of a stage holds E/tp experts whole, and attention stays tensor parallel.
    The GPU with most tokens decides the compute time, the one with most touched experts the weight traffic. All GPUs
    have all tokens, as with vLLM's tensor-parallel engines, so that expert layers all-reduce as dense ones do; only
    data-parallel engines dispatch tokens to one another.

    Args:
        model: The model.
        gpu: The GPU.
        tp: GPUs that share every layer (tensor parallelism).
        max_tokens: Token budget of an iteration, the length of the tables less one.
        pp: Pipeline stages, each of ``tp`` GPUs.
        ep: Whether experts are spread whole over the GPUs of a stage.
        scale: Factors fitted for just this; none by default.
        greedy: Whether every next token is the likeliest, rather than drawn from the likeliest.

    Returns:
        Times in integer picoseconds at the highest clock.

    Raises:
        InputError: ``tp`` does not divide the heads, ``pp`` exceeds the layers, ``ep`` does not suit the model, or
            ``max_tokens`` is not positive.
    """
    check_tp(model, tp)
    if ep:
        check_ep(model, tp)
    if max_tokens < 1:
        raise InputError("max_tokens", f"is {max_tokens}", "Give a positive token budget, such as 8192")
    stages, timing = pipeline_stages(model, pp), gpu.timing
    share = largest_share(stages)
    tokens = np.arange(max_tokens + 1, dtype=np.float64)
    batch = np.maximum(tokens / pp, np.minimum(tokens, 1))
    flop_per_s = gpu.mixed_flop_per_s(fp8_share(model, gpu), timing.fp8_efficiency) * timing.compute_efficiency * tp
    bytes_per_s = gpu.memory_bytes_per_s * timing.memory_efficiency
    matrix_s = FLOP_PER_PARAMETER * _multiplied(model, gpu, tp, batch, ep) / flop_per_s
    scans_s = batch * timing.scan_s * (model.mamba.layers if model.mamba else 0) / tp
    compute_s = pp * share * (matrix_s + scans_s)
    memory_s = pp * (_streamed(model, gpu, stages, tp, batch, ep) / tp / bytes_per_s)
    memory_s[1:] += pp * share * model.fp8_layers * timing.fp8_layer_s
    memory_s[0] = 0
    unhidden_s = timing.overlap_loss * np.minimum(pp * share * matrix_s, memory_s)
    stage_s = share * model.all_reduces * all_reduce_s(model, gpu, tp, batch)
    layers_s = model.layers * timing.layer_s + model.moe_layers * timing.expert_layer_s
    gaps_s = pp * share * (layers_s + model.shared_layers * timing.shared_layer_s)
    attention_s = share * model.attention_flop_per_pair / tp / (gpu.bf16_flop_per_s * timing.attention_efficiency)
    cache_bytes_per_s = gpu.memory_bytes_per_s * timing.kv_efficiency
    slower, busier, longer_s = (scale.time, scale.time * scale.compute, scale.step_s) if scale else (1.0, 1.0, 0.0)
    return IterationCost(
        step_ps=to_ps(slower * pp * timing.step_s),
        sequence_ps=to_ps(slower * timing.sequence_s),
        gap_ps=to_ps(max(slower * gaps_s + longer_s, 0.0)),
        sample_ps=to_ps(slower * (timing.greedy_s if greedy else timing.sampling_s)),
        link_ps=_ps(slower * (pp * stage_s + (pp - 1) * hand_on_s(model, gpu, tp, batch))),
        compute_ps=_ps(busier * compute_s + slower * unhidden_s),
        memory_ps=_ps(slower * (memory_s + unhidden_s)),
        kv_read_ps=to_ps(slower * share * kv_bytes_per_gpu(model, tp) / cache_bytes_per_s),
        state_ps=to_ps(slower * share * model.moved_state_bytes_per_sequence / tp / cache_bytes_per_s),
        attention_ps=to_ps(busier * attention_s),
    )


def kv_capacity_tokens(
    model: ModelSpec, gpu: GpuSpec, tp: int, gpu_memory_utilization: float = GPU_MEMORY_UTILIZATION, pp: int = 1
) -> int:
    """Tokens whose keys and values fit beside the weights, in whole blocks of 16.

    The stage of a pipeline that has room for fewest decides. Experts weigh the same sliced or whole.

    Args:
        model: The model.
        gpu: The GPU.
        tp: GPUs that share every layer.
        gpu_memory_utilization: Share of the memory that the engine may use, as vLLM's option of that name.
        pp: Pipeline stages.

    Returns:
        Capacity in tokens.

    Raises:
        InputError: The model does not fit; the message says what would.
    """
    check_tp(model, tp)
    if not 0 < gpu_memory_utilization <= 1:
        raise InputError("gpu_memory_utilization", f"is {gpu_memory_utilization}", "Give a share above 0, at most 1")
    capacity = _capacity(model, gpu, tp, pp, gpu_memory_utilization)
    if capacity < gpu.host.min_kv_tokens:
        kv_bytes = gpu.host.min_kv_tokens * kv_bytes_per_gpu(model, tp)
        needed = gpu.host.runtime_bytes + max(
            stage.resident_bytes / tp + stage.share * kv_bytes for stage in pipeline_stages(model, pp)
        )
        available = gpu.memory_bytes * gpu_memory_utilization
        fitting = (n for n in tensor_parallel_sizes(model) if n > tp)
        larger = next(
            (n for n in fitting if _capacity(model, gpu, n, pp, gpu_memory_utilization) >= gpu.host.min_kv_tokens), None
        )
        remedy = f"Use tp={larger}, or a smaller model" if larger else "Use a smaller model or a GPU with more memory"
        problem = f"needs {needed / 1e9:.1f} GB on each GPU, {available / 1e9:.1f} GB are available"
        where = f"{model.name} on {gpu.name} with tp={tp}" + (f" and pp={pp}" if pp > 1 else "")
        raise InputError(where, problem, remedy)
    return capacity


def fp8_share(model: ModelSpec, gpu: GpuSpec) -> float:
    """Share of a token's matrix operations that the GPU does in FP8, if it has units for that."""
    return model.fp8_share + (model.narrow_share if gpu.narrow_fp8 else 0)


def kv_bytes_per_gpu(model: ModelSpec, tp: int) -> float:
    """Bytes of one token's keys and values on each of ``tp`` GPUs that hold all layers.

    With more GPUs than KV heads these are replicated.
    """
    return model.kv_bytes_per_token * max(1, model.kv_heads // tp) / model.kv_heads


def crowds(model: ModelSpec, tp: int, tokens: NDArray[np.float64], ep: bool) -> NDArray[np.bool_]:
    """Where so many tokens are more than a GPU has experts, if these are in bfloat16."""
    held = model.experts // tp if ep else model.experts
    return (tokens > held) & (model.expert_bytes == BF16_BYTES * model.expert_parameters)


def _capacity(model: ModelSpec, gpu: GpuSpec, tp: int, pp: int, utilization: float) -> int:
    def tokens(stage: Stage) -> int:
        free = gpu.memory_bytes * utilization - stage.resident_bytes / tp - gpu.host.runtime_bytes
        return int(free / (stage.share * kv_bytes_per_gpu(model, tp)))

    return min(tokens(stage) for stage in pipeline_stages(model, pp)) // BLOCK_TOKENS * BLOCK_TOKENS


def _multiplied(model: ModelSpec, gpu: GpuSpec, tp: int, tokens: NDArray[np.float64], ep: bool) -> NDArray[np.float64]:
    """Parameters that so many tokens pass through, those of experts weighed by how slowly they are multiplied.

    With whole experts, the GPU with most tokens counts ``tp`` times.
    """
    pairs = tokens * model.experts_per_token
    routed = model.expert_parameters if model.experts > 1 else 0
    dense = (model.active_parameters - model.lookup_parameters) * tokens - routed * pairs
    busiest = tp * busiest_pairs(model, tp, tokens) if ep else pairs
    return dense + routed * busiest / gpu.timing.expert_compute_efficiency


def _streamed(
    model: ModelSpec, gpu: GpuSpec, stages: tuple[Stage, ...], tp: int, tokens: NDArray[np.float64], ep: bool
) -> NDArray[np.float64]:
    """Bytes that the largest stage reads, those of experts weighed by how slowly they are read.

    With whole experts, the GPU that reads most counts ``tp`` times. Tokens choose experts together, so that a batch
    touches as many as fewer tokens would that choose at random. More of them than experts are read more slowly.
    """
    if model.experts == 1:
        return np.full_like(tokens, max(stage.read_bytes for stage in stages))
    choosing = np.where(tokens > 0, 1 + gpu.timing.expert_spread * (tokens - 1), 0)
    touched = tp * busiest_experts(model, tp, choosing) if ep else busiest_experts(model, 1, choosing)
    crowded = crowds(model, tp, tokens, ep) * gpu.timing.expert_crowding
    weight = model.expert_bytes / gpu.timing.expert_memory_efficiency * (1 + crowded)
    read = [
        stage.read_bytes + stage.share * (weight * touched - model.expert_bytes * model.experts) for stage in stages
    ]
    return np.asarray(np.max(read, axis=0))


def _ps(seconds: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.rint(seconds * PS_PER_S).astype(np.int64)
