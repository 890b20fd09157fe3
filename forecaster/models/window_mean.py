"""The mean of the last seconds."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from ..frames import Floats
from . import ring
from .point import Smoother


class WindowMean(Smoother):
    """Forecasts the mean of a window, whose length each target has chosen."""

    name = "window-mean"
    grid: ClassVar[tuple[int, ...]] = (5, 10, 20, 30, 60, 120, 300)

    def _smooth(self, power: Floats, parameter: int) -> Floats:
        sums = np.cumsum(np.concatenate([np.zeros_like(power[:1]), ring.padded(power, parameter - 1)]), axis=0)
        return np.asarray((sums[parameter:] - sums[:-parameter]) / parameter)

    def _begin(self, channels: int) -> dict[str, Floats]:
        windows, _ = self._parameters()
        return ring.begin(max(windows), channels) | {"sums": np.zeros((len(windows), channels))}

    def _start(self, first: Any, power: Floats) -> None:
        windows, _ = self._parameters()
        ring.start(self._state, first, power)
        self._state["sums"][:, first] = np.array(windows, np.float64)[:, None] * power[first]

    def _absorb(self, power: Floats, inputs: Floats) -> None:
        windows, _ = self._parameters()
        self._state["sums"] += power - ring.past(self._state, np.array(windows) - 1)
        ring.push(self._state, power)
        if self._state["next"][0] == 0:  # once around: rounding must not add up
            self._state["sums"] = np.stack([ring.past(self._state, range(w)).sum(axis=0) for w in windows])

    def _level(self) -> Floats:
        windows, which = self._parameters()
        return np.asarray((self._state["sums"] / np.array(windows)[:, None])[which].T)
