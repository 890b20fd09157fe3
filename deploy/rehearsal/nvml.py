"""Emulated GPUs under the real NVML binding: what they tell is written here, and what was set on them is read here."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ...files import whole
from ...simulator.catalog.specs import GpuSpec
from ..nvml.reasons import REASONS
from .stub_library import bound, environment

MAGIC = 0x4D4C564E
VERSION = 1


class Call(IntEnum):
    """Kinds of NVML calls, in the order of the C source."""

    HANDLE = 0
    INSTANT = 1
    AVERAGE = 2
    USAGE = 3
    ENERGY = 4
    TEMPERATURE = 5
    THRESHOLD = 6
    MARGIN = 7
    CLOCK = 8
    UTILISATION = 9
    MEMORY = 10
    THROTTLE = 11
    LIMIT = 12
    MIG = 13
    SET_LIMIT = 14
    SET_CLOCK = 15


WRITES = (Call.SET_LIMIT, Call.SET_CLOCK)
EVERYTHING = tuple(Call)

HEADER = np.dtype([(name, "u4") for name in ("magic", "version", "header_bytes", "gpu_bytes", "gpus", "init_fault")])
HEADER_BYTES = 32
GPU = np.dtype(
    [
        *((name, "u8") for name in ("energy_mj", "memory_used", "memory_total", "throttle")),
        ("calls", "u8", len(Call)),
        ("fault", "u4", len(Call)),
        ("hang_ms", "u4", len(Call)),
        *((name, "u4") for name in ("instant_mw", "average_mw", "limit_mw", "default_mw", "lowest_mw", "highest_mw")),
        ("ceiling_mw", "u4"),
        *((name, "i4") for name in ("temperature_c", "slowdown_c")),
        *((name, "u4") for name in ("clock_mhz", "max_clock_mhz", "lock_low_mhz", "lock_high_mhz")),
        *((name, "u4") for name in ("utilisation_pct", "mig", "min_clock_mhz")),
        ("uuid", "S48"),
        ("name", "S64"),
    ]
)


@dataclass(frozen=True)
class GpuState:
    """What an emulated GPU tells from now on.

    Attributes:
        power_w: Power at this instant, watts.
        energy_j: Energy so far, joules.
        temperature_c: Die temperature, °C.
        clock_mhz: SM clock; a clock lock bounds what is told.
        utilisation: Share of time with a kernel running.
        memory_used_bytes: Memory in use.
        mean_power_w: Power as NVML averages it, watts; that of this instant if not given.
        throttle: Reasons why the clock is held back, by the names of `nvml.reasons`.
    """

    power_w: float
    energy_j: float
    temperature_c: float
    clock_mhz: float
    utilisation: float
    memory_used_bytes: int
    mean_power_w: float | None = None
    throttle: Iterable[str] = ()


class EmulatedGpus:
    """GPUs that live in a file, which this side and the stub of NVML have mapped.

    Args:
        path: The file to make; a file of that name is replaced.
        kinds: What each GPU is, by the catalog. Each starts idle at 25 °C with its highest limit.
    """

    def __init__(self, path: Path, kinds: Sequence[GpuSpec]) -> None:
        if not kinds:
            raise InputError("kinds", "there is no GPU to emulate", "Give at least one")
        self.path = path
        with whole(path) as partial:
            partial.write_bytes(bytes(HEADER_BYTES + len(kinds) * GPU.itemsize))
        self._header: NDArray[Any] = np.memmap(path, HEADER, "r+", shape=1)
        self._gpus: NDArray[Any] = np.memmap(path, GPU, "r+", HEADER_BYTES, shape=len(kinds))
        for index, kind in enumerate(kinds):
            self._start(index, kind)
        self._header[0] = (MAGIC, VERSION, HEADER_BYTES, GPU.itemsize, len(kinds), 0)

    def _start(self, index: int, kind: GpuSpec) -> None:
        row = self._gpus[index]
        row["uuid"] = f"GPU-{uuid.uuid5(uuid.NAMESPACE_OID, f'llmcluster emulated GPU {index}')}".encode()
        row["name"] = kind.name.encode()
        row["limit_mw"] = row["default_mw"] = row["highest_mw"] = round(kind.cap_max_w * 1e3)
        row["lowest_mw"] = round(kind.cap_min_w * 1e3)
        row["clock_mhz"] = row["max_clock_mhz"] = round(kind.clock_max_mhz)
        row["min_clock_mhz"] = round(kind.clock_min_mhz)
        row["slowdown_c"] = round(kind.thermal.throttle_c)
        row["temperature_c"] = 25
        row["memory_total"] = kind.memory_bytes

    @property
    def uuids(self) -> tuple[str, ...]:
        """UUIDs by index; the same ones whenever as many are emulated."""
        return tuple(text.decode() for text in self._gpus["uuid"])

    def write(self, gpu: int, state: GpuState) -> None:
        """Lets a GPU tell ``state`` from now on, in NVML's units and steps."""
        row = self._gpus[gpu]
        mean_w = state.power_w if state.mean_power_w is None else state.mean_power_w
        row["instant_mw"], row["average_mw"] = round(state.power_w * 1e3), round(mean_w * 1e3)
        row["energy_mj"] = round(state.energy_j * 1e3)
        row["temperature_c"] = round(state.temperature_c)
        row["clock_mhz"] = round(state.clock_mhz)
        row["utilisation_pct"] = round(state.utilisation * 100)
        row["memory_used"] = state.memory_used_bytes
        row["throttle"] = sum(REASONS[name] for name in set(state.throttle))

    def limit_w(self, gpu: int) -> float:
        """The power limit that was set on a GPU, watts."""
        return float(self._gpus["limit_mw"][gpu]) / 1e3

    def enforced_w(self, gpu: int) -> float:
        """The power limit in force, watts: what was set, or another limiter's if that is lower."""
        ceiling = float(self._gpus["ceiling_mw"][gpu]) / 1e3
        return min(self.limit_w(gpu), ceiling or float("inf"))

    def set_limit(self, gpu: int, watts: float) -> None:
        """Sets a power limit from outside, as an administrator would."""
        self._gpus["limit_mw"][gpu] = round(watts * 1e3)

    def set_ceiling(self, gpu: int, watts: float | None) -> None:
        """Puts another limiter in force, such as a board controller's; `None` takes it away."""
        self._gpus["ceiling_mw"][gpu] = round((watts or 0.0) * 1e3)

    def clock_lock_mhz(self, gpu: int) -> tuple[float, float] | None:
        """Lowest and highest SM clock that a GPU is locked to; `None` where it is free."""
        low, high = (float(self._gpus[name][gpu]) for name in ("lock_low_mhz", "lock_high_mhz"))
        return (low, high) if high else None

    def set_mig(self, gpu: int, on: bool) -> None:
        """Switches a GPU's MIG mode."""
        self._gpus["mig"][gpu] = on

    def fail(self, gpu: int, code: int, calls: Collection[Call] = EVERYTHING) -> None:
        """Lets calls on a GPU fail from now on with an NVML error code (``pynvml.NVML_ERROR_*``); 0 heals them."""
        self._gpus["fault"][gpu, list(calls)] = code

    def hang(self, gpu: int, seconds: float, calls: Collection[Call] = EVERYTHING) -> None:
        """Lets calls on a GPU answer only after so long, from now on; 0 heals them."""
        self._gpus["hang_ms"][gpu, list(calls)] = round(seconds * 1e3)

    def fail_init(self, code: int) -> None:
        """Lets NVML not even open, with an NVML error code; 0 heals it."""
        self._header["init_fault"] = code

    def calls(self, gpu: int, call: Call) -> int:
        """How often a kind of call has reached a GPU."""
        return int(self._gpus["calls"][gpu, call])

    def environment(self) -> dict[str, str]:
        """What to add to the environment of a process that shall see these GPUs."""
        return environment(self.path)

    def bound(self) -> AbstractContextManager[None]:
        """Within, this process sees these GPUs."""
        return bound(self.path)
