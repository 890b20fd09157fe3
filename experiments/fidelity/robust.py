"""Robust least squares within bounds: Levenberg and Marquardt's steps on a soft absolute loss."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
Model = Callable[[F64], tuple[F64, F64]]
"""Residuals (N,) and their Jacobian (N, P) at parameters (P,)."""

MOST_STEPS = 200
LEAST_GAIN = 1e-6
EASIER, HARDER = 0.3, 4.0
HARDEST = 1e8


def minimise(model: Model, start: F64, low: F64, high: F64, scale: float, counts: F64 | None = None) -> F64:
    """Parameters with the least sum of 2·(√(1 + (r/scale)²) − 1) over the residuals.

    Args:
        model: Gives residuals and Jacobian.
        start: Where to begin.
        low: Least parameters.
        high: Greatest.
        scale: Residuals far above it count by their size, those below by their square.
        counts: How often each residual counts; once by default.

    Returns:
        A local minimum within the bounds.
    """
    at = np.clip(start, low, high)
    residuals, jacobian = model(at)
    times = np.ones(len(residuals)) if counts is None else counts
    loss, damping = _loss(residuals, times, scale), 1e-2
    for _ in range(MOST_STEPS):
        weights = times / np.sqrt(1 + (residuals / scale) ** 2)
        slope = jacobian.T @ (weights * residuals)
        curvature = jacobian.T @ (weights[:, None] * jacobian)
        free = ~((at <= low) & (slope > 0) | (at >= high) & (slope < 0))
        while damping < HARDEST:
            step = np.zeros_like(at)
            damped = curvature[np.ix_(free, free)] + damping * np.diag(np.diag(curvature)[free] + 1e-12)
            step[free] = -np.linalg.solve(damped, slope[free])
            tried = np.clip(at + step, low, high)
            its_residuals, its_jacobian = model(tried)
            if (its_loss := _loss(its_residuals, times, scale)) < loss:
                break
            damping *= HARDER
        else:
            break
        gain = (loss - its_loss) / loss
        at, residuals, jacobian, loss = tried, its_residuals, its_jacobian, its_loss
        damping *= EASIER
        if gain < LEAST_GAIN:
            break
    return at


def _loss(residuals: F64, times: F64, scale: float) -> float:
    return float(times @ (np.sqrt(1 + (residuals / scale) ** 2) - 1))
