"""Scores of models on series, of several seeds, measured piece by piece so that a run that was cut goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files import whole
from ..forecaster.base import TARGETS
from ..forecaster.frames import FIT, Floats, parts_of
from ..forecaster.losses import Losses
from ..forecaster.models import LEARNED, NAIVE
from ..forecaster.models.learned import TrainSettings
from .forecast_backtest import Fold, Tick, fitted, scored
from .forecast_hindsight import hindsight_mae_w

INTERVALS = ("mae_w", "skill", "pinball_skill")
"""Figures whose intervals are kept; those of the others are wide likewise."""
LOSSES = ("absolute", "squared", "pinball", "covered", "count")
FORECASTER = Path(__file__).parent.parent / "forecaster"
SOURCES = (".", "models", "networks")
"""Its folders that forecasts depend on; what readers make of a file is looked at as such."""


@dataclass(frozen=True, eq=False)
class Case:
    """Something to be judged: a column of the table.

    Attributes:
        title: Its name.
        folds: What to fit and to judge on.
        seeds: Seeds of the learned models; naive ones draw nothing.
    """

    title: str
    folds: list[Fold]
    seeds: tuple[int, ...]

    @property
    def pieces(self) -> list[tuple[str, int]]:
        """Models with their seeds."""
        return [(name, self.seeds[0]) for name in NAIVE] + [(name, seed) for name in LEARNED for seed in self.seeds]


@dataclass(frozen=True, eq=False)
class Piece:
    """What one model did in one case with one seed.

    Attributes:
        losses: Its losses on the judged seconds.
        own: Those on the part that its weights were fitted on.
        forecast: Its forecasts of the judged seconds, watts, (n, C, 4, 3), fold after fold.
    """

    losses: Losses
    own: Losses
    forecast: NDArray[np.float32]


def measured(case: Case, model: str, seed: int, settings: TrainSettings, folder: Path) -> Piece:
    """A piece as it lies in the folder, or else measured and put there.

    Args:
        case: What is judged.
        model: Name of the model.
        seed: Seed of its fit.
        settings: How networks are trained.
        folder: Where pieces are kept; one of other data, settings or sources is measured anew.
    """
    signature = _signature(case, model, seed, settings)
    path = folder / f"{signature}.npz"
    if path.exists():
        with np.load(path) as held:
            losses, own = (Losses(*(held[f"{part}_{name}"] for name in LOSSES)) for part in ("judged", "own"))
            return Piece(losses, own, held["forecast"])
    found = _measure(case, model, seed, settings)
    arrays = {f"judged_{name}": getattr(found.losses, name) for name in LOSSES}
    arrays |= {f"own_{name}": getattr(found.own, name) for name in LOSSES}
    folder.mkdir(parents=True, exist_ok=True)
    with whole(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays, forecast=found.forecast)
    return found


def _measure(case: Case, name: str, seed: int, settings: TrainSettings) -> Piece:
    judged, own, forecasts = [], [], []
    for fold, model in fitted(name, case.folds, seed, settings):
        judged.append(model.backtest(fold.test, fold.first_s, fold.last_s))
        for telemetry in fold.train:
            last_s = int((parts_of(len(telemetry)) == FIT).sum())
            own.append(model.backtest(telemetry, 0, last_s))
        forecasts.append(model.predict(fold.test)[fold.first_s : fold.last_s].astype(np.float32))
    return Piece(Losses.joined(judged), Losses.joined(own), np.concatenate(forecasts))


def _signature(case: Case, model: str, seed: int, settings: TrainSettings) -> str:
    """Digest of all that a piece depends on: data, settings, and the sources of the models."""
    digest = hashlib.sha256(json.dumps([model, seed, vars(settings)]).encode())
    for folder in SOURCES:
        for path in sorted((FORECASTER / folder).glob("*.py")):
            digest.update(path.read_bytes())
    for fold in case.folds:
        digest.update(json.dumps([fold.first_s, fold.last_s]).encode())
        for telemetry in (*fold.train, fold.test):
            digest.update(telemetry.power_w.tobytes() + telemetry.scale_w.tobytes())
            for name, values in sorted(telemetry.covariates.items()):
                digest.update(name.encode() + values.tobytes())
    return digest.hexdigest()[:24]


def scores_of(case: Case, settings: TrainSettings, folder: Path, tick: Tick = lambda: None) -> dict[str, Any]:
    """Figures of all models in a case.

    A learned model's figures are means over its seeds: what is to be expected of one.

    Args:
        case: What is judged.
        settings: How networks are trained.
        folder: Where pieces are kept.
        tick: Called after each piece.

    Returns:
        ``results`` by model and target as of :func:`backtest`, with ``skill_by_seed``, and ``own_skill``, that on
        the part that the weights were fitted on; ``hindsight``, see :func:`hindsight_mae_w`, as skill; plain values.
    """
    pieces: dict[str, list[Piece]] = {}
    for model, seed in case.pieces:
        pieces.setdefault(model, []).append(measured(case, model, seed, settings, folder))
        tick()
    losses = {model: _mean([piece.losses for piece in found]) for model, found in pieces.items()}
    result = scored(losses, list(pieces), case.seeds[0])
    own_w = {model: _mae_w(_mean([piece.own for piece in found])) for model, found in pieces.items()}
    best_own_w = np.min([own_w[name] for name in NAIVE], axis=0)
    reference_w = np.array([result["best_naive_mae_w"][target] for target in TARGETS])
    for model, rows in result["results"].items():
        by_seed = [_skill(_mae_w(piece.losses), reference_w) for piece in pieces[model]]
        own = _skill(own_w[model], best_own_w)
        for k, target in enumerate(TARGETS):
            kept = {name: rows[target]["intervals"][name] for name in INTERVALS}
            rows[target] |= {"intervals": kept, "own_skill": own[k], "skill_by_seed": [skill[k] for skill in by_seed]}
    hindsight = _skill(hindsight_mae_w(case.folds), reference_w)
    return {
        **result,
        "seeds": list(case.seeds),
        "folds": len(case.folds),
        "train": list(dict.fromkeys(Path(t.source).name for fold in case.folds for t in fold.train)),
        "test": Path(case.folds[0].test.source).name,
        "hindsight": dict(zip(TARGETS, hindsight, strict=True)),
    }


def _mean(parts: Sequence[Losses]) -> Losses:
    """Mean losses over seeds, second by second."""
    return Losses(*(np.mean([getattr(part, name) for part in parts], axis=0) for name in LOSSES))


def _mae_w(losses: Losses) -> Floats:
    return np.asarray(losses.absolute.sum(axis=0) / losses.count.sum())


def _skill(error_w: Floats, reference_w: Floats) -> list[float | None]:
    """Share of the reference's error that is saved; ``None`` where it makes none."""
    return [float(1 - e / r) if r > 0 else None for e, r in zip(error_w, reference_w, strict=True)]


def rounded(value: Any) -> Any:
    """The same with numbers of five digits, which is more than they are good for."""
    if isinstance(value, Mapping):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(inner) for inner in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
