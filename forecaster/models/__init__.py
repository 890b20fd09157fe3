"""Trained models by name, as string entry points, so that only the one that is used is imported."""

from __future__ import annotations

import importlib

from ...errors import InputError
from .base import HeldOut, Model

__all__ = ["LEARNED", "MODELS", "NAIVE", "HeldOut", "Model", "make_model"]

NAIVE: dict[str, str] = {
    "persistence": "persistence:LastValue",
    "window-mean": "window_mean:WindowMean",
    "rolling-median": "rolling_median:RollingMedian",
    "training-median": "training_median:TrainingMedian",
    "seasonal-naive": "seasonal_naive:SeasonalNaive",
    "ewma": "ewma:Ewma",
    "ridge-ar": "ridge_ar:RidgeAr",
}
"""``module:Class`` in this package, by name: models without a network. Others are measured by the best of them."""

LEARNED: dict[str, str] = {
    "gru": "gru:Gru",
    "lstm": "lstm:Lstm",
    "s4d": "s4d:S4d",
    "spiking": "spiking:Spiking",
    "transformer": "transformer:Transformer",
}

MODELS: dict[str, str] = {**NAIVE, **LEARNED}


def make_model(name: str) -> Model:
    """A model that is yet to be fitted.

    Raises:
        InputError: The name is unknown.
    """
    if name not in MODELS:
        raise InputError(f"model {name!r}", "is unknown", f"Use one of {', '.join(MODELS)}")
    module, _, member = MODELS[name].partition(":")
    model: Model = getattr(importlib.import_module(f".{module}", __name__), member)()
    return model
