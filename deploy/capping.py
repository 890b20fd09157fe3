"""Writes the caps of slots as limits of their GPUs, through the guards and the keeper."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from .guards import Bounds, Caps, guard, in_safe_order
from .keeper.errors import KeeperError
from .readings import LimitWriter, ReadingError

F64 = NDArray[np.float64]
Log = Callable[..., None]
"""Takes a kind and facts, as :meth:`Audit.write` does."""
AGREES_W = 1.0
"""Limits read back this close to what was asked for are the same: drivers round to whole watts."""


class Capper:
    """The caps of all slots.

    Args:
        gpus: GPUs of each slot, R of them.
        bounds: What the site allows.
        writer: Writes limits; `None` in a dry run.
        log: The audit log.
        clock: Monotonic seconds.

    Attributes:
        faults: By GPU, or ``keeper``, why the last write failed; what went well is not in it.
        disagreements: Limits read back that are not what was asked for, so far.
        writes: Limits written so far.
    """

    def __init__(
        self,
        gpus: Sequence[Sequence[str]],
        bounds: Bounds,
        writer: LimitWriter | None,
        log: Log,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._gpus, self._bounds, self._writer, self._log, self._clock = gpus, bounds, writer, log, clock
        self._written_s = np.full(len(gpus), -np.inf)
        self._locked: dict[str, float | None] = {}
        self._enforced_w: dict[str, float] = {}
        self._lowest_w = np.zeros(len(gpus))
        self._agrees_w = np.array([AGREES_W * len(own) for own in gpus])
        self.faults: dict[str, str] = {}
        self.disagreements = self.writes = 0

    def plan(self, wish_w: F64, in_force_w: F64, on: NDArray[np.bool_], beside_w: float, budget_w: float) -> Caps:
        """The caps to be written; see :func:`guard`.

        A cap is also written where it is not what the keeper read back last: DCGM-exporter tells of a limit up to half
        a minute late, and what seems to be in force is not.
        """
        self._lowest_w = np.minimum(self._lowest_w, in_force_w)
        floor_w = np.maximum(self._bounds.floor_w, self._lowest_w)
        bounds = replace(self._bounds, floor_w=floor_w, ceiling_w=np.maximum(self._bounds.ceiling_w, floor_w))
        caps = guard(wish_w, in_force_w, on, beside_w, budget_w, self._clock() - self._written_s, bounds)
        last_w = self._last_w()
        differs = np.abs(caps.watts - np.where(np.isnan(last_w), caps.watts, last_w)) > self._agrees_w
        return replace(caps, write=caps.write | differs)

    def _last_w(self) -> F64:
        """The cap of each slot as the keeper read it back last, watts (R,); ``nan`` where it is not known."""
        return np.array([sum(self._enforced_w.get(gpu, np.nan) for gpu in own) for own in self._gpus])

    def write(self, caps: Caps, in_force_w: F64, lost: NDArray[np.bool_]) -> None:
        """Writes what is to be written, what falls first; slots that are lost are left alone.

        What is higher waits until what is lower is in force: where a limit could not be lowered, or not as far as it
        should, none rises, lest the sum pass the budget.
        """
        writer = self._writer
        if writer is None:
            return
        self.faults = {}
        least_w, is_high = np.fmin(in_force_w, self._last_w()), False
        for slot in in_safe_order(np.flatnonzero(caps.write & ~lost).tolist(), caps.watts, least_w):
            if (self.faults or is_high) and caps.watts[slot] > least_w[slot]:
                break
            self._written_s[slot] = self._clock()
            own = self._gpus[slot]
            for gpu in own:
                try:
                    self._set(writer, gpu, float(caps.watts[slot]) / len(own))
                except KeeperError as fault:
                    self._gone(fault)
                    return
            enforced_w = float(self._last_w()[slot])
            if enforced_w > caps.watts[slot] + self._agrees_w[slot]:
                # The driver, or the keeper, goes no lower: from now on this is the floor that the budget reckons with.
                self._lowest_w[slot], is_high = enforced_w, True

    def _set(self, writer: LimitWriter, gpu: str, watts: float) -> None:
        """Sets the limit of a GPU; what is wrong with that GPU alone is noted."""
        self._enforced_w.pop(gpu, None)
        try:
            limits = writer.set_power_limit(gpu, watts)
        except KeeperError:
            raise
        except ReadingError as fault:
            self.faults[gpu] = str(fault)
            self._log("write-failed", gpu=gpu, watts=watts, why=str(fault))
            return
        self.writes += 1
        self._enforced_w[gpu] = limits.enforced_w
        self.disagreements += abs(limits.enforced_w - watts) > AGREES_W
        facts = {"requested_w": limits.requested_w, "enforced_w": limits.enforced_w}
        self._log("write", gpu=gpu, watts=watts, **facts)

    def forget(self) -> None:
        """The keeper has undone everything: limits are what they were, and clocks are free."""
        self._locked, self._enforced_w = {}, {}

    def _gone(self, fault: KeeperError) -> None:
        """The keeper does nothing, or is gone: nothing is asked of it any more before the next decision."""
        self.faults["keeper"] = str(fault)
        self.forget()  # it has set them free, or will
        self._log("write-failed", why=str(fault))

    def lock(self, highest_mhz: Mapping[str, float | None]) -> None:
        """Bounds the clocks of GPUs, those that are to have another bound than they have."""
        if self._writer is None:
            return
        for gpu, mhz in highest_mhz.items():
            if self._locked.get(gpu) == mhz:
                continue
            try:
                self._writer.lock_clock(gpu, mhz)
            except KeeperError as fault:
                self._gone(fault)
                return
            except ReadingError as fault:
                self.faults[gpu] = str(fault)
                self._log("write-failed", gpu=gpu, highest_mhz=mhz, why=str(fault))
                continue
            self._locked[gpu] = mhz
            self._log("write", gpu=gpu, highest_mhz=mhz)

    def restore(self) -> None:
        """Lets the keeper set everything back to what it was."""
        if self._writer is None:
            return
        self.forget()
        try:
            self._writer.restore()
        except ReadingError as fault:
            self.faults["keeper"] = str(fault)
