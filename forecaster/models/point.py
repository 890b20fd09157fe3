"""Models that forecast a level; how far they were off in training makes the quantiles around it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from ..base import QUANTILES, TARGETS
from ..frames import FIT, VALIDATION, Floats, Frame
from .base import Model

TRAINING = (FIT, VALIDATION)


class PointModel(Model):
    """A model with a level per target, which is its median; the outer quantiles are those of the residuals from it."""

    naive: ClassVar[bool] = True

    def _learn(self, frames: Sequence[Frame], rng: np.random.Generator) -> None:
        self._choose(frames)
        off = np.concatenate([(f.truth - self._levels(f))[f.rows(*TRAINING)] for f in frames])
        outer = np.quantile(off, (QUANTILES[0], QUANTILES[-1]), axis=0)
        self.weights["offsets"] = np.stack(
            [np.minimum(outer[0], 0.0), np.zeros(len(TARGETS)), np.maximum(outer[1], 0.0)], axis=-1
        )

    def _predict(self, frame: Frame) -> Floats:
        return self._levels(frame)[..., None] + self.weights["offsets"]

    def _forecast(self) -> Floats:
        return self._level()[..., None] + self.weights["offsets"]

    @abstractmethod
    def _choose(self, frames: Sequence[Frame]) -> None:
        """Sets the weights that the level needs."""

    @abstractmethod
    def _levels(self, frame: Frame) -> Floats:
        """Levels after every second, (T, C, 4)."""

    @abstractmethod
    def _level(self) -> Floats:
        """Levels after the last sample, (C, 4)."""


class Smoother(PointModel):
    """A level that is the recent past smoothed by one parameter, chosen for each target out of a grid by its error."""

    grid: ClassVar[tuple[int, ...]]

    def _choose(self, frames: Sequence[Frame]) -> None:
        error = np.zeros((len(self.grid), len(TARGETS)))
        for frame in frames:
            rows = frame.rows(*TRAINING)
            for i, parameter in enumerate(self.grid):
                smooth = self._smooth(frame.power, parameter)[rows]
                error[i] += np.abs(frame.truth[rows] - smooth[:, None]).sum(axis=0)
        self.weights["parameter"] = np.array(self.grid, np.float64)[np.argmin(error, axis=0)]

    def _parameters(self) -> tuple[list[int], list[int]]:
        """Chosen parameters without repetition, and which of them each target has."""
        chosen = [int(value) for value in self.weights["parameter"]]
        unique = sorted(set(chosen))
        return unique, [unique.index(value) for value in chosen]

    def _levels(self, frame: Frame) -> Floats:
        unique, which = self._parameters()
        smooth = [self._smooth(frame.power, parameter) for parameter in unique]
        return np.stack([smooth[i] for i in which], axis=-1)

    @abstractmethod
    def _smooth(self, power: Floats, parameter: int) -> Floats:
        """The smoothed past at every second (T, C); before the first second power was what it is in it."""
