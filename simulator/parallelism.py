"""How a model is cut over the GPUs of a slot: tensor parallel within a pipeline stage, experts sliced or whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .catalog import ModelSpec
from .errors import InputError

MAX_TP = 8


@dataclass(frozen=True)
class Stage:
    """Consecutive layers of a model, held by the ``tp`` GPUs of one pipeline stage.

    Attributes:
        share: Its layers over all layers of the model.
        resident_bytes: Weights in memory: its layers, input embedding and image encoder in the first stage, the output
            head in the last; tied embeddings are in both.
        read_bytes: Weights that an iteration reads if it touches every expert: all but embedding and image encoder.
    """

    share: float
    resident_bytes: float
    read_bytes: float


def pipeline_stages(model: ModelSpec, pp: int) -> tuple[Stage, ...]:
    """The stages of a pipeline.

    Layers that do not divide go one each to the last stages but the very last, which has the output head
    (``get_pp_indices`` of vLLM).

    Args:
        model: The model.
        pp: Number of stages.

    Returns:
        The stages in order.

    Raises:
        InputError: There are fewer layers than stages, or no stage.
    """
    if not 1 <= pp <= model.layers:
        problem = f"cannot cut {model.layers} layers of {model.name} into {pp} stages"
        raise InputError("pp", problem, f"Use 1 to {model.layers}")
    each, rest = divmod(model.layers, pp)
    head, stages = model.head_bytes, []
    for number in range(pp):
        share = (each + (pp - 1 - rest <= number < pp - 1)) / model.layers
        read = model.block_bytes * share + (head if number == pp - 1 else 0)
        table = 0 if model.tied_embeddings and number == pp - 1 else head
        stages.append(Stage(share, read + (table + model.vision_bytes if number == 0 else 0), read))
    return tuple(stages)


def largest_share(stages: tuple[Stage, ...]) -> float:
    """Share of the layers in the stage that has most of them; that stage sets the pace."""
    return max(stage.share for stage in stages)


def tensor_parallel_sizes(model: ModelSpec) -> Iterator[int]:
    """Numbers of GPUs, ascending, over which the model's heads divide."""
    return (tp for tp in range(1, MAX_TP + 1) if _divides(model, tp))


def check_tp(model: ModelSpec, tp: int) -> None:
    """Refuses a number of GPUs over which the model's heads do not divide.

    Raises:
        InputError: They do not; the message says over which they do.
    """
    if tp < 1 or tp > MAX_TP or not _divides(model, tp):
        sizes = ", ".join(str(n) for n in tensor_parallel_sizes(model))
        problem = f"cannot split {model.heads} heads and {model.kv_heads} KV heads of {model.name} over {tp} GPUs"
        raise InputError("tp", problem, f"Use one of {sizes}")


def check_ep(model: ModelSpec, tp: int) -> None:
    """Refuses to spread whole experts where there are none, or where they do not divide over the GPUs.

    Raises:
        InputError: So it is.
    """
    if model.experts == 1:
        raise InputError("ep", f"{model.name} is dense and has no experts to spread", "Leave ep out")
    if model.experts % tp:
        sizes = ", ".join(str(n) for n in tensor_parallel_sizes(model) if model.experts % n == 0)
        problem = f"cannot spread {model.experts} experts of {model.name} whole over {tp} GPUs"
        raise InputError("ep", problem, f"Use a tp of {sizes}, or leave ep out")


def _divides(model: ModelSpec, tp: int) -> bool:
    return model.heads % tp == 0 and (model.kv_heads % tp == 0 or tp % model.kv_heads == 0)
