"""The simplest forecast: what is, stays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base import SHAPE, Covariates

_NORMAL_80 = 1.2815515655446004
"""0.9 quantile of the standard normal distribution."""


class Persistence:
    """Forecasts the mean of the newest samples, with quantiles from how far one step ahead was off so far.

    Args:
        memory: Weight of the past in the running mean square of the one-step errors, in [0, 1).
    """

    covariates: tuple[str, ...] = ()

    def __init__(self, memory: float = 0.95) -> None:
        self._memory = memory
        self.reset(0)

    def reset(self, series: int, scale_w: NDArray[np.float64] | None = None) -> None:
        """Forgets everything; see :class:`Forecaster`."""
        self._last = np.zeros(series)
        self._square = np.zeros(series)
        self._updates = 0

    def update(self, power_w: NDArray[np.float64], covariates: Covariates | None = None) -> NDArray[np.float64]:
        """Forecasts watts, (series, 4, 3); see :class:`Forecaster`."""
        level = power_w.mean(axis=0)
        if self._updates == 1:
            self._square = (level - self._last) ** 2
        elif self._updates > 1:
            self._square = self._memory * self._square + (1 - self._memory) * (level - self._last) ** 2
        self._last = level
        self._updates += 1
        spread = _NORMAL_80 * np.sqrt(self._square)
        quantiles = np.stack([level - spread, level, level + spread], axis=-1).clip(min=0.0)
        return np.broadcast_to(quantiles[:, None, :], (len(level), *SHAPE))

    def save_state(self) -> dict[str, Any]:
        """The last level and the errors so far; see :class:`Forecaster`."""
        return {"last": self._last.copy(), "square": self._square.copy(), "updates": self._updates}

    def restore_state(self, state: dict[str, Any]) -> None:
        """Takes up a state; see :class:`Forecaster`."""
        self._last, self._square, self._updates = state["last"].copy(), state["square"].copy(), state["updates"]


class NoForecast:
    """Forecasts nothing: zeros, for a fair comparison without the perception layer."""

    covariates: tuple[str, ...] = ()

    def reset(self, series: int, scale_w: NDArray[np.float64] | None = None) -> None:
        """Keeps nothing; see :class:`Forecaster`."""

    def update(self, power_w: NDArray[np.float64], covariates: Covariates | None = None) -> NDArray[np.float64]:
        """Zeros, (series, 4, 3)."""
        return np.zeros((power_w.shape[1], *SHAPE))

    def save_state(self) -> dict[str, Any]:
        """Nothing; see :class:`Forecaster`."""
        return {}

    def restore_state(self, state: dict[str, Any]) -> None:
        """Takes up nothing; see :class:`Forecaster`."""
