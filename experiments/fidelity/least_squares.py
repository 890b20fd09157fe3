"""Non-linear least squares with a numerical Jacobian, for the few figures of a catalogue entry."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]

STEP = 1e-6


def least_squares(residuals: Callable[[F64], F64], start: F64, rounds: int = 60) -> F64:
    """Levenberg's damped Gauss-Newton method.

    Args:
        residuals: What is to be small, of given parameters; all of the parameters should be of order one.
        start: Parameters to start from (n,).
        rounds: Steps at most.

    Returns:
        Parameters (n,) whose sum of squares is no larger than that of ``start``.
    """
    x, damping = start.astype(np.float64), 1e-3
    now = residuals(x)
    for _ in range(rounds):
        slopes = np.stack([(residuals(x + STEP * unit) - now) / STEP for unit in np.eye(len(x))], axis=1)
        normal, gradient = slopes.T @ slopes, slopes.T @ now
        while damping < 1e9:
            step = np.linalg.solve(normal + damping * np.eye(len(x)), -gradient)
            then = residuals(x + step)
            if then @ then < now @ now:
                break
            damping *= 4
        else:
            return x
        gained = now @ now - then @ then
        x, now, damping = x + step, then, damping / 4
        if gained <= 1e-12 * (1e-12 + now @ now):
            return x
    return x
