"""Readings of GPUs from DCGM-exporter, under the names of fields before and since DCGM 4.6."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ...errors import InputError
from ..nvml.reasons import named
from ..readings import GpuReading, ReadingError
from .http import checked_url, fetch
from .page import Value, values

MIB = 2.0**20
BLANK = 2.0**47
"""DCGM's marks of values that are not there are this and larger."""

FIELDS: Mapping[str, tuple[tuple[str, float], ...]] = {
    "power_w": (("POWER_USAGE_INSTANT", 1.0), ("BOARD_POWER_RAW_WATTS", 1.0)),
    "mean_power_w": (("POWER_USAGE", 1.0), ("BOARD_POWER_WATTS", 1.0)),
    "energy_j": (("TOTAL_ENERGY_CONSUMPTION", 1e-3), ("GPU_ENERGY_JOULES_TOTAL", 1.0)),
    "temperature_c": (("GPU_TEMP", 1.0), ("GPU_TEMP_CELSIUS", 1.0)),
    "slowdown_c": (("SLOWDOWN_TEMP", 1.0), ("GPU_TEMP_SLOWDOWN_CELSIUS", 1.0)),
    "clock_mhz": (("SM_CLOCK", 1.0), ("SM_CLOCK_HERTZ", 1e-6)),
    "max_clock_mhz": (("MAX_SM_CLOCK", 1.0), ("SM_MAX_CLOCK_HERTZ", 1e-6)),
    "utilisation": (("GPU_UTIL", 0.01), ("GPU_UTIL_RATIO", 1.0)),
    "memory_used_bytes": (("FB_USED", MIB), ("FB_USED_BYTES", 1.0)),
    "memory_bytes": (("FB_TOTAL", MIB), ("FB_CAPACITY_BYTES", 1.0)),
    "limit_w": (("POWER_MGMT_LIMIT", 1.0), ("BOARD_POWER_LIMIT_REQUESTED_WATTS", 1.0)),
    "enforced_w": (("ENFORCED_POWER_LIMIT", 1.0), ("BOARD_POWER_LIMIT_ENFORCED_WATTS", 1.0)),
    "throttle": (("CLOCK_THROTTLE_REASONS", 1.0), ("CLOCKS_EVENT_REASONS", 1.0)),
}
"""Fields of a reading, by DCGM's names without ``DCGM_FI_DEV_`` and their units, of which the first that is there
counts: an old name and what it has become in 4.6 (or, with another unit, in 4.7). What the exporter's own list of
counters leaves out (limits, reasons, the highest clock) must be added to it."""

WHOLE = ("memory_used_bytes", "memory_bytes")
PREFIX = "DCGM_FI_DEV_"


@dataclass(frozen=True)
class _Gpu:
    """Labels and values of one GPU."""

    uuid: str
    index: str
    fields: dict[str, float]


class DcgmSource:
    """The :class:`~llmcluster.deploy.readings.GpuSource` over DCGM-exporter.

    The exporter renews its values only now and then (30 s by default): start it with `--collect-interval 1000`.
    MIG instances are left out.

    Args:
        url: The exporter's page, such as `http://127.0.0.1:9400/metrics`.
        names: GPUs, by UUID or index, which become the keys of the readings; none for all, by UUID.
        timeout_s: An exporter that takes longer does not answer.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        url: str,
        names: Sequence[str] = (),
        timeout_s: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url, self._names = checked_url(url), tuple(names)
        self._timeout_s, self._clock = timeout_s, clock
        if len(set(names)) < len(names):
            raise InputError("gpus", f"{list(names)} has one twice", "Give each once")

    def read(self) -> dict[str, GpuReading]:
        """Readings by name; GPUs that the exporter does not tell of are not among them.

        Raises:
            ReadingError: It does not answer in time, or tells of none of the GPUs.
        """
        status, page = fetch(self._url, self._timeout_s)
        time_s = self._clock()
        if status != 200:
            raise ReadingError(f"{self._url} answers {status}; look at the log of DCGM-exporter")
        gpus = _gpus(values(page, PREFIX, self._url))
        wanted = self._names or tuple(gpus)
        found = {name: gpu for name in wanted if (gpu := _find(gpus, name)) is not None}
        if not found:
            told = ", ".join(gpus) or "none"
            raise ReadingError(f"{self._url} tells of no GPU that was asked for, but of {told}; check the names")
        return {name: _reading(gpu, time_s) for name, gpu in found.items()}


def _gpus(told: list[Value]) -> dict[str, _Gpu]:
    """GPUs by UUID."""
    gpus: dict[str, _Gpu] = {}
    for value in told:
        uuid = value.label("UUID", "uuid")
        if uuid and not value.label("GPU_I_ID") and value.value < BLANK:
            gpu = gpus.setdefault(uuid, _Gpu(uuid, value.label("gpu"), {}))
            gpu.fields[value.name.removeprefix(PREFIX)] = value.value
    return gpus


def _find(gpus: Mapping[str, _Gpu], name: str) -> _Gpu | None:
    return gpus.get(name) or next((gpu for gpu in gpus.values() if gpu.index == name), None)


def _reading(gpu: _Gpu, time_s: float) -> GpuReading:
    told = {field: _value(gpu, names) for field, names in FIELDS.items()}
    free = _value(gpu, (("FB_FREE", MIB), ("FB_FREE_BYTES", 1.0)))
    if told["memory_bytes"] is None and told["memory_used_bytes"] is not None and free is not None:
        reserved = _value(gpu, (("FB_RESERVED", MIB), ("FB_RESERVED_BYTES", 1.0))) or 0.0
        told["memory_bytes"] = told["memory_used_bytes"] + free + reserved
    reasons = named(int(told.pop("throttle") or 0))
    whole = {field: None if (value := told.pop(field)) is None else round(value) for field in WHOLE}
    return GpuReading(
        time_s=time_s,
        throttle=reasons,
        memory_used_bytes=whole["memory_used_bytes"],
        memory_bytes=whole["memory_bytes"],
        **told,
    )


def _value(gpu: _Gpu, names: tuple[tuple[str, float], ...]) -> float | None:
    return next((gpu.fields[name] * unit for name, unit in names if name in gpu.fields), None)
