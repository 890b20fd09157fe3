"""The two scalars of a model, GPU and parallelism: ``time`` and ``compute`` of a ``[[scales]]`` table.

Least absolute deviations of the logarithm, the loss that the published medians ask for: it is indifferent to how far
off an outlier is. For every ``compute`` of a grid the best ``time`` is a weighted median, so that the minimum is exact
on the grid and needs no starting point.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

COMPUTE = np.array(sorted(np.geomspace(0.1, 10.0, 231), key=lambda c: abs(np.log(c))))
"""2 % apart, the nearest to 1 first: where the rows do not say, the catalogue's figure stays."""
RESAMPLES = 200


class Scalars(NamedTuple):
    """What multiplies the length of an iteration, and its matrix work and attention besides."""

    time: float
    compute: float


def fit(logs: NDArray[np.float64], weights: NDArray[np.float64]) -> Scalars:
    """Best scalars.

    Args:
        logs: log(measured / simulated) of N values at each of ``COMPUTE`` (C, N).
        weights: How much each value counts (N,), at least one of them positive.

    Returns:
        The scalars with the least weighted sum of absolute deviations.
    """
    order = np.argsort(logs, axis=1)
    below = np.cumsum(weights[order], axis=1)
    middle = np.argmax(below >= below[:, -1:] / 2, axis=1)
    each = np.arange(len(logs))
    time = logs[each, order[each, middle]]
    loss = np.abs(logs - time[:, None]) @ weights
    best = int(np.argmin(loss))
    return Scalars(float(np.exp(time[best])), float(COMPUTE[best]))


def intervals(
    logs: NDArray[np.float64],
    weights: NDArray[np.float64],
    configurations: Sequence[str],
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
) -> tuple[tuple[float, float], tuple[float, float]]:
    """95 % bootstrap intervals of time and compute, configurations drawn with replacement.

    Args:
        logs: As for ``fit`` (C, N).
        weights: As for ``fit`` (N,).
        configurations: That of each value (N).
        rng: Draws the resamples.
        resamples: How many.

    Returns:
        The intervals; of no width where there is one configuration alone.
    """
    names, index = np.unique(np.asarray(configurations), return_inverse=True)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    found = np.array([fit(logs, weights * counts[index]) for counts in drawn])
    low, high = np.quantile(found, (0.025, 0.975), axis=0)
    return (float(low[0]), float(high[0])), (float(low[1]), float(high[1]))
