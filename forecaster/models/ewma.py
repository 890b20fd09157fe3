"""An average that forgets: the exponentially weighted mean."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from ..frames import Floats
from .point import Smoother


def averages(power: Floats, half_lives_s: Floats) -> Floats:
    """Exponentially weighted means of a series.

    Args:
        power: (T, ...).
        half_lives_s: After how many seconds a sample has half its weight, (H,).

    Returns:
        (T, H, ...), begun as if the first sample had always been there.
    """
    keep = (0.5 ** (1.0 / half_lives_s)).reshape(-1, *(1 for _ in power.shape[1:]))
    level = np.repeat(power[:1], len(half_lives_s), axis=0)
    out = np.empty((len(power), *level.shape))
    for i, sample in enumerate(power):
        level = level + (1 - keep) * (sample - level)
        out[i] = level
    return out


class Ewma(Smoother):
    """Forecasts the exponentially weighted mean, whose half-life each target has chosen."""

    name = "ewma"
    grid: ClassVar[tuple[int, ...]] = (1, 2, 4, 8, 15, 30, 60, 120, 240)

    def _smooth(self, power: Floats, parameter: int) -> Floats:
        return averages(power, np.array([parameter], np.float64))[:, 0]

    def _begin(self, channels: int) -> dict[str, Floats]:
        return {"levels": np.zeros((len(self._parameters()[0]), channels))}

    def _start(self, first: Any, power: Floats) -> None:
        self._state["levels"][:, first] = power[first]

    def _absorb(self, power: Floats, inputs: Floats) -> None:
        gain = 1 - 0.5 ** (1.0 / np.array(self._parameters()[0], np.float64))
        self._state["levels"] += gain[:, None] * (power - self._state["levels"])

    def _level(self) -> Floats:
        return self._state["levels"][self._parameters()[1]].T
