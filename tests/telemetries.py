"""Telemetry that is made up, and models that have been fitted on it."""

from functools import cache
from typing import Any

import numpy as np

from llmcluster.forecaster.models import make_model
from llmcluster.forecaster.models.learned import Learned, TrainSettings
from llmcluster.forecaster.telemetry import Telemetry

QUICK = TrainSettings(hidden=8, epochs=2, window_s=128, stride_s=5)


def series(power_w: Any, **more: Any) -> Telemetry:
    power = np.array(power_w, float)
    power = power[:, None] if power.ndim == 1 else power
    return Telemetry(power, tuple(f"gpu{i}" for i in range(power.shape[1])), **more)


def load(rng: np.random.Generator, seconds: int = 600, channels: int = 2) -> Telemetry:
    """Power that follows requests, which come in waves."""
    running = 4 + 3 * np.sin(np.arange(seconds) / 40)[:, None] + rng.normal(size=(seconds, channels)).cumsum(axis=0) / 9
    power = 90 + 50 * np.clip(running, 0, 5) + rng.normal(0, 4, (seconds, channels))
    return series(power, covariates={"running": running, "waiting": np.maximum(running - 5, 0)})


def fitted(name: str, train: Telemetry, seed: int = 0) -> Any:
    model = make_model(name)
    if isinstance(model, Learned):
        model.settings = QUICK
    model.fit([train], np.random.default_rng(seed))
    return model


@cache
def ready(name: str) -> Any:
    """A model that has been fitted on two channels with covariates."""
    return fitted(name, load(np.random.default_rng(4)))
