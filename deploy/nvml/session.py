"""A session over NVML: the GPUs that were asked for, read with patience that ends."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

from ..readings import GpuReading, ReadingError
from .devices import Device, discover, find
from .errors import GpuLostError, NoSuchGpuError, NvmlError
from .library import close_library, open_library
from .reading import read_device
from .worker import Worker

logger = logging.getLogger(__name__)
T = TypeVar("T")


class NvmlSession:
    """The `GpuSource` over NVML; also runs other calls on a GPU, with the same patience.

    Every GPU has a thread of its own, so that one that hangs holds up no other. A GPU that is lost is dropped, with one
    line in the log; one that fails otherwise is left out of that reading and asked again at the next.

    Args:
        names: The GPUs, by index, UUID or product name, which become the keys of the readings; none for all, by UUID.
        timeout_s: How long a call may take, seconds.
        clock: Monotonic clock that stamps readings, seconds.

    Raises:
        NvmlError: NVML cannot be opened, or lacks one of the GPUs.
    """

    def __init__(
        self, names: Sequence[str] = (), timeout_s: float = 1.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._timeout_s, self._clock = timeout_s, clock
        opener = Worker("NVML", max(timeout_s, 10.0))  # the first to open it may have to wake the driver
        try:
            self.devices = opener.ask(lambda: _open(names))
        finally:
            opener.stop()
        self._workers = {name: Worker(device.where, timeout_s) for name, device in self.devices.items()}
        self._failing: dict[str, str] = {}
        self._lost: set[str] = set()

    def worker(self, name: str) -> Worker:
        """The thread that talks to a GPU."""
        return self._workers[name]

    def ask(self, name: str, call: Callable[[Device], T]) -> T:
        """Does ``call`` with a GPU on its thread; raises `NvmlError` if it fails or does not come back in time."""
        device = self.devices[name]
        return self._workers[name].ask(lambda: call(device))

    def read(self) -> dict[str, GpuReading]:
        """Readings of the GPUs that answer in time.

        Raises:
            ReadingError: None does.
        """
        deadline_s = time.monotonic() + self._timeout_s
        under_way: dict[str, Future[GpuReading]] = {}
        for name in self.devices.keys() - self._lost:
            try:
                under_way[name] = self._workers[name].begin(self._reader(self.devices[name]))
            except NvmlError as fault:
                self._failed(name, fault)
        readings: dict[str, GpuReading] = {}
        for name, future in under_way.items():
            try:
                readings[name] = self._workers[name].wait(future, max(deadline_s - time.monotonic(), 0.0))
            except NvmlError as fault:
                self._failed(name, fault)
            else:
                self._failing.pop(name, None)
        if not readings:
            raise ReadingError(" ".join(self._failing.values()))
        return {name: readings[name] for name in self.devices if name in readings}

    def _reader(self, device: Device) -> Callable[[], GpuReading]:
        return lambda: read_device(device, self._clock())

    def _failed(self, name: str, fault: NvmlError) -> None:
        """Says so in the log once for as long as it lasts."""
        if isinstance(fault, GpuLostError):
            self._lost.add(name)
        if name not in self._failing:
            logger.warning("%s", fault)
        self._failing[name] = str(fault)

    def close(self) -> None:
        """Gives NVML back; calls that still hang are left to themselves."""
        for worker in self._workers.values():
            worker.stop()
        close_library()


def _open(names: Sequence[str]) -> dict[str, Device]:
    open_library()
    try:
        devices = discover()
        if not devices:
            raise NoSuchGpuError("NVML", "it lists no GPU")
        named = {name: find(devices, name) for name in names} or {device.uuid: device for device in devices}
        twice = [name for name, device in named.items() if [*named.values()].count(device) > 1]
        if twice:
            raise NoSuchGpuError(", ".join(twice), "are names of one and the same GPU")
    except NvmlError:
        close_library()
        raise
    return named
