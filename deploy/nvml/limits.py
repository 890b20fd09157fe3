"""Writing what a GPU may draw and how fast it may run. Only the keeper calls this."""

from __future__ import annotations

import time
from ctypes import byref, c_uint
from dataclasses import dataclass

import pynvml

from ..readings import Limits
from .devices import Device
from .errors import MigError, NotHeldError, NotSupportedError, RefusedError, mapped

TOLERANCE_W = 1.0
SETTLE_S = 0.3
LOOK_AGAIN_S = 0.02


@dataclass(frozen=True)
class Bounds:
    """The power limits that a GPU accepts, watts."""

    lowest_w: float
    highest_w: float


def read_bounds(device: Device) -> Bounds:
    """The power limits that the driver accepts."""
    with mapped(device.where):
        lowest_mw, highest_mw = pynvml.nvmlDeviceGetPowerManagementLimitConstraints(device.handle)
    return Bounds(lowest_mw / 1e3, highest_mw / 1e3)


def read_limits(device: Device) -> Limits:
    """The power limit as it was asked for, and as it is in force."""
    with mapped(device.where):
        return Limits(
            requested_w=pynvml.nvmlDeviceGetPowerManagementLimit(device.handle) / 1e3,
            enforced_w=pynvml.nvmlDeviceGetEnforcedPowerLimit(device.handle) / 1e3,
        )


def set_power_limit(device: Device, watts: float) -> Limits:
    """Sets the power limit and reads it back.

    The first version of the call is used: the binding ignores what its second version returns.

    Raises:
        MigError: The GPU is partitioned: the limit would hold for instances that others may use.
        NotHeldError: What reads back, as asked for or as in force, differs by more than 1 W.
        NvmlError: The driver refuses.
    """
    if device.is_partitioned():
        raise MigError(device.where)
    limits = _write(device, watts, in_force=True)
    if not _holds(limits, watts, in_force=True):
        raise _not_held(device, watts, limits)
    return limits


def put_back_power_limit(device: Device, watts: float) -> None:
    """Writes a limit that was there before, unless it is there; something else may well keep it from being in force.

    Raises:
        NotHeldError: What reads back as asked for differs by more than 1 W.
        NvmlError: The driver refuses.
    """
    if read_limits(device).requested_w == watts:
        return
    limits = _write(device, watts, in_force=False)
    if not _holds(limits, watts, in_force=False):
        raise _not_held(device, watts, limits)


def _write(device: Device, watts: float, in_force: bool) -> Limits:
    """Writes a limit, and gives the driver a moment to take it over."""
    with mapped(device.where):
        pynvml.nvmlDeviceSetPowerManagementLimit(device.handle, round(watts * 1e3))
    until_s = time.monotonic() + SETTLE_S
    limits = read_limits(device)
    while not _holds(limits, watts, in_force) and time.monotonic() < until_s:
        time.sleep(LOOK_AGAIN_S)
        limits = read_limits(device)
    return limits


def _holds(limits: Limits, watts: float, in_force: bool) -> bool:
    asked = abs(limits.requested_w - watts) <= TOLERANCE_W
    return asked and (not in_force or abs(limits.enforced_w - watts) <= TOLERANCE_W)


def _not_held(device: Device, watts: float, limits: Limits) -> NotHeldError:
    return NotHeldError(
        device.where,
        f"{watts:.0f} W were written, but {limits.requested_w:.0f} W read back as asked for "
        f"and {limits.enforced_w:.0f} W as in force",
    )


def lock_clock(device: Device, highest_mhz: float) -> None:
    """Bounds the SM clock from above, within what the GPU can; below that it runs as it likes.

    Raises:
        MigError: The GPU is partitioned.
        NvmlError: The driver refuses.
    """
    if device.is_partitioned():
        raise MigError(device.where)
    lowest, highest = _clocks_mhz(device)
    with mapped(device.where):
        pynvml.nvmlDeviceSetGpuLockedClocks(device.handle, lowest, min(max(round(highest_mhz), lowest), highest))


def free_clock(device: Device) -> None:
    """Takes the bound away."""
    with mapped(device.where):
        pynvml.nvmlDeviceResetGpuLockedClocks(device.handle)


def _clocks_mhz(device: Device) -> tuple[int, int]:
    """Lowest and highest SM clock."""
    lowest, highest = c_uint(), c_uint()
    try:
        with mapped(device.where):
            # The binding's own variables for the answer are shared by all threads.
            pynvml.nvmlDeviceGetMinMaxClockOfPState(
                device.handle, pynvml.NVML_CLOCK_GRAPHICS, pynvml.NVML_PSTATE_0, byref(lowest), byref(highest)
            )
    except (NotSupportedError, RefusedError):
        with mapped(device.where):
            return 0, int(pynvml.nvmlDeviceGetMaxClockInfo(device.handle, pynvml.NVML_CLOCK_SM))
    return lowest.value, highest.value
