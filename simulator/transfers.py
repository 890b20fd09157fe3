"""How long weights and KV caches take on their way: loading, waking, and handing a prompt's cache to another server."""

from __future__ import annotations

from .catalog import GpuSpec, ModelSpec
from .parallelism import check_tp, largest_share, pipeline_stages
from .performance import kv_bytes_per_gpu


def load_time_s(model: ModelSpec, gpu: GpuSpec, tp: int, pp: int = 1) -> float:
    """Time from an empty slot to a serving engine, seconds.

    Args:
        model: The model.
        gpu: The GPU.
        tp: GPUs that share every layer, each of which fetches its share of the weights.
        pp: Pipeline stages; the one with most weights decides.

    Returns:
        Process start, weight transfer and warm-up.
    """
    return gpu.host.start_s + _weights_s(model, tp, pp, gpu.host.storage_bytes_per_s) + gpu.host.warm_up_s


def wake_time_s(model: ModelSpec, gpu: GpuSpec, tp: int, pp: int = 1, sleep_level: int = 2) -> float:
    """Time from a sleeping engine to a serving one, seconds.

    Args:
        model: The model.
        gpu: The GPU.
        tp: GPUs that share every layer.
        pp: Pipeline stages; the one with most weights decides.
        sleep_level: As vLLM's: 1 kept the weights in the memory of the host, 2 dropped them.

    Returns:
        Weight transfer, over the host link or from storage, and the mapping of memory.
    """
    if sleep_level == 1:
        link = gpu.host_link_bytes_per_s * gpu.host.host_link_efficiency
        return _weights_s(model, tp, pp, link) + gpu.host.remap_s
    return _weights_s(model, tp, pp, gpu.host.storage_bytes_per_s) + gpu.host.wake_s


def kv_transfer_s(model: ModelSpec, gpu: GpuSpec, tp: int, pp: int = 1) -> float:
    """Time that one token's keys and values take to another server, seconds.

    Every GPU sends what it holds over its own port of the network; the latency, once for a prompt, is
    ``gpu.host.network_latency_s``.

    Args:
        model: The model.
        gpu: The GPU.
        tp: GPUs that share every layer.
        pp: Pipeline stages; the one with most layers decides.

    Returns:
        Bytes of the GPU that has most over the rate of its port.
    """
    check_tp(model, tp)
    return largest_share(pipeline_stages(model, pp)) * kv_bytes_per_gpu(model, tp) / gpu.network_bytes_per_s


def _weights_s(model: ModelSpec, tp: int, pp: int, bytes_per_s: float) -> float:
    check_tp(model, tp)
    return max(stage.resident_bytes for stage in pipeline_stages(model, pp)) / tp / bytes_per_s
