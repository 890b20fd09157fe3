"""Between the live machine and its emulated GPUs: what they tell, and the limits that were set on them."""

from __future__ import annotations

from itertools import pairwise
from typing import Protocol

import numpy as np

from ...simulator.catalog import Catalog
from ...simulator.kernels.state import CLOCK, DRAINING, J_PER_UNIT, LOADING, SERVING, SLEEPING
from ...simulator.units import PS_PER_S
from .live import LiveMachine
from .nvml import GpuState

HOLDING = (LOADING, SERVING, DRAINING)


class Panel(Protocol):
    """The GPUs of :class:`EmulatedGpus`, as far as they are written and read here."""

    def write(self, gpu: int, state: GpuState) -> None:
        """What a GPU tells from now on."""

    def enforced_w(self, gpu: int) -> float:
        """The power limit in force, watts."""

    def clock_lock_mhz(self, gpu: int) -> tuple[float, float] | None:
        """Lowest and highest SM clock that a GPU is locked to; `None` where it is free."""


class Feed:
    """Keeps emulated GPUs at what the simulator says, and the simulator at the limits that were set on them.

    A slot's power and energy are dealt evenly to its GPUs, which are as warm and as fast as one another. Power and
    energy are written at every step; the mean power, temperature, clock and utilisation at whole seconds, as the
    simulator knows them. A slot's cap is the sum of its GPUs' limits.

    Args:
        machine: The machine.
        panel: Its GPUs, slot by slot.
    """

    def __init__(self, machine: LiveMachine, panel: Panel) -> None:
        self._machine, self._panel = machine, panel
        cluster = machine.cluster
        slots = cluster.blueprint.slots
        edges = np.cumsum([0, *(slot.spec.tp * slot.spec.pp for slot in slots)]).tolist()
        self.gpus = tuple(tuple(range(first, stop)) for first, stop in pairwise(edges))
        self.kinds = tuple(Catalog.builtin().gpu(slot.spec.gpu) for slot in slots)
        self._caps, self._locks = list(cluster.blueprint.cap_max_w), [1.0] * len(slots)
        self._busy_ps = [0] * len(slots)
        self._utilisation = [0.0] * len(slots)
        self._mean_w: list[float | None] = [None] * len(slots)
        machine.on_second.append(self._close)
        machine.before_step.append(self._obey)
        machine.on_step.append(self.tell)
        self.tell()

    def tell(self) -> None:
        """Writes what is so now."""
        for slot, gpus in enumerate(self.gpus):
            state = self._state(slot, len(gpus))
            for gpu in gpus:
                self._panel.write(gpu, state)

    def _obey(self) -> None:
        """Takes over the limits that have been set."""
        caps = [sum(self._panel.enforced_w(gpu) for gpu in gpus) for gpus in self.gpus]
        if caps != self._caps:
            self._caps = caps
            self._machine.cluster.cap(caps)
        locks = [self._lock(slot) for slot in range(len(self.gpus))]
        if locks != self._locks:
            self._locks = locks
            self._machine.cluster.lock_clock(locks)

    def _lock(self, slot: int) -> float:
        """The highest clock that the locks of a slot's GPUs leave it, relative to the highest there is."""
        locks = [lock for gpu in self.gpus[slot] if (lock := self._panel.clock_lock_mhz(gpu)) is not None]
        return min([1.0, *(high / self.kinds[slot].clock_max_mhz for _, high in locks)])

    def _close(self, second: int) -> None:
        mean_w = self._machine.cluster.history.records["metered_w"][-1].tolist()
        for slot in range(len(self.gpus)):
            busy_ps = self._machine.counts(slot).busy_ps
            self._utilisation[slot] = min((busy_ps - self._busy_ps[slot]) / PS_PER_S, 1.0)
            self._busy_ps[slot] = busy_ps
            self._mean_w[slot] = mean_w[slot]

    def _state(self, slot: int, gpus: int) -> GpuState:
        machine, kind = self._machine, self.kinds[slot]
        counts, engine, history = machine.counts(slot), machine.cluster.engine, machine.cluster.history
        second = history.records[-1][slot] if len(history) else None
        mean_w = self._mean_w[slot]
        clock = 1.0 if second is None else float(second["clock_ratio"])
        status = machine.status(slot)
        used = kind.memory_bytes * machine.scenario.cluster.engine.gpu_memory_utilization if status in HOLDING else 0.0
        return GpuState(
            power_w=counts.power_w / gpus,
            mean_power_w=None if mean_w is None else mean_w / gpus,
            energy_j=counts.energy * J_PER_UNIT / gpus,
            temperature_c=float(engine.slots["inlet_c"][slot] if second is None else second["temperature_c"]),
            clock_mhz=clock * kind.clock_max_mhz,
            utilisation=self._utilisation[slot],
            memory_used_bytes=round(kind.host.runtime_bytes if status == SLEEPING else used),
            throttle=self._throttle(slot, clock),
        )

    def _throttle(self, slot: int, clock: float) -> list[str]:
        """Why the clock is held back; a GPU that rests gives that as its reason."""
        machine, record = self._machine, self._machine.cluster.engine.slots[slot]
        reasons = []
        if machine.cluster.protection.is_braked(int(machine.now_s))[slot]:
            reasons.append("hw_power_brake")
        if record["throttled"]:
            reasons.append("hw_thermal_slowdown")
        highest = machine.cluster.engine.ladder[record["deployment"], CLOCK, record["clock_limit"]]
        if not self._utilisation[slot]:
            reasons.append("gpu_idle")
        elif clock < highest and not reasons:
            reasons.append("sw_power_cap")
        return reasons
