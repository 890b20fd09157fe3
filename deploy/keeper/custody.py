"""The GPUs in the keeper's care: changes within bounds, and the way back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

from ...errors import InputError
from ..errors import DeployError
from ..nvml.devices import Device, find
from ..nvml.errors import MigError, NoPermissionError, NotSupportedError, RefusedError, SilentError
from ..nvml.limits import free_clock, lock_clock, put_back_power_limit, read_bounds, read_limits, set_power_limit
from ..nvml.session import NvmlSession
from ..readings import Limits
from .originals import Original, load, save
from .protocol import GpuStatus

logger = logging.getLogger(__name__)
T = TypeVar("T")
REFUSALS = (MigError, NoPermissionError, NotSupportedError, RefusedError)  # the driver changed nothing


class Custody:
    """Sets limits, remembers what was there before, and goes back to it.

    What a GPU was set to is on disk before it is changed for the first time; it is forgotten when the GPU is back. A
    GPU that cannot be restored stays remembered, so that it is tried again.

    Args:
        session: The GPUs.
        state: The file that remembers.
        floor_w: Lowest limit to set on any GPU, watts.
        ceiling_w: Highest one, watts.
        timeout_s: How long NVML may take, seconds.

    Raises:
        InputError: The bounds exclude one another, or ``state`` is not a file of a keeper.
    """

    def __init__(
        self,
        session: NvmlSession,
        state: Path,
        floor_w: float = 0.0,
        ceiling_w: float = float("inf"),
        timeout_s: float = 1.0,
    ) -> None:
        if not 0 <= floor_w <= ceiling_w:
            raise InputError("floor_w", f"{floor_w} W lies above the ceiling of {ceiling_w} W", "Give a lower one")
        self._session, self._state, self._timeout_s = session, state, timeout_s
        self._floor_w, self._ceiling_w = floor_w, ceiling_w
        self._devices = {device.uuid: device for device in session.devices.values()}
        self._names = {device.uuid: name for name, device in session.devices.items()}
        self._originals = load(state)
        self._going_back: dict[str, Future[None]] = {}
        self._faults: dict[str, str] = {}
        self._one_at_a_time = asyncio.Lock()

    @property
    def is_changed(self) -> bool:
        """Whether any GPU is not what it was."""
        return bool(self._originals)

    async def set_power_limit(self, gpu: str, watts: float) -> Limits:
        """Sets a limit, bounded by the keeper's floor and ceiling and by what the GPU accepts, and reads it back."""
        watts = min(max(watts, self._floor_w), self._ceiling_w)
        return await self._change(gpu, lambda device: _set_within(device, watts))

    async def lock_clock(self, gpu: str, highest_mhz: float | None) -> None:
        """Bounds the SM clock, or sets it free."""
        if highest_mhz is None:
            await self._change(gpu, free_clock)
        else:
            await self._change(gpu, lambda device: lock_clock(device, highest_mhz), clock_locked=True)

    async def _change(self, gpu: str, call: Callable[[Device], T], clock_locked: bool = False) -> T:
        """Does what changes a GPU once the way back is on disk."""
        async with self._one_at_a_time:
            device = find(list(self._devices.values()), gpu)
            self._collect()
            before = self._originals.get(device.uuid)
            original = before or Original((await self._ask(device, read_limits)).requested_w)
            original = Original(original.limit_w, original.clock_locked or clock_locked)
            self._remember(device, original)
            try:
                return await self._ask(device, call)
            except REFUSALS:
                self._remember(device, before)
                raise

    def _remember(self, device: Device, original: Original | None) -> None:
        """Keeps the way back of a GPU, on disk first."""
        if original == self._originals.get(device.uuid):
            return
        others = {uuid: kept for uuid, kept in self._originals.items() if uuid != device.uuid}
        originals = others | ({device.uuid: original} if original else {})
        save(self._state, originals)
        self._originals = originals

    async def restore(self) -> dict[str, str]:
        """Sets every GPU that was changed back to what it was; says what went wrong, by UUID."""
        async with self._one_at_a_time:
            for uuid, original in self._originals.items():
                if uuid in self._devices and uuid not in self._going_back:
                    worker = self._session.worker(self._names[uuid])
                    self._going_back[uuid] = worker.queue(_way_back(self._devices[uuid], original))
            if self._going_back:
                await asyncio.wait([_quiet(future) for future in self._going_back.values()], timeout=self._timeout_s)
            self._collect()
            silent = {uuid: str(SilentError(self._devices[uuid].where)) for uuid in self._going_back}
            absent = {uuid: f"{uuid}: this GPU is not here" for uuid in self._originals.keys() - self._devices.keys()}
            return self._faults | silent | absent

    def _collect(self) -> None:
        """Takes note of the GPUs that are back, or cannot go back."""
        for uuid, future in list(self._going_back.items()):
            if not future.done():
                continue
            del self._going_back[uuid]
            fault = future.exception()
            if fault is None:
                self._faults.pop(uuid, None)
                logger.info("%s is back to what it was", self._devices[uuid].where)
                self._forget(uuid)
            else:
                if self._faults.get(uuid) != str(fault):
                    logger.error("not restored: %s", fault)
                self._faults[uuid] = str(fault)

    def _forget(self, uuid: str) -> None:
        """A GPU is back; should the disk not take that in, the next keeper sets it back once more, to no harm."""
        del self._originals[uuid]
        try:
            save(self._state, self._originals)
        except (OSError, InputError) as fault:
            logger.error("%s: not written (%s)", self._state, fault)

    async def status(self) -> list[GpuStatus]:
        """All GPUs as they are now, by index."""
        return await asyncio.gather(*map(self._status, sorted(self._devices.values(), key=lambda d: d.index)))

    async def _status(self, device: Device) -> GpuStatus:
        limits: Limits | None = None
        fault = self._faults.get(device.uuid)
        try:
            limits = await self._ask(device, read_limits)
        except DeployError as problem:
            fault = str(problem)
        original = self._originals.get(device.uuid)
        return GpuStatus(
            index=device.index,
            uuid=device.uuid,
            name=device.name,
            requested_w=limits.requested_w if limits else None,
            enforced_w=limits.enforced_w if limits else None,
            original_w=original.limit_w if original else None,
            clock_locked=original is not None and original.clock_locked,
            fault=fault,
        )

    async def _ask(self, device: Device, call: Callable[[Device], T]) -> T:
        future = self._session.worker(self._names[device.uuid]).begin(lambda: call(device))
        await asyncio.wait([_quiet(future)], timeout=self._timeout_s)
        if not future.done():
            raise SilentError(device.where)
        return future.result()


def _set_within(device: Device, watts: float) -> Limits:
    bounds = read_bounds(device)
    return set_power_limit(device, min(max(watts, bounds.lowest_w), bounds.highest_w))


def _way_back(device: Device, original: Original) -> Callable[[], None]:
    def go() -> None:
        try:
            if original.clock_locked:
                free_clock(device)
        finally:
            put_back_power_limit(device, original.limit_w)

    return go


def _quiet(future: Future[T]) -> asyncio.Future[T]:
    """The same to wait for in the event loop; what it raises is looked at where the result is."""
    waiting = asyncio.wrap_future(future)
    waiting.add_done_callback(lambda done: done.cancelled() or done.exception())
    return waiting
