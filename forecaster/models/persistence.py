"""What is, stays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..base import TARGETS
from ..frames import Floats, Frame
from .point import PointModel


class LastValue(PointModel):
    """Forecasts the power of the last second."""

    name = "persistence"

    def _choose(self, frames: Sequence[Frame]) -> None:
        pass

    def _levels(self, frame: Frame) -> Floats:
        return np.repeat(frame.power[..., None], len(TARGETS), axis=-1)

    def _begin(self, channels: int) -> dict[str, Floats]:
        return {"last": np.zeros(channels)}

    def _start(self, first: Any, power: Floats) -> None:
        pass

    def _absorb(self, power: Floats, inputs: Floats) -> None:
        self._state["last"] = power

    def _level(self) -> Floats:
        return np.repeat(self._state["last"][:, None], len(TARGETS), axis=-1)
