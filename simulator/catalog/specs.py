"""What the catalogue knows of a GPU: data-sheet figures, and the fitted ones of ``fits``."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from .fits import ClockFit, Count, HostFit, MeterFit, Positive, PowerFit, Spec, ThermalFit, TimingFit, TransitionFit


class GpuSpec(Spec):
    """One GPU.

    Attributes:
        name: Canonical name.
        source: Where the data-sheet figures come from.
        aliases: Other names that it is found by.
        memory_bytes: Device memory that the driver reports.
        memory_bytes_per_s: Peak memory bandwidth.
        bf16_flop_per_s: Dense peak in bfloat16 (float16 where the chip has no bfloat16).
        fp8_flop_per_s: Dense peak in FP8; none where the chip has no FP8.
        narrow_fp8: Whether weights of less than a byte are multiplied with activations in FP8 at its peak, rather than
            in bfloat16.
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
        transition: Fitted times until caps and clock locks hold; none by default.
        thermal: Fitted heat.
        meter: Fitted power meter.
    """

    name: str
    source: str
    aliases: tuple[str, ...] = ()
    memory_bytes: Count
    memory_bytes_per_s: Positive
    bf16_flop_per_s: Positive
    fp8_flop_per_s: Positive | None = None
    narrow_fp8: bool = False
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
    transition: TransitionFit = TransitionFit()
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

    def flop_per_s(self, dtype_bytes: float) -> float:
        """Dense peak for weights of so many bytes; without FP8 units one-byte weights are computed in bfloat16."""
        return self.fp8_flop_per_s if dtype_bytes == 1 and self.fp8_flop_per_s else self.bf16_flop_per_s

    def mixed_flop_per_s(self, fp8_share: float, fp8_efficiency: float = 1.0) -> float:
        """Dense peak over operations of which such a share is in FP8 and the rest in bfloat16, see ``ModelSpec``.

        Those in FP8 reach ``fp8_efficiency`` of what the others do, where the GPU has units for them.
        """
        if not fp8_share:
            return self.flop_per_s(2)
        fp8_flop_per_s = self.flop_per_s(1) * (fp8_efficiency if self.fp8_flop_per_s else 1.0)
        return 1 / (fp8_share / fp8_flop_per_s + (1 - fp8_share) / self.flop_per_s(2))
