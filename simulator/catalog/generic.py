"""Dimensions of a model of which only the size is known: those that models of its size usually have.

Heads are 128 wide with eight for keys and values, and the vocabulary is Llama 3's. With width d, MLPs of 3.5·d and L
layers a dense model has about L·(12.5·d² + 2048·d) + 2·V·d parameters. Llama 3.1, Qwen3, Qwen2.5, Mistral and Llama 2
of 7 to 405 billion parameters have d/L from 80 to 130; here it is 110, which settles d and L. The MLPs then take what
is missing.

A mixture gets the width and depth of a dense model of its active parameters, and passes a token through 8 experts, as
Qwen3 and DeepSeek-V3 do; their number and size follow from the two parameter counts.
"""

from __future__ import annotations

HEAD_DIM = 128
KV_HEADS = 8
VOCAB = 128_256
MAX_MODEL_LEN = 131_072
LAYERS_WIDTH = 110
EXPERTS_PER_TOKEN = 8
WIDTH_STEP = 8 * HEAD_DIM
"""Heads come in eights, so that they divide over tensor-parallel GPUs."""


def generic_dimensions(parameters: int, active_parameters: int) -> dict[str, int]:
    """Dimensions of a model of that size.

    Args:
        parameters: All of them.
        active_parameters: Those that one token passes through.

    Returns:
        Fields of ``ModelSpec`` by name.
    """
    hidden = _hidden(active_parameters)
    attention = 2 * hidden * (hidden + KV_HEADS * HEAD_DIM)
    tables = 2 * VOCAB * hidden
    layers = max(1, round((active_parameters - tables) / (attention + 10.5 * hidden**2)))
    dimensions = {
        "layers": layers,
        "hidden": hidden,
        "heads": hidden // HEAD_DIM,
        "kv_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "vocab": VOCAB,
        "max_model_len": MAX_MODEL_LEN,
    }
    outside, experts = tables + layers * attention, 1
    if active_parameters < parameters:
        each = (active_parameters - outside) / EXPERTS_PER_TOKEN
        idle = round((parameters - active_parameters) / each / EXPERTS_PER_TOKEN)
        experts = EXPERTS_PER_TOKEN * (1 + max(1, idle))
        dimensions |= {"experts": experts, "experts_per_token": EXPERTS_PER_TOKEN}
    width = (parameters - outside) / (3 * hidden * layers * experts)
    return dimensions | {"intermediate": max(1, int(width))}


def _hidden(parameters: int) -> int:
    """Width at which a dense model with the usual proportions has most nearly so many parameters."""

    def count(hidden: int) -> float:
        return hidden / LAYERS_WIDTH * (12.5 * hidden**2 + 2048 * hidden) + 2 * VOCAB * hidden

    return min(range(WIDTH_STEP, 64 * WIDTH_STEP, WIDTH_STEP), key=lambda hidden: abs(count(hidden) - parameters))
