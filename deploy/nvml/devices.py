"""Which GPUs there are, and which one a name means."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pynvml

from .errors import MigError, NoSuchGpuError, NotSupportedError, NvmlError, RefusedError, mapped

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Device:
    """One GPU of this machine.

    Attributes:
        index: Its index in NVML's order, which may change with the next boot.
        uuid: Its UUID, which does not.
        name: Product name.
        handle: What the binding knows it by.
    """

    index: int
    uuid: str
    name: str
    handle: Any

    @property
    def where(self) -> str:
        """How messages call it."""
        return f"GPU {self.index} ({self.uuid})"

    def is_partitioned(self) -> bool:
        """Whether it is in MIG mode now."""
        try:
            with mapped(self.where):
                return bool(pynvml.nvmlDeviceGetMigMode(self.handle)[0] == pynvml.NVML_DEVICE_MIG_ENABLE)
        except (NotSupportedError, RefusedError):
            return False


def discover() -> list[Device]:
    """All GPUs that answer, in NVML's order; one that does not, such as a lost one, is left out with a line in the log.

    Raises:
        NvmlError: There are some, and none answers.
    """
    with mapped("NVML"):
        count = pynvml.nvmlDeviceGetCount()
    devices: list[Device] = []
    faults: list[NvmlError] = []
    for index in range(count):
        try:
            devices.append(_device(index))
        except NvmlError as fault:
            logger.warning("left out: %s", fault)
            faults.append(fault)
    if faults and not devices:
        raise faults[0]
    return devices


def _device(index: int) -> Device:
    with mapped(f"GPU {index}"):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        uuid, name = (str(get(handle)) for get in (pynvml.nvmlDeviceGetUUID, pynvml.nvmlDeviceGetName))
        return Device(index, uuid, name, handle)


def find(devices: Sequence[Device], text: str) -> Device:
    """The GPU that ``text`` names: by index, by UUID, or by a product name that only one has.

    Raises:
        MigError: It names an instance of a partitioned GPU.
        NoSuchGpuError: It names none, or several.
    """
    if text.startswith("MIG-"):
        raise MigError(text, "is an instance of a partitioned GPU, which has no power limit and no power of its own")
    fitting = [d for d in devices if text in (str(d.index), d.uuid)] or [d for d in devices if text == d.name]
    if len(fitting) != 1:
        known = ", ".join(d.where for d in devices) or "none"
        raise NoSuchGpuError(text, f"{'several GPUs have that name' if fitting else 'no such GPU'}; there are {known}")
    return fitting[0]
