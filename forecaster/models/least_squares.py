"""Least squares from sums alone, so that days of rows need not be held at once."""

from __future__ import annotations

import numpy as np

from ..frames import Floats


class Moments:
    """Sums over rows of features (n, P) and targets (n, Q)."""

    def __init__(self) -> None:
        self._sums: Floats | None = None

    def add(self, features: Floats, targets: Floats) -> None:
        """Takes rows."""
        rows = np.concatenate([np.ones((len(features), 1)), features, targets], axis=1)
        products = rows.T @ rows
        self._sums = products if self._sums is None else self._sums + products
        self._features = features.shape[1]

    def ridge(self, penalty: float) -> tuple[Floats, Floats]:
        """Ridge regression on standardised features; features that do not vary have no coefficient.

        Args:
            penalty: On the sum of squared coefficients, per row.

        Returns:
            Slopes (P, Q) and intercepts (Q,), for the features as they are.
        """
        assert self._sums is not None
        size = self._features
        moments = self._sums / self._sums[0, 0]
        mean = moments[0, 1:]
        covariance = moments[1:, 1:] - np.outer(mean, mean)
        variance = covariance.diagonal()[:size]
        varies = variance > 1e-10 * np.maximum(mean[:size] ** 2, 1e-10)
        deviation = np.sqrt(np.where(varies, variance, 1.0))
        alike = np.where(np.outer(varies, varies), covariance[:size, :size] / np.outer(deviation, deviation), 0.0)
        along = np.where(varies[:, None], covariance[:size, size:] / deviation[:, None], 0.0)
        slope = np.linalg.solve(alike + penalty * np.eye(size), along) / deviation[:, None]
        return slope, mean[size:] - mean[:size] @ slope
