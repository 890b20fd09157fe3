"""Figures that no data sheet gives: how a GPU and its host behave, each table with its source."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class Spec(BaseModel):
    """A frozen table of the catalogue; unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Fitted(Spec):
    """Figures that no data sheet gives.

    Attributes:
        calibrated: Whether they were fitted to measurements of this very GPU; else they are scaled from another.
        source: The measurements, or what was assumed.
    """

    calibrated: bool
    source: str


class TimingFit(Fitted):
    """How close an iteration comes to the data sheet.

    Attributes:
        compute_efficiency: Share of the dense peak FLOP/s that large matrix products reach.
        fp8_efficiency: Products in FP8 reach this share of it.
        expert_compute_efficiency: Products of routed experts reach this share of it: each has few of the tokens.
        attention_efficiency: Share of the dense peak FLOP/s that prefill attention reaches.
        memory_efficiency: Share of the peak memory bandwidth that weight reads reach.
        expert_memory_efficiency: Weight reads of routed experts reach this share of it.
        expert_crowding: How much longer it takes to read bfloat16 experts where a batch has more tokens than a GPU has
            experts, less one: the fused kernels of vLLM then take larger tiles.
        kv_efficiency: Share of the peak memory bandwidth that KV and state reads reach.
        expert_spread: Share of the tokens of a batch that choose their experts on their own; the others follow them,
            so that a batch touches fewer experts than if all chose at random.
        overlap_loss: Share of the smaller of compute and weight streaming that the larger one does not hide.
        step_s: Host work of an iteration during which the GPUs wait, seconds.
        sequence_s: More of it for each sequence, seconds.
        layer_s: What starting the kernels of a layer adds, seconds.
        expert_layer_s: What routing adds to a layer with experts, seconds.
        shared_layer_s: What experts that every token passes through add beside it, seconds.
        fp8_layer_s: What weights in FP8 add to a layer: inputs of every matrix product are quantised first, seconds.
        sampling_s: Choosing the next token of one sequence at random on the GPU, from the sorted likeliest, seconds.
        greedy_s: Choosing the likeliest, seconds.
        scan_s: Mamba scan of one token in one layer at the highest clock, seconds.
        link_efficiency: Share of the link bandwidth that an all-reduce reaches.
        message_s: Latency of one all-reduce, seconds.
    """

    compute_efficiency: Fraction
    fp8_efficiency: Fraction
    expert_compute_efficiency: Fraction
    attention_efficiency: Fraction
    memory_efficiency: Fraction
    expert_memory_efficiency: Fraction
    expert_crowding: NonNegative = 0.0
    kv_efficiency: Fraction
    expert_spread: Fraction
    overlap_loss: Annotated[float, Field(ge=0, le=1)]
    step_s: NonNegative
    sequence_s: NonNegative
    layer_s: NonNegative
    expert_layer_s: NonNegative
    shared_layer_s: NonNegative = 0.0
    fp8_layer_s: NonNegative = 0.0
    sampling_s: NonNegative
    greedy_s: NonNegative
    scan_s: NonNegative
    link_efficiency: Fraction
    message_s: NonNegative


class PowerFit(Fitted):
    """Power of one GPU, linear in busy fractions; see ``PowerCoefficients`` of the kernels for the formula.

    Attributes:
        off_w: No weights resident, watts.
        idle_w: A process waits for work, watts.
        resident_w: Added in proportion to the share of the memory that weights take, watts.
        active_w: Added while GPUs work rather than wait for the host, at the highest clock, watts.
        compute_w: Added at full compute utilisation, at the highest clock, watts.
        memory_w: Added while weights and states are read and next tokens chosen, at any clock, watts.
        cache_w: Added while keys and values are read, at any clock, watts.
        link_w: Added while GPUs communicate, at any clock, watts.
    """

    off_w: NonNegative
    idle_w: NonNegative
    resident_w: NonNegative = 0.0
    active_w: NonNegative
    compute_w: NonNegative
    memory_w: NonNegative
    cache_w: NonNegative
    link_w: NonNegative = 0.0


class ClockFit(Fitted):
    """How dynamic power falls with the core clock.

    Attributes:
        ratio: Clocks relative to the highest, ascending to 1.
        scale: Dynamic power at each of them relative to the highest, ascending to 1 at least as fast.
    """

    ratio: tuple[Fraction, ...]
    scale: tuple[Fraction, ...]

    @model_validator(mode="after")
    def _is_a_curve(self) -> Self:
        for values in (self.ratio, self.scale):
            if len(values) != len(self.ratio) or list(values) != sorted(set(values)) or values[-1] != 1:
                raise ValueError("ratio and scale must have equal lengths and ascend strictly to 1")
        per_clock = [scale / ratio for ratio, scale in zip(self.ratio, self.scale, strict=True)]
        if per_clock != sorted(per_clock):
            raise ValueError("scale must grow at least as fast as ratio: voltage does not fall as the clock rises")
        return self


class TransitionFit(Fitted):
    """How long it takes until what control has set holds; the GPU goes on as before until then.

    Attributes:
        cap_s: Of a power limit, seconds.
        lock_s: Of a clock lock, seconds.
    """

    calibrated: bool = False
    source: str = "none given: at once"
    cap_s: NonNegative = 0.0
    lock_s: NonNegative = 0.0


class ThermalFit(Fitted):
    """Heat of the die over its inlet, as two RC poles.

    Attributes:
        resistance_k_per_w: Thermal resistance of each pole, kelvin per watt.
        tau_s: Time constant of each pole, seconds.
        throttle_c: Die temperature at which the driver lowers the clock, °C.
        resume_c: Die temperature at which it lets go, °C.
    """

    resistance_k_per_w: tuple[NonNegative, NonNegative]
    tau_s: tuple[Positive, Positive]
    throttle_c: Positive
    resume_c: Positive


class MeterFit(Fitted):
    """The power meter that NVML reads.

    Attributes:
        window_s: Averaging window, seconds.
    """

    window_s: Positive


class HostFit(Fitted):
    """What a server adds around its GPUs when a model is loaded.

    Attributes:
        storage_bytes_per_s: Rate at which one GPU's share of the weights arrives, bytes per second.
        start_s: Start of an engine process up to the first weight, seconds.
        warm_up_s: Memory profiling, compilation from cache and graph capture after the last weight, seconds.
        wake_s: Mapping memory back and rebuilding the KV cache in a sleeping process, seconds.
        host_link_efficiency: Share of the host link that weights reach on their way back from the memory of the host.
        remap_s: As ``wake_s`` where the weights wait in the memory of the host, seconds.
        network_latency_s: Part of handing over a KV cache that does not depend on its length, seconds.
        runtime_bytes: Memory of one GPU taken by the CUDA context, activations and graphs, bytes.
        min_kv_tokens: KV cache below which a deployment counts as not fitting, tokens.
        idle_w: The CPU packages without work, watts; see ``host_power_w``.
        active_w: Added while an instance has work, watts.
        request_w: Added for each running request, watts.
    """

    storage_bytes_per_s: Positive
    start_s: NonNegative
    warm_up_s: NonNegative
    wake_s: NonNegative
    host_link_efficiency: Fraction
    remap_s: NonNegative
    network_latency_s: NonNegative
    runtime_bytes: NonNegative
    min_kv_tokens: Count
    idle_w: NonNegative
    active_w: NonNegative
    request_w: NonNegative
