"""Power over time: means of whole seconds, how far two series are apart, and intervals by resampling blocks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]

LAGS_S = 20
BLOCK_S = 20
RESAMPLES = 500


def second_means(time_s: F64, values: F64) -> F64:
    """Means over whole seconds from the first sample on; NaN where less than half of the usual samples are there.

    Args:
        time_s: When the samples were taken, ascending (n,).
        values: The samples (n,).
    """
    second = np.floor(time_s - time_s[0]).astype(np.int64)
    count = np.bincount(second)
    means = np.full(len(count), np.nan)
    kept = count >= max(np.median(count[count > 0]) / 2, 1)
    means[kept] = np.bincount(second, weights=values)[kept] / count[kept]
    whole = int(np.floor(time_s[-1] - time_s[0] + np.median(np.diff(time_s))))
    return means[: max(whole, 1)]


def autocorrelation(values: F64, lags: int = LAGS_S) -> F64:
    """Autocorrelation at lags of 1 to ``lags``; pairs of which one is NaN are left out."""
    centred = values - np.nanmean(values)
    variance = np.nanmean(centred**2)
    if not variance > 0:
        return np.zeros(lags)
    # Sums over pairs against the sum over all, as usual; where values are missing, as if they were like the rest.
    pairs = np.array([np.nanmean(centred[:-k] * centred[k:]) * (len(values) - k) for k in range(1, lags + 1)])
    return np.asarray(pairs / (variance * len(values)))


def compare(measured_w: F64, predicted_w: F64, span_w: float) -> dict[str, float]:
    """Relative error of the energy, NRMSE and R² of the autocorrelation, of two series of equal length.

    The root of the mean square is divided by ``span_w``, and R² is 1 less the squared differences of the two
    autocorrelations over those of the measured one from its mean, both as in ``model/evaluation.py`` of powertrace-sim.
    Where what was measured does not change, neither is defined: NaN.
    """
    both = ~np.isnan(measured_w) & ~np.isnan(predicted_w)
    one, other = np.where(both, measured_w, np.nan), np.where(both, predicted_w, np.nan)
    lags = min(LAGS_S, len(one) - 2)
    theirs, ours = autocorrelation(one, lags), autocorrelation(other, lags)
    spread = float(((theirs - theirs.mean()) ** 2).sum())
    return {
        "energy_error": float(np.nansum(other) / np.nansum(one) - 1),
        "nrmse": float(np.sqrt(np.nanmean((other - one) ** 2))) / span_w if span_w > 0 else float("nan"),
        "acf_r2": 1 - float(((theirs - ours) ** 2).sum()) / spread if spread > 0 else float("nan"),
    }


def with_intervals(measured_w: F64, predicted_w: F64, rng: np.random.Generator) -> dict[str, float]:
    """:func:`compare` with 95 % intervals, ``…_low`` and ``…_high``, of a moving-block bootstrap.

    Blocks of 20 s, as long as the longest lag, are drawn from both series at once, so that both are broken at the same
    places. The span is always that of the whole measured series.
    """
    span_w = float(np.nanmax(measured_w) - np.nanmin(measured_w))
    found = compare(measured_w, predicted_w, span_w)
    seconds = np.array(list(blocks(len(measured_w), rng)))
    drawn = [compare(measured_w[chosen], predicted_w[chosen], span_w) for chosen in seconds]
    for name in tuple(found):
        known = [one[name] for one in drawn if not np.isnan(one[name])]
        low, high = np.quantile(known, (0.025, 0.975)) if known else (np.nan, np.nan)
        found |= {f"{name}_low": float(low), f"{name}_high": float(high)}
    return found


def blocks(length: int, rng: np.random.Generator, resamples: int = RESAMPLES) -> NDArray[np.int64]:
    """Indices of moving-block resamples of a series, (resamples, length)."""
    size = min(BLOCK_S, length)
    count = -(-length // size)
    starts = rng.integers(length - size + 1, size=(resamples, count))
    indices = (starts[:, :, None] + np.arange(size)).reshape(resamples, -1)
    return np.asarray(indices[:, :length], np.int64)
