"""The perception layer: telemetry in, power forecast out. Knows nothing of the simulator."""

from collections.abc import Callable

from .base import QUANTILES, TARGETS, Forecaster
from .persistence import NoForecast, Persistence

__all__ = ["QUANTILES", "TARGETS", "Forecaster", "NoForecast", "Persistence", "make_forecaster"]


def make_forecaster(name: str) -> Forecaster:
    """A forecaster by name.

    Raises:
        ValueError: The name is unknown.
    """
    known: dict[str, Callable[[], Forecaster]] = {"none": NoForecast, "persistence": Persistence}
    if name not in known:
        raise ValueError(f"forecaster '{name}' is unknown; use one of {', '.join(known)}")
    return known[name]()
