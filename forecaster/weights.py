"""Fitted models as files: safetensors, with what the model is and what it was made of beside the figures."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..files import readable, whole
from .models import MODELS, Model, make_model
from .telemetry import COVARIATES

KEY = "llmcluster"
FORMAT = "llmcluster-forecaster-2"
MAX_BYTES = 64 << 20
"""Larger than any model of power; what is larger is not read."""
MAX_HEADER_BYTES = 1 << 20


def save_model(model: Model, path: Path, card: dict[str, Any] | None = None) -> None:
    """Writes a fitted model, whole or not at all.

    Args:
        model: The model.
        path: The file, by custom ``NAME.safetensors``.
        card: What it was made of (data, split, seeds, figures), as plain values.
    """
    from safetensors.numpy import save_file

    if "widen" not in model.weights:
        raise InputError(model.name, "the model is not fitted", "Call fit first")
    about = {"format": FORMAT, "model": model.name, "covariates": list(model.covariates), "card": card or {}}
    tensors = {name: np.ascontiguousarray(value, np.float64) for name, value in model.weights.items()}
    with whole(path) as partial:
        save_file(tensors, partial, {KEY: json.dumps(about, sort_keys=True)})  # one entry: their order is not kept


def load_model(path: Path) -> tuple[Model, dict[str, Any]]:
    """Reads a fitted model.

    Returns:
        The model and its card.

    Raises:
        InputError: The file is absent, too large, damaged, of something else, or holds figures that are not finite.
    """
    readable(path)
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise _fault(path, f"has {size:,} bytes, more than any model of power")
    about = _about(path, size)
    if about.get("format") != FORMAT or about.get("model") not in MODELS:
        raise _fault(path, "holds no model of power, or one of another version")
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        covariates, card = tuple(about["covariates"]), about["card"]
        weights = load_file(path)
    except (SafetensorError, KeyError, ValueError, TypeError) as fault:
        raise _fault(path, f"is damaged ({fault})") from None
    if not all(name in COVARIATES for name in covariates) or not isinstance(card, dict):
        raise _fault(path, "is damaged (its description does not hold)")
    if not all(w.dtype == np.float64 and np.isfinite(w).all() for w in weights.values()):
        raise _fault(path, "is damaged (not all of its figures are finite)")
    model = make_model(about["model"])
    model.weights, model.covariates = weights, covariates
    try:
        model.reset(1)
        forecast = model.update(np.full(1, 100.0), {name: np.ones(1) for name in covariates})
    except (KeyError, ValueError, IndexError) as fault:
        raise _fault(path, f"is damaged (its figures do not fit together: {fault})") from None
    if forecast.shape != (1, 4, 3):
        raise _fault(path, "is damaged (its figures do not fit together)")
    return model, card


def _about(path: Path, size: int) -> dict[str, Any]:
    """The file's description, read with care: a length, then JSON of that length."""
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise _fault(path, "is no safetensors file, or was cut")
        try:
            header = json.loads(file.read(length))
        except ValueError:
            raise _fault(path, "is no safetensors file, or was cut") from None
    try:
        about = json.loads(header["__metadata__"][KEY])
    except (KeyError, TypeError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


def _fault(path: Path, problem: str) -> InputError:
    return InputError(str(path), problem, "Give a file that `llmcluster forecast train` wrote")
