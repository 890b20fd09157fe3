"""How much a series resembles itself some time ago."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def autocorrelation(power: NDArray[np.float64], longest_s: int) -> NDArray[np.float64]:
    """Autocorrelation of a series by lag, over the pairs of seconds that are both known.

    Args:
        power: (T, C), ``nan`` in gaps; the channels count alike, each about its own mean.
        longest_s: Longest lag, below T.

    Returns:
        By lag from 0 to ``longest_s``; 0 where a series does not vary, or no pair is known.
    """
    known = ~np.isnan(power)
    mean = np.where(known, power, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    centred = np.where(known, power - mean, 0.0)
    size = 1 << (2 * len(power) - 1).bit_length()  # long enough not to wrap around
    products, pairs = (
        np.fft.irfft(np.abs(np.fft.rfft(x, size, axis=0)) ** 2, axis=0)[: longest_s + 1].sum(axis=1)
        for x in (centred, known.astype(np.float64))
    )
    pairs = np.rint(pairs)
    if products[0] <= 1e-12 * pairs[0]:
        return np.zeros(longest_s + 1)
    means = np.where(pairs > 0, products / np.maximum(pairs, 1), 0.0)
    return np.asarray(means / means[0])
