"""What every power forecaster is: samples in, quantiles of four targets out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

TARGETS = ("point_30s", "point_60s", "mean_30s", "mean_60s")
"""Power 30 s and 60 s ahead, and mean power over the next 30 s and 60 s."""

QUANTILES = (0.1, 0.5, 0.9)

SHAPE = (len(TARGETS), len(QUANTILES))


Covariates = Mapping[str, NDArray[np.float64]] | NDArray[np.float64]
"""What is known beside power: by name, or as they are at the last sample, (series, K), in the order that is read."""


class Forecaster(Protocol):
    """A stateful forecaster of several series at once.

    Attributes:
        covariates: Names of what it reads beside power, of :data:`~llmcluster.forecaster.telemetry.COVARIATES`.
    """

    covariates: tuple[str, ...]

    def reset(self, series: int, scale_w: NDArray[np.float64] | None = None) -> None:
        """Forgets everything; from now on there are ``series`` series, of these scales in watts."""

    def update(self, power_w: NDArray[np.float64], covariates: Covariates | None = None) -> NDArray[np.float64]:
        """Takes the newest samples and forecasts.

        Args:
            power_w: Metered power, watts, (n, series): one row per second since the last call, oldest first.
            covariates: Those of ``self.covariates`` by name, in the same shape; or as a matrix, as they are at the last
                sample, which is quicker. ``nan`` where nothing new is known.

        Returns:
            Watts, (series, 4, 3): targets by quantiles, in the order of :data:`TARGETS` and :data:`QUANTILES`.
        """

    def save_state(self) -> dict[str, Any]:
        """What has been learnt since the reset: plain values and arrays that do not change any more."""

    def restore_state(self, state: dict[str, Any]) -> None:
        """Takes up a state of :meth:`save_state`."""
