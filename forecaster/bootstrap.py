"""Intervals of figures over time, where seconds resemble their neighbours: the block bootstrap."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

AT_ONCE = 1 << 22
"""Figures that are gathered at once, to bound memory."""


def resampled_sums(values: Floats, block_s: int, resamples: int, rng: np.random.Generator) -> Floats:
    """Sums of series put together anew from blocks: the circular block bootstrap (Politis and Romano 1992).

    All columns are resampled alike, so that differences between them keep what they have in common.

    Args:
        values: A row per second, (T, K).
        block_s: Length of a block, longer than what neighbours have in common; cut to T.
        resamples: Number of resamples.
        rng: Source of the blocks.

    Returns:
        Sums over a resample, (resamples, K).
    """
    seconds = len(values)
    block_s = min(block_s, seconds)
    around = np.concatenate(
        [np.zeros((1, values.shape[1])), np.cumsum(np.concatenate([values, values[:block_s]]), axis=0)]
    )
    blocks = around[block_s : block_s + seconds] - around[:seconds]
    each = -(-seconds // block_s)
    sums = np.empty((resamples, values.shape[1]))
    step = max(1, AT_ONCE // (each * values.shape[1]))
    for first in range(0, resamples, step):
        starts = rng.integers(seconds, size=(min(step, resamples - first), each))
        sums[first : first + step] = blocks[starts].sum(axis=1)
    return sums


def interval(resampled: Floats, level: float = 0.95) -> tuple[Floats, Floats]:
    """Percentile bounds over the first axis; ``nan`` where a resample has no figure."""
    low, high = np.quantile(resampled, ((1 - level) / 2, (1 + level) / 2), axis=0)
    return low, high
