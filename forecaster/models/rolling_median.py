"""The median of the last seconds."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ..frames import Floats
from . import ring
from .point import Smoother

ROWS = 4096
"""Seconds whose windows are sorted at once, to bound memory."""


class RollingMedian(Smoother):
    """Forecasts the median of a window, whose length each target has chosen."""

    name = "rolling-median"
    grid: ClassVar[tuple[int, ...]] = (5, 15, 31, 61, 121, 301)

    def _smooth(self, power: Floats, parameter: int) -> Floats:
        windows = sliding_window_view(ring.padded(power, parameter - 1), parameter, axis=0)
        return np.concatenate([np.median(windows[i : i + ROWS], axis=-1) for i in range(0, len(windows), ROWS)])

    def _begin(self, channels: int) -> dict[str, Floats]:
        return ring.begin(max(self._parameters()[0]), channels)

    def _start(self, first: Any, power: Floats) -> None:
        ring.start(self._state, first, power)

    def _absorb(self, power: Floats, inputs: Floats) -> None:
        ring.push(self._state, power)

    def _level(self) -> Floats:
        windows, which = self._parameters()
        medians = np.stack([np.median(ring.past(self._state, range(w)), axis=0) for w in windows])
        return medians[which].T
