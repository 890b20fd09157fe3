"""What was usual in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..base import TARGETS
from ..frames import Floats, Frame
from .point import TRAINING, PointModel


class TrainingMedian(PointModel):
    """Forecasts the median of each target over the training series, whatever comes."""

    name = "training-median"

    def _choose(self, frames: Sequence[Frame]) -> None:
        self.weights["median"] = np.median(np.concatenate([f.truth[f.rows(*TRAINING)] for f in frames]), axis=0)

    def _levels(self, frame: Frame) -> Floats:
        return np.broadcast_to(self.weights["median"], (*frame.power.shape, len(TARGETS)))

    def _begin(self, channels: int) -> dict[str, Floats]:
        return {"channels": np.zeros(channels)}

    def _start(self, first: Any, power: Floats) -> None:
        pass

    def _absorb(self, power: Floats, inputs: Floats) -> None:
        pass

    def _level(self) -> Floats:
        return np.broadcast_to(self.weights["median"], (len(self._state["channels"]), len(TARGETS)))
