"""Ridge regression on the past: one linear forecast per target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..base import TARGETS
from ..frames import FIT, VALIDATION, Floats, Frame
from . import ring
from .ewma import averages
from .least_squares import Moments
from .point import TRAINING, PointModel

LAGS_S = (0, 1, 2, 3, 5, 8, 13, 21, 34, 55)
HALF_LIVES_S = np.array([4.0, 15.0, 60.0, 240.0])
COVARIATE_HALF_LIFE_S = np.array([15.0])
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""On squared coefficients of standardised features, per training row; each target has the one that validates best."""


class RidgeAr(PointModel):
    """Forecasts each target by its own ridge regression on lags, exponential means and covariates.

    A direct forecast: no step is fed with another's result. It minimises squares, so it is a mean rather than a median.
    """

    name = "ridge-ar"
    reads_covariates = True

    def _choose(self, frames: Sequence[Frame]) -> None:
        inputs = [frame.covariates[frame.rows(*TRAINING)] for frame in frames]
        self.weights["usual"] = _means(np.concatenate(inputs))
        rows = [(self._features(frame), frame) for frame in frames]
        fitting, training = Moments(), Moments()
        for features, frame in rows:
            fitting.add(features[frame.rows(FIT)], frame.truth[frame.rows(FIT)])
            training.add(features[frame.rows(*TRAINING)], frame.truth[frame.rows(*TRAINING)])
        error = np.zeros((len(PENALTIES), len(TARGETS)))
        for i, penalty in enumerate(PENALTIES):
            slope, intercept = fitting.ridge(penalty)
            for features, frame in rows:
                chosen = frame.rows(VALIDATION)
                error[i] += np.abs(frame.truth[chosen] - features[chosen] @ slope - intercept).sum(axis=0)
        best = np.argmin(error, axis=0)
        solved = [training.ridge(PENALTIES[i]) for i in best]
        self.weights["penalty"] = np.array(PENALTIES)[best]
        self.weights["slope"] = np.stack([slope[:, k] for k, (slope, _) in enumerate(solved)], axis=1)
        self.weights["intercept"] = np.array([intercept[k] for k, (_, intercept) in enumerate(solved)])

    def _features(self, frame: Frame) -> Floats:
        """What the regression sees after every second, (T, C, P)."""
        seconds, longest = len(frame.power), max(LAGS_S)
        before = ring.padded(frame.power, longest)
        lags = np.stack([before[longest - lag : longest - lag + seconds] for lag in LAGS_S], axis=-1)
        means = np.moveaxis(averages(frame.power, HALF_LIVES_S), 1, -1)
        known = np.where(np.isnan(frame.covariates), self.weights["usual"], frame.covariates)
        begun = np.concatenate([np.broadcast_to(self.weights["usual"], known[:1].shape), known])
        return np.concatenate([lags, means, known, averages(begun, COVARIATE_HALF_LIFE_S)[1:, 0]], axis=-1)

    def _levels(self, frame: Frame) -> Floats:
        return np.asarray(self._features(frame) @ self.weights["slope"] + self.weights["intercept"])

    def _begin(self, channels: int) -> dict[str, Floats]:
        usual = np.repeat(self.weights["usual"][:, None], channels, axis=1)
        means = np.zeros((len(HALF_LIVES_S), channels))
        return ring.begin(max(LAGS_S) + 1, channels) | {"means": means, "inputs": usual, "input_means": usual.copy()}

    def _start(self, first: Any, power: Floats) -> None:
        ring.start(self._state, first, power)
        self._state["means"][:, first] = power[first]

    def _absorb(self, power: Floats, inputs: Floats) -> None:
        ring.push(self._state, power)
        gain = 1 - 0.5 ** (1.0 / HALF_LIVES_S)
        self._state["means"] += gain[:, None] * (power - self._state["means"])
        self._state["inputs"] = np.where(np.isnan(inputs.T), self.weights["usual"][:, None], inputs.T)
        gain = 1 - 0.5 ** (1.0 / COVARIATE_HALF_LIFE_S)
        self._state["input_means"] += gain * (self._state["inputs"] - self._state["input_means"])

    def _level(self) -> Floats:
        state = self._state
        features = np.concatenate([ring.past(state, LAGS_S), state["means"], state["inputs"], state["input_means"]])
        return np.asarray(features.T @ self.weights["slope"] + self.weights["intercept"])


def _means(inputs: Floats) -> Floats:
    """Means of columns over what is known, 0 where nothing is."""
    known = ~np.isnan(inputs)
    return np.asarray(np.where(known, inputs, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1))
