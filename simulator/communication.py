"""What the GPUs of a slot send one another in an iteration, each message a latency and bytes over the link."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .catalog import GpuSpec, ModelSpec

ACTIVATION_BYTES = 2
"""Activations are bfloat16 whatever the weights and the KV cache are."""
HANDED_ON = 2
"""Tensors between pipeline stages: vLLM hands on hidden states and residual apart."""


def all_reduce_s(model: ModelSpec, gpu: GpuSpec, tp: int, tokens: NDArray[np.float64]) -> NDArray[np.float64]:
    """A ring all-reduce of the residual stream: 2·(tp − 1)/tp of its bytes leave every GPU."""
    if tp == 1:
        return np.zeros_like(tokens)
    return _message_s(gpu, 2 * (tp - 1) / tp * tokens * model.hidden * ACTIVATION_BYTES)


def hand_on_s(model: ModelSpec, gpu: GpuSpec, tp: int, tokens: NDArray[np.float64]) -> NDArray[np.float64]:
    """A micro-batch on its way from one pipeline stage to the next.

    Every GPU sends its part of the activations to its counterpart; those of the next stage then gather the whole.
    """
    whole = HANDED_ON * tokens * model.hidden * ACTIVATION_BYTES
    sent_s = _message_s(gpu, whole / tp)
    return sent_s if tp == 1 else sent_s + _message_s(gpu, (tp - 1) / tp * whole)


def _message_s(gpu: GpuSpec, moved_bytes: NDArray[np.float64]) -> NDArray[np.float64]:
    return gpu.timing.message_s + moved_bytes / (gpu.link_bytes_per_s * gpu.timing.link_efficiency)
