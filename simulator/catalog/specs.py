"""What the catalogue knows of a GPU and of a model: data-sheet figures, and the fitted ones of ``fits``."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from .fits import ClockFit, Count, HostFit, MeterFit, Positive, PowerFit, Spec, ThermalFit, TimingFit


class GpuSpec(Spec):
    """One GPU.

    Attributes:
        name: Canonical name.
        source: Where the data-sheet figures come from.
        memory_bytes: Device memory that the driver reports.
        memory_bytes_per_s: Peak memory bandwidth.
        bf16_flop_per_s: Dense peak in bfloat16 (float16 where the chip has no bfloat16).
        fp8_flop_per_s: Dense peak in FP8; none where the chip has no FP8.
        link_bytes_per_s: Bandwidth to the other GPUs of the server, one direction.
        host_link_bytes_per_s: Bandwidth from the memory of the host, one direction.
        network_bytes_per_s: Bandwidth to GPUs of other servers, one direction.
        cap_min_w: Lowest power limit that the driver accepts.
        cap_max_w: Highest one, the TDP.
        clock_min_mhz: Lowest core clock.
        clock_max_mhz: Highest core clock.
        host: The server around it.
        timing: Fitted iteration times.
        power: Fitted power.
        clock: Fitted power over clock.
        thermal: Fitted heat.
        meter: Fitted power meter.
    """

    name: str
    source: str
    memory_bytes: Count
    memory_bytes_per_s: Positive
    bf16_flop_per_s: Positive
    fp8_flop_per_s: Positive | None = None
    link_bytes_per_s: Positive
    host_link_bytes_per_s: Positive
    network_bytes_per_s: Positive
    cap_min_w: Positive
    cap_max_w: Positive
    clock_min_mhz: Positive
    clock_max_mhz: Positive
    host: HostFit
    timing: TimingFit
    power: PowerFit
    clock: ClockFit
    thermal: ThermalFit
    meter: MeterFit

    @model_validator(mode="after")
    def _ranges_ascend(self) -> Self:
        if self.cap_min_w > self.cap_max_w or self.clock_min_mhz >= self.clock_max_mhz:
            raise ValueError("cap_min_w and clock_min_mhz must lie below cap_max_w and clock_max_mhz")
        return self

    @property
    def calibrated(self) -> bool:
        """Whether both timing and power were fitted to measurements of this GPU."""
        return self.timing.calibrated and self.power.calibrated

    def flop_per_s(self, dtype_bytes: int) -> float:
        """Dense peak for weights of so many bytes; without FP8 units one-byte weights are computed in bfloat16."""
        return self.fp8_flop_per_s if dtype_bytes == 1 and self.fp8_flop_per_s else self.bf16_flop_per_s


class ModelSpec(Spec):
    """One decoder-only transformer with grouped-query attention and gated MLPs.

    Attributes:
        name: Canonical name.
        source: Where the dimensions come from.
        parameters: All of them.
        active_parameters: Those that one token passes through; equal to ``parameters`` for a dense model.
        layers: Transformer blocks.
        hidden: Width of the residual stream.
        intermediate: Width of an MLP, of one expert in a mixture.
        heads: Query heads.
        kv_heads: Key and value heads.
        head_dim: Width of a head.
        experts: Experts of a layer; 1 for a dense model.
        experts_per_token: Experts that a token is routed to.
        vocab: Size of the vocabulary.
        tied_embeddings: Whether the output head shares the input embedding.
        dtype_bytes: Bytes of a weight.
        kv_dtype_bytes: Bytes of a cached key or value element.
        max_model_len: Longest context, tokens.
    """

    name: str
    source: str
    parameters: Count
    active_parameters: Count
    layers: Count
    hidden: Count
    intermediate: Count
    heads: Count
    kv_heads: Count
    head_dim: Count
    experts: Count = 1
    experts_per_token: Count = 1
    vocab: Count
    tied_embeddings: bool = False
    dtype_bytes: Annotated[int, Field(ge=1, le=4)] = 2
    kv_dtype_bytes: Annotated[int, Field(ge=1, le=4)] = 2
    max_model_len: Count

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.active_parameters > self.parameters or self.experts_per_token > self.experts:
            raise ValueError("a token cannot pass through more parameters or experts than there are")
        if self.streamed_parameters(1) <= 0 or self.heads % self.kv_heads:
            raise ValueError("the parts exceed the whole: check parameters, experts, vocab, heads and kv_heads")
        return self

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        return self.parameters * self.dtype_bytes

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of one token's keys and values over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.kv_dtype_bytes

    @property
    def lookup_parameters(self) -> int:
        """Parameters of the input embedding, which is looked up and never multiplied."""
        return 0 if self.tied_embeddings else self.vocab * self.hidden

    @property
    def head_parameters(self) -> int:
        """Parameters of the output head."""
        return self.vocab * self.hidden

    @property
    def expert_parameters(self) -> int:
        """Parameters of one expert in all layers; of the MLPs for a dense model."""
        return 3 * self.hidden * self.intermediate * self.layers

    def untouched_experts(self, tokens: float) -> float:
        """Expected experts of a layer that none of so many tokens is routed to.

        With uniform routing ``tokens`` tokens touch E·(1 − (1 − k/E)^tokens) distinct experts of E.
        """
        return 0.0 if self.experts == 1 else self.experts * (1 - self.experts_per_token / self.experts) ** tokens

    def streamed_parameters(self, tokens: float) -> float:
        """Expected parameters read from memory by an iteration over so many tokens."""
        dense = self.parameters - self.lookup_parameters
        return dense - self.expert_parameters * self.untouched_experts(tokens)
