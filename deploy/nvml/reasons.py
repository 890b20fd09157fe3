"""Names of the reasons for which NVML says that a GPU's clock is held back."""

from __future__ import annotations

# Bits of nvmlClocksEventReason* in NVIDIA's NVML reference.
REASONS = {
    "gpu_idle": 0x1,
    "applications_clocks": 0x2,
    "sw_power_cap": 0x4,
    "hw_slowdown": 0x8,
    "sync_boost": 0x10,
    "sw_thermal_slowdown": 0x20,
    "hw_thermal_slowdown": 0x40,
    "hw_power_brake": 0x80,
    "display_clock": 0x100,
}


def named(bits: int) -> frozenset[str]:
    """The reasons that are set in ``bits``; bits without a name are left out."""
    return frozenset(name for name, bit in REASONS.items() if bits & bit)
