"""Stationary Gaussian series with several memories, in one FFT."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def gaussian_series(
    n: int, memories: Sequence[tuple[float, float]], rng: np.random.Generator, white: float
) -> NDArray[np.float64]:
    """Draws a series with autocovariance ``white * (k == 0) + sum(weight * exp(-k / steps))``.

    White noise of twice the length is coloured by the square root of the spectrum (circulant embedding), so that the
    ends of the returned half do not know of each other.

    Args:
        n: Number of values.
        memories: Pairs (steps, weight): the e-folding length of a memory and its variance.
        rng: Source of randomness.
        white: Variance without memory.

    Returns:
        The series, shape ``(n,)``, with mean 0.
    """
    half = 1 << max(1, n - 1).bit_length()
    cosine = np.cos(np.linspace(0, np.pi, half + 1))
    spectrum = np.full(half + 1, white)
    for steps, weight in memories:
        a = np.exp(-1 / steps)
        spectrum += weight * (1 - a * a) / (1 - 2 * a * cosine + a * a)
    noise = np.fft.rfft(rng.standard_normal(2 * half))
    return np.fft.irfft(noise * np.sqrt(spectrum))[:n]
