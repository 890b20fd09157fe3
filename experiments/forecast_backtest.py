"""Compares models of power on series they have not seen: errors, coverage, and skill over the best naive model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..forecaster.autocorrelation import autocorrelation
from ..forecaster.base import TARGETS
from ..forecaster.bootstrap import interval, resampled_sums
from ..forecaster.frames import Floats
from ..forecaster.losses import Losses, figures
from ..forecaster.models import MODELS, NAIVE, Model, make_model
from ..forecaster.models.learned import Learned, TrainSettings
from ..forecaster.targets import HORIZONS_S
from ..forecaster.telemetry import Telemetry
from ..forecaster.weights import load_model
from ..simulator.errors import InputError

WARM_UP_S = 60
"""Seconds of a test series that only serve as history."""
FOLDS = 4
FIRST_FOLD = 0.5
"""Share of a series that the first fold of a rolling backtest is trained on."""
BLOCK_S = 120
"""Block of the bootstrap: twice the longest horizon, over which errors overlap."""
RESAMPLES = 2000
LEVEL = 0.95
WEIGHTS = ".safetensors"
Tick = Callable[[], None]


@dataclass(frozen=True)
class Fold:
    """A stretch of a series that models are judged on.

    Attributes:
        train: What they are fitted on.
        test: The series; what is before ``first_s`` is history.
        first_s: First second that is judged.
        last_s: The second after the last one.
    """

    train: tuple[Telemetry, ...]
    test: Telemetry
    first_s: int
    last_s: int


def folds_of(train: Sequence[Telemetry], test: Sequence[Telemetry], folds: int = FOLDS) -> list[Fold]:
    """What to fit on and what to judge on.

    Args:
        train: Series to fit on, once for all; none for a rolling backtest within each test series, which is fitted anew
            on all that came before each of its folds.
        test: Series to judge on.
        folds: Folds of a rolling backtest.

    Returns:
        The folds, those with the same training next to one another.

    Raises:
        InputError: A series is there to train and to test on.
    """
    known = {telemetry.source for telemetry in train}
    for telemetry in test:
        if telemetry.source in known:
            raise InputError(
                telemetry.source, "is given to train and to test on", "Leave out --train to judge it on its own future"
            )
    if train:
        return [Fold(tuple(train), t, WARM_UP_S, len(t)) for t in test]
    found = []
    for telemetry in test:
        bounds = np.linspace(FIRST_FOLD, 1.0, folds + 1) * len(telemetry)
        for first, last in zip(bounds[:-1].astype(int), bounds[1:].astype(int), strict=True):
            found.append(Fold((telemetry.part(0, int(first)),), telemetry, int(first), int(last)))
    return found


def check_models(models: Sequence[str]) -> None:
    """Raises `InputError` for unknown models and files of weights that do not hold: before the work, not after it."""
    for name in models:
        if name not in MODELS and not name.endswith(WEIGHTS):
            raise InputError(f"--models {name}", "is unknown", f"Use some of {', '.join(MODELS)}, or a {WEIGHTS} file")
        if name not in MODELS:
            load_model(Path(name))


def backtest(
    folds: Sequence[Fold],
    models: Sequence[str],
    seed: int,
    tick: Tick = lambda: None,
    block_s: int = BLOCK_S,
    settings: TrainSettings | None = None,
) -> dict[str, Any]:
    """Judges models, and all naive ones beside them, on the same seconds.

    Args:
        folds: What to fit and to judge on.
        models: Names of the models to report; a file of weights is taken as it is, whatever there is to train on.
        seed: Seed of all that is drawn.
        tick: Called after each model and fold.
        block_s: Block of the bootstrap.
        settings: How networks are trained; as by default without.

    Returns:
        ``results`` by model and target, ``best_naive`` and its error by target, and what they were measured on;
        plain values.

    Raises:
        InputError: A model is unknown, or there is nothing to judge.
    """
    check_models(models)
    if not folds:
        raise InputError("--test", "no series to judge on", "Give at least one file")
    losses = {name: _losses(name, folds, seed, tick, settings) for name in dict.fromkeys([*NAIVE, *models])}
    if not next(iter(losses.values())).count.any():
        sources = ", ".join(dict.fromkeys(fold.test.source for fold in folds))
        raise InputError(sources, "no minute without a gap to judge forecasts on", "Give two minutes or more")
    return {**scored(losses, models, seed, block_s), "autocorrelation": _autocorrelations(folds)}


def scored(losses: Mapping[str, Losses], models: Sequence[str], seed: int, block_s: int = BLOCK_S) -> dict[str, Any]:
    """Figures of models with their intervals, out of the losses of the same seconds.

    Args:
        losses: By model, all naive ones among them; some forecasts are judged.
        models: Names of the models to report.
        seed: Seed of the bootstrap.
        block_s: Its block.

    Returns:
        What :func:`backtest` returns, but for autocorrelations.
    """
    judged = next(iter(losses.values())).count
    errors = {name: figures(loss) for name, loss in losses.items()}
    best, sharpest = (
        [min(NAIVE, key=lambda name: errors[name][figure][k]) for k in range(len(TARGETS))]
        for figure in ("mae_w", "pinball_w")
    )
    reference = np.stack(
        [losses[name].absolute[:, k] for k, name in enumerate(best)]
        + [losses[name].pinball[:, k] for k, name in enumerate(sharpest)],
        axis=1,
    )
    rng = np.random.default_rng(seed)
    rows = {name: _rows(losses[name], reference, errors[name], rng, block_s) for name in models}
    return {
        "results": rows,
        "best_naive": dict(zip(TARGETS, best, strict=True)),
        "best_naive_mae_w": {
            t: float(errors[name]["mae_w"][k]) for k, (t, name) in enumerate(zip(TARGETS, best, strict=True))
        },
        "seconds": int((judged > 0).sum()),
        "forecasts": int(judged.sum()),
        "seed": seed,
        "block_s": block_s,
        "level": LEVEL,
    }


def _losses(name: str, folds: Sequence[Fold], seed: int, tick: Tick, settings: TrainSettings | None) -> Losses:
    parts: list[Losses] = []
    for fold, model in fitted(name, folds, seed, settings):
        parts.append(model.backtest(fold.test, fold.first_s, fold.last_s))
        tick()
    return Losses.joined(parts)


def fitted(
    name: str, folds: Sequence[Fold], seed: int, settings: TrainSettings | None = None
) -> Iterator[tuple[Fold, Model]]:
    """Each fold with a model that is fitted for it: anew only where the training is another one than before."""
    model: Model | None = load_model(Path(name))[0] if name.endswith(WEIGHTS) else None
    fixed = model is not None
    for i, fold in enumerate(folds):
        if model is None or (not fixed and fold.train != folds[i - 1].train):
            model = make_model(name)
            if settings is not None and isinstance(model, Learned):
                model.settings = settings
            model.fit(fold.train, np.random.default_rng(seed))
        yield fold, model


def _rows(
    losses: Losses, reference: Floats, errors: Mapping[str, Floats], rng: np.random.Generator, block_s: int
) -> dict[str, dict[str, Any]]:
    """Figures with their intervals by target.

    The reference (T, 8) is the absolute error, then the pinball loss, of the naive model that has the least of it.
    """
    columns = (losses.count, losses.absolute, losses.squared, losses.pinball, losses.covered, reference)
    sums = resampled_sums(np.concatenate(columns, axis=1), block_s, RESAMPLES, rng)
    sums = sums[sums[:, 0] > 0]  # of a series full of gaps a resample may hold nothing else
    count, *resampled = np.split(sums, np.cumsum([column.shape[1] for column in columns])[:-1], axis=1)
    absolute, squared, pinball, covered, by_reference = (part / count for part in resampled)
    spread = {
        "mae_w": absolute,
        "rmse_w": np.sqrt(squared),
        "pinball_w": pinball,
        "coverage_80": covered,
        "skill": _skill(absolute, by_reference[:, : len(TARGETS)]),
        "pinball_skill": _skill(pinball, by_reference[:, len(TARGETS) :]),
    }
    by_median, by_quantiles = np.split(reference.sum(axis=0), 2)
    values = {
        **errors,
        "skill": _skill(losses.absolute.sum(axis=0), by_median),
        "pinball_skill": _skill(losses.pinball.sum(axis=0), by_quantiles),
    }
    bounds = {name: interval(found, LEVEL) for name, found in spread.items()}
    return {
        target: {
            **{name: _plain(values[name][k]) for name in spread},
            "intervals": {name: [_plain(low[k]), _plain(high[k])] for name, (low, high) in bounds.items()},
        }
        for k, target in enumerate(TARGETS)
    }


def _skill(error_w: Floats, reference_w: Floats) -> Floats:
    """Share of the reference's error that is saved; ``nan`` where the reference makes none."""
    some = reference_w > 0
    return np.where(some, 1 - error_w / np.where(some, reference_w, 1.0), np.nan)


def _plain(value: float) -> float | None:
    """``None`` for what is not a number, which JSON lacks."""
    return float(value) if np.isfinite(value) else None


def _autocorrelations(folds: Sequence[Fold]) -> dict[str, dict[str, float]]:
    """Autocorrelation of the judged stretch of each series at the horizons: what any forecast has to work with."""
    found = {}
    for fold in folds:
        first_s = min(f.first_s for f in folds if f.test is fold.test)
        power = fold.test.power_w[first_s:]
        if len(power) > max(HORIZONS_S):
            lags = autocorrelation(power, max(HORIZONS_S))
            found[fold.test.source] = {f"{h}s": float(lags[h]) for h in HORIZONS_S}
    return found
