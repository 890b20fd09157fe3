"""As it was one period ago."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..autocorrelation import autocorrelation
from ..frames import Floats, Frame
from ..targets import HORIZONS_S, LONGEST_S
from . import ring
from .point import TRAINING, PointModel

LONGEST_PERIOD_S = 86_400
CYCLES = 3
"""Times that a training series must hold a period for it to be looked for."""


class SeasonalNaive(PointModel):
    """Forecasts what came one period ago, a period being the lag over a minute with the highest autocorrelation.

    Until a period has passed, what has not been seen yet is taken to be like the first second.
    """

    name = "seasonal-naive"

    def _choose(self, frames: Sequence[Frame]) -> None:
        longest = min(LONGEST_PERIOD_S, max(len(f.power) for f in frames) // CYCLES)
        total, weight = np.zeros(longest + 1), np.zeros(longest + 1)
        for frame in frames:
            known = np.isin(frame.part, TRAINING)
            power = frame.power[: int(np.flatnonzero(known)[-1]) + 1]
            here = min(longest, len(power) // CYCLES)
            total[: here + 1] += autocorrelation(power, here) * power.size
            weight[: here + 1] += power.size
        likeness = np.where(weight > 0, total / np.maximum(weight, 1), -np.inf)
        self.weights["period_s"] = np.array([LONGEST_S + np.argmax(likeness[LONGEST_S:])], np.float64)

    def _period_s(self) -> int:
        return int(self.weights["period_s"][0])

    def _levels(self, frame: Frame) -> Floats:
        period_s, seconds = self._period_s(), len(frame.power)
        before = ring.padded(frame.power, period_s)  # row t + period_s is second t
        sums = np.cumsum(np.concatenate([np.zeros_like(before[:1]), before]), axis=0)
        points = [before[h : h + seconds] for h in HORIZONS_S]
        means = [(sums[h + 1 : h + 1 + seconds] - sums[1 : 1 + seconds]) / h for h in HORIZONS_S]
        return np.stack([*points, *means], axis=-1)

    def _begin(self, channels: int) -> dict[str, Floats]:
        return ring.begin(self._period_s(), channels)

    def _start(self, first: Any, power: Floats) -> None:
        ring.start(self._state, first, power)

    def _absorb(self, power: Floats, inputs: Floats) -> None:
        ring.push(self._state, power)

    def _level(self) -> Floats:
        lags = self._period_s() - np.arange(1, LONGEST_S + 1)  # one second ahead, two seconds ahead, …
        ahead = ring.past(self._state, lags)
        points = [ahead[h - 1] for h in HORIZONS_S]
        means = [ahead[:h].mean(axis=0) for h in HORIZONS_S]
        return np.stack([*points, *means], axis=-1)
