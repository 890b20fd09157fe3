"""Reading one GPU: everything that NVML tells, and `None` for what this GPU does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pynvml

from ..readings import GpuReading
from .devices import Device
from .errors import LibraryMismatchError, NoPermissionError, NotSupportedError, RefusedError, mapped
from .reasons import named

# Scopes of a power field, by preference: the GPU with its memory, and the module around it where only that is metered.
SCOPES = (pynvml.NVML_POWER_SCOPE_GPU, pynvml.NVML_POWER_SCOPE_MODULE)
POWERS = (pynvml.NVML_FI_DEV_POWER_INSTANT, pynvml.NVML_FI_DEV_POWER_AVERAGE)
NOT_TOLD = (NotSupportedError, RefusedError, NoPermissionError, LibraryMismatchError)


def read_device(device: Device, time_s: float) -> GpuReading:
    """One reading of one GPU, stamped with ``time_s``.

    Raises:
        NvmlError: The GPU is lost, or NVML failed altogether.
    """

    def told(call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            with mapped(device.where):
                return call(device.handle, *arguments)
        except NOT_TOLD:
            return None

    instant_mw, mean_mw = _powers_mw(told)
    energy_mj = told(pynvml.nvmlDeviceGetTotalEnergyConsumption)
    utilisation = told(pynvml.nvmlDeviceGetUtilizationRates)
    memory = told(pynvml.nvmlDeviceGetMemoryInfo)
    temperature_c = told(pynvml.nvmlDeviceGetTemperature, pynvml.NVML_TEMPERATURE_GPU)
    reasons = told(pynvml.nvmlDeviceGetCurrentClocksEventReasons)
    if reasons is None:  # drivers before 535 know it by its older name
        reasons = told(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons)
    return GpuReading(
        time_s=time_s,
        power_w=_thousandth(instant_mw),
        mean_power_w=_thousandth(mean_mw),
        energy_j=_thousandth(energy_mj),
        temperature_c=_number(temperature_c),
        slowdown_c=_slowdown_c(told, temperature_c),
        clock_mhz=_number(told(pynvml.nvmlDeviceGetClockInfo, pynvml.NVML_CLOCK_SM)),
        max_clock_mhz=_number(told(pynvml.nvmlDeviceGetMaxClockInfo, pynvml.NVML_CLOCK_SM)),
        utilisation=None if utilisation is None else utilisation.gpu / 100,
        memory_used_bytes=None if memory is None else int(memory.used),
        memory_bytes=None if memory is None else int(memory.total),
        throttle=named(reasons or 0),
        limit_w=_thousandth(told(pynvml.nvmlDeviceGetPowerManagementLimit)),
        enforced_w=_thousandth(told(pynvml.nvmlDeviceGetEnforcedPowerLimit)),
    )


def _powers_mw(told: Callable[..., Any]) -> tuple[float | None, float | None]:
    """Power now and averaged, of the first scope that answers; the oldest call of NVML where no scope does."""
    instant = mean = None
    for scope in SCOPES:
        fields = told(pynvml.nvmlDeviceGetFieldValues, [(field, scope) for field in POWERS])
        instant, mean = map(_value, fields) if fields else (None, None)
        if instant is not None or mean is not None:
            break
    return instant, told(pynvml.nvmlDeviceGetPowerUsage) if mean is None else mean


def _slowdown_c(told: Callable[..., Any], temperature_c: int | None) -> float | None:
    """Where hardware slows the GPU down: told outright, or as the margin that is left (drivers for Hopper and later).

    The margin counts to the highest operating temperature; slowdown begins at a margin that a field tells, often -2 °C.
    """
    threshold = told(pynvml.nvmlDeviceGetTemperatureThreshold, pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN)
    if threshold is not None or temperature_c is None:
        return _number(threshold)
    margin = told(pynvml.nvmlDeviceGetMarginTemperature)
    if margin is None:
        return None
    fields = told(pynvml.nvmlDeviceGetFieldValues, [pynvml.NVML_FI_DEV_TEMPERATURE_SLOWDOWN_TLIMIT])
    at_margin = _value(fields[0]) if fields else None
    return float(temperature_c + margin - (at_margin or 0.0))


def _value(field: Any) -> float | None:
    """The value of a field, by the type that NVML gives it; `None` if this field failed."""
    if field.nvmlReturn != pynvml.NVML_SUCCESS:
        return None
    members = {
        pynvml.NVML_VALUE_TYPE_DOUBLE: "dVal",
        pynvml.NVML_VALUE_TYPE_UNSIGNED_INT: "uiVal",
        pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG: "ulVal",
        pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: "ullVal",
        pynvml.NVML_VALUE_TYPE_SIGNED_LONG_LONG: "sllVal",
        pynvml.NVML_VALUE_TYPE_SIGNED_INT: "siVal",
    }
    return float(getattr(field.value, members[field.valueType])) if field.valueType in members else None


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _thousandth(value: Any) -> float | None:
    return None if value is None else float(value) / 1e3
