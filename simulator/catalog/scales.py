"""What is left of one model on one GPU when the figures of the GPU are shared by all models."""

from __future__ import annotations

from typing import Annotated, NamedTuple, Self

from pydantic import Field, model_validator

from .fits import Count, Positive, Spec


class Cut(NamedTuple):
    """A model on a GPU and how it is cut over several: what a scale is fitted for."""

    model: str
    gpu: str
    tp: int = 1
    pp: int = 1
    ep: bool = False


class Scale(Spec):
    """At most two factors, fitted for one model, GPU and parallelism.

    Attributes:
        model: Name of the model.
        gpu: Name of the GPU.
        tp: GPUs that share every layer.
        pp: Pipeline stages.
        ep: Whether experts are spread whole.
        time: Multiplies the length of every iteration.
        step_s: Added to the length of every iteration, while GPUs work; may be negative, seconds.
        compute: Multiplies, besides, the time of its matrix work and attention.
        power: Multiplies the power drawn above idle.
        source: The measurements.
    """

    model: str
    gpu: str
    tp: Count = 1
    pp: Count = 1
    ep: bool = False
    time: Annotated[Positive, Field(le=10)] = 1.0
    step_s: Annotated[float, Field(ge=-1, le=1)] = 0.0
    compute: Annotated[Positive, Field(le=10)] = 1.0
    power: Annotated[Positive, Field(le=10)] = 1.0
    source: str

    @model_validator(mode="after")
    def _are_two(self) -> Self:
        fitted = (self.time != 1, self.step_s != 0, self.compute != 1, self.power != 1)
        if sum(fitted) > 2:
            raise ValueError("at most two of time, step_s, compute and power may be fitted; leave the others out")
        return self

    @property
    def cut(self) -> Cut:
        """What it is for."""
        return Cut(self.model, self.gpu, self.tp, self.pp, self.ep)
