"""The perception layer: telemetry in, power forecast out. Knows nothing of the simulator."""

from pathlib import Path

from ..errors import InputError
from .base import QUANTILES, TARGETS, Forecaster
from .persistence import NoForecast, Persistence

__all__ = ["FORECASTERS", "QUANTILES", "TARGETS", "Forecaster", "NoForecast", "Persistence", "make_forecaster"]

FORECASTERS = ("none", "persistence", "gru")
WEIGHTS = ".safetensors"


def make_forecaster(name: str, folder: Path = Path()) -> Forecaster:
    """A forecaster by name.

    Args:
        name: One of :data:`FORECASTERS`, or a file of weights that ``llmcluster forecast train`` wrote.
        folder: Where a relative path starts.

    Raises:
        InputError: The name is unknown, or the file does not hold.
    """
    if name == "none":
        return NoForecast()
    if name == "persistence":
        return Persistence()
    if name not in FORECASTERS and not name.endswith(WEIGHTS):
        known = ", ".join(FORECASTERS)
        raise InputError("forecaster", f"'{name}' is unknown", f"Use one of {known}, or a {WEIGHTS} file")
    from .shipped import path_of
    from .weights import load_model

    return load_model(folder / name if name.endswith(WEIGHTS) else path_of(name))[0]
