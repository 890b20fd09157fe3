"""Power of each second from what a GPU's meters say."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from .readings import GpuReading

F64 = NDArray[np.float64]
LONGEST_GAP_S = 60
"""Looks further apart fill no more seconds than this: no tick is longer."""


class GpuMeter:
    """Watts of one GPU between looks.

    Where its counter of energy goes on, a mean is its difference over the time; else it is the driver's own mean, or
    the power at that instant. A counter that stands still (DCGM-exporter renews it only now and then) or falls (the
    driver was loaded anew) tells nothing.

    Args:
        averages: Whether a mean is wanted, or the power at the instant of the look.
    """

    def __init__(self, *, averages: bool) -> None:
        self._averages = averages
        self._base: tuple[float, float] | None = None

    def watts(self, reading: GpuReading) -> float | None:
        """Power since the last reading; `None` where nothing tells it."""
        by_energy_w = self._by_energy(reading)
        means = (by_energy_w, reading.mean_power_w, reading.power_w)
        order = means if self._averages else (reading.power_w, reading.mean_power_w, by_energy_w)
        return next((value for value in order if value is not None), None)

    def _by_energy(self, reading: GpuReading) -> float | None:
        if reading.energy_j is None:
            return None
        base, now = self._base, (reading.time_s, reading.energy_j)
        if base is None or now[1] < base[1] or now[0] <= base[0]:
            self._base = now
            return None
        if now[1] == base[1]:
            return None
        self._base = now
        return (now[1] - base[1]) / (now[0] - base[0])


class Seconds:
    """The last seconds of power, (n, R): a row for each second that has passed between looks.

    Args:
        slots: Number of slots R.
        kept: So many seconds are kept.
    """

    def __init__(self, slots: int, kept: int) -> None:
        self._rows: deque[F64] = deque(maxlen=kept)
        self._slots = slots
        self._told_s: float | None = None

    def add(self, time_s: float, watts: F64) -> list[F64]:
        """Watts that held since the last call, once for each second since; one that comes late stands for several."""
        if self._told_s is None:
            self._told_s = time_s
        passed = round(time_s - self._told_s)
        rows = [watts] * min(passed, LONGEST_GAP_S)
        self._rows.extend(rows)
        self._told_s += passed
        return rows

    def last(self, seconds: int) -> F64:
        """The last seconds, the oldest first; the first known one stands for what is missing, (seconds, R).

        Before any second has passed, one row of zeros: the simulator's meters begin so, too.
        """
        rows = list(self._rows)[-seconds:]
        if not rows:
            return np.zeros((1, self._slots))
        return np.array([rows[0]] * (seconds - len(rows)) + rows)
