"""What could be forecast at all: how much a series tells of its future, and what a line drawn afterwards would save."""

from __future__ import annotations

import numpy as np

from ..forecaster.autocorrelation import autocorrelation
from ..forecaster.base import TARGETS
from ..forecaster.frames import Floats, frame_of
from ..forecaster.models.ewma import averages
from ..forecaster.models.learned import HALF_LIVES_S
from ..forecaster.targets import HORIZONS_S, targets_of
from ..forecaster.telemetry import Telemetry
from .forecast_backtest import Fold

ROUNDS = 60
CLOSE = 1e-4
"""Errors below this share of the mean one weigh no more than one of it, so that weights stay finite."""


def memory(telemetry: Telemetry, first_s: int = 0) -> dict[str, float]:
    """How much the past resembles each target, 1 being the same and 0 nothing.

    Args:
        telemetry: The series.
        first_s: First second that counts.

    Returns:
        By target: autocorrelation of seconds at the horizon, and of means over windows as long as the horizon between
        a window and the one that follows it.
    """
    power = telemetry.power_w[first_s:]
    points = autocorrelation(power, max(HORIZONS_S))
    found = [float(points[h]) for h in HORIZONS_S]
    for h in HORIZONS_S:
        found.append(float(autocorrelation(_moving_mean(power, h), h)[h]))
    return dict(zip(TARGETS, found, strict=True))


def _moving_mean(power: Floats, window_s: int) -> Floats:
    """Means of the last so many seconds, (T - window + 1, C); ``nan`` where one of them is a gap."""
    return np.asarray(np.lib.stride_tricks.sliding_window_view(power, window_s, axis=0).mean(axis=-1))


def hindsight_mae_w(folds: list[Fold]) -> Floats:
    """Error of the line that fits the judged seconds themselves best, (4,) by target, watts.

    It starts from what networks see of power: the last second and its exponential means. No model that is linear in
    these can do better on these seconds, as it would have to know them beforehand.

    Args:
        folds: What is judged.
    """
    inputs, truth = [], []
    for fold in folds:
        judged = slice(fold.first_s, fold.last_s)
        power = frame_of(fold.test).power
        levels = np.concatenate([power[:, None], averages(power, HALF_LIVES_S)], axis=1)
        known = targets_of(fold.test.power_w / fold.test.scale_w)[judged] * fold.test.scale_w[:, None]
        rows = ~np.isnan(known[..., 0])
        inputs.append((np.moveaxis(levels, 1, -1) * fold.test.scale_w[:, None])[judged][rows])
        truth.append(known[rows])
    columns, wanted = np.concatenate(inputs), np.concatenate(truth)
    return np.array([least_absolute(columns, wanted[:, k]) for k in range(len(TARGETS))])


def least_absolute(inputs: Floats, truth: Floats) -> float:
    """Lowest mean absolute error of a line through (n, P) inputs, by reweighted least squares (Schlossmacher 1973)."""
    varies = inputs.std(axis=0) > 0
    standard = (inputs[:, varies] - inputs[:, varies].mean(axis=0)) / inputs[:, varies].std(axis=0)
    rows = np.concatenate([np.ones((len(truth), 1)), standard], axis=1)
    off = truth - np.median(truth)
    lowest = float(np.abs(off).mean())
    for _ in range(ROUNDS):
        weight = 1 / np.sqrt(np.maximum(np.abs(off), max(CLOSE * lowest, 1e-12)))
        line = np.linalg.lstsq(rows * weight[:, None], truth * weight, rcond=None)[0]
        off = truth - rows @ line
        lowest = min(lowest, float(np.abs(off).mean()))
    return lowest
