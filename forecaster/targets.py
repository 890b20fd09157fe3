"""What is forecast: power in 30 s and in 60 s, and its mean until then."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .base import TARGETS

HORIZONS_S = (30, 60)
LONGEST_S = max(HORIZONS_S)


def targets_of(power_w: NDArray[np.float64]) -> NDArray[np.float64]:
    """The truth that forecasts made at the end of each second are judged by.

    Args:
        power_w: Mean power of each second, (T, C); ``nan`` in gaps.

    Returns:
        By second of the forecast, (T, C, 4) in the order of :data:`TARGETS`. All four are ``nan`` where there is a gap,
        or the series ends, between that second and the longest horizon: all targets are judged on the same seconds.
    """
    seconds, channels = power_w.shape
    truth = np.full((seconds, channels, len(TARGETS)), np.nan)
    judged = seconds - LONGEST_S
    if judged <= 0:
        return truth
    sums = np.concatenate([np.zeros((1, channels)), np.cumsum(np.nan_to_num(power_w), axis=0)])
    gaps = np.concatenate([np.zeros((1, channels)), np.cumsum(np.isnan(power_w), axis=0)])
    points = [power_w[h : h + judged] for h in HORIZONS_S]
    means = [(sums[h + 1 : h + 1 + judged] - sums[1 : 1 + judged]) / h for h in HORIZONS_S]
    whole = gaps[LONGEST_S + 1 :] - gaps[:judged] == 0
    truth[:judged] = np.where(whole[..., None], np.stack([*points, *means], axis=-1), np.nan)
    return truth
