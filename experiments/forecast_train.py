"""Fits a model of power with several seeds, keeps the one that validates best, and writes it with its card."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..forecaster.base import TARGETS
from ..forecaster.frames import CALIBRATION, FIT, SHARES, VALIDATION, parts_of
from ..forecaster.losses import Losses, figures
from ..forecaster.models import HeldOut, Model, make_model
from ..forecaster.models.learned import Learned, TrainSettings
from ..forecaster.targets import LONGEST_S
from ..forecaster.telemetry import Telemetry
from ..forecaster.weights import save_model
from .output import write_json

Progress = Callable[[int, int, int, float], None]
"""Called with the seed, the pass, how many there may be, and the best validation so far."""


def train(
    name: str,
    series: Sequence[Telemetry],
    seeds: Sequence[int],
    settings: TrainSettings,
    out: Path,
    progress: Progress,
    held_out: HeldOut | None = None,
) -> dict[str, Any]:
    """Fits a model once per seed and writes the best as ``NAME.safetensors`` and its card as ``NAME.json``.

    A run that was stopped goes on where it was, from ``NAME-SEED.checkpoint`` files in the folder.

    Args:
        name: Name of the model.
        series: What to fit, validate and calibrate on, each series in order of time.
        seeds: Seeds.
        settings: How networks are trained.
        out: Folder; made if missing.
        progress: Told how far it is.
        held_out: Series to validate and to calibrate on, if not on parts of the others.

    Returns:
        The card: data, split, settings, seeds and figures, as plain values.
    """
    parts = _parts(series, held_out)
    out.mkdir(parents=True, exist_ok=True)
    fitted: list[tuple[float, int, Model]] = []
    for seed in seeds:
        model = make_model(name)
        if isinstance(model, Learned):
            model.settings = settings
            model.checkpoint = out / f"{name}-{seed}.checkpoint"
            model.progress = lambda done, of, best, seed=seed: progress(seed, done, of, best)
        model.fit(series, np.random.default_rng(seed), held_out)
        loss_w = float(figures(_losses(model, parts["validation"]))["pinball_w"].mean())
        fitted.append((loss_w, seed, model))
    _, seed, best = min(fitted, key=lambda row: row[:2])
    card = {
        "model": name,
        "seed": seed,
        "seeds": {str(s): {"validation_pinball_w": loss} for loss, s, _ in fitted},
        "covariates": list(best.covariates),
        "data": [
            {
                "source": Path(t.source).name,
                "seconds": len(t),
                "channels": len(t.channels),
                "gaps": int((~t.known).sum()),
            }
            for t in series
        ],
        "split": {"fit": SHARES[0], "validation": SHARES[1], "calibration": 1 - sum(SHARES), "gap_s": LONGEST_S}
        if held_out is None
        else {"fit": len(series), "validation": len(held_out.validation), "calibration": len(held_out.calibration)},
        "settings": vars(settings) if isinstance(best, Learned) else {},
        "figures": {part: _figures(best, stretches) for part, stretches in parts.items()},
    }
    save_model(best, out / f"{name}.safetensors", card)
    write_json(card, str(out / f"{name}.json"))
    return card


Stretch = tuple[Telemetry, int, int]
"""A series with the first second that is judged, and the one after the last."""


def _parts(series: Sequence[Telemetry], held_out: HeldOut | None) -> dict[str, list[Stretch]]:
    """What is fitted, chosen and calibrated on."""
    if held_out is not None:
        sets = {"fit": series, "validation": held_out.validation, "calibration": held_out.calibration}
        return {part: [(t, LONGEST_S, len(t)) for t in those] for part, those in sets.items()}
    found: dict[str, list[Stretch]] = {}
    for part, which in {"fit": FIT, "validation": VALIDATION, "calibration": CALIBRATION}.items():
        own = [(t, np.flatnonzero(parts_of(len(t)) == which)) for t in series]
        found[part] = [(t, int(seconds[0]), int(seconds[-1]) + 1) for t, seconds in own if len(seconds)]
    return found


def _losses(model: Model, stretches: Sequence[Stretch]) -> Losses:
    return Losses.joined([model.backtest(telemetry, first, last) for telemetry, first, last in stretches])


def _figures(model: Model, stretches: Sequence[Stretch]) -> dict[str, dict[str, float]]:
    values = figures(_losses(model, stretches))
    return {target: {name: float(row[k]) for name, row in values.items()} for k, target in enumerate(TARGETS)}
