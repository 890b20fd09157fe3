"""How well a model is predicted that was never measured: each in turn, from figures fitted to the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol, runtime_checkable

import numpy as np

from ...simulator.catalog import Catalog
from ...simulator.errors import InputError
from .errors import Comparison
from .figures import with_file, write_toml
from .skipped import Skipped
from .source import Advance, Calibrated, Outcome, Row, unheard
from .split import FIT, part

ALONE = Skipped("no fit row of another model is on the row's GPU", "Give rows of more models on it")


def leave_one_model_out(
    source: Calibrated, rows: Sequence[Row], catalog: Catalog, seed: int, rng: np.random.Generator, advance: Advance
) -> Comparison:
    """Predicts the rows of each model from figures fitted to the fit part of the other models.

    Factors that the catalogue has for the model itself are laid aside, so that nothing of it is known. A GPU that the
    others were not measured on has nothing fitted to it: rows on it count as skipped.

    Args:
        source: Where the rows come from; they need the group ``model``.
        rows: All of them.
        catalog: GPUs and models with their figures so far.
        seed: Seed of the simulation.
        rng: Source of whatever the fits draw.
        advance: Is told how many models are done.

    Returns:
        All rows, each predicted without its model; none of them where all fitted figures are each model's own.

    Raises:
        InputError: The rows have no models, or only one.
    """
    models = sorted({row.groups["model"] for row in rows if "model" in row.groups})
    if len(models) < 2:
        problem = f"leaving one model out needs two of them at least, not {len(models)}"
        raise InputError(source.name, problem, "Give rows of more models")
    predicted: dict[str, Outcome] = {}
    quick = source.without_intervals() if isinstance(source, Unsure) else source
    for done, model in enumerate(models, 1):
        own = [row for row in rows if row.groups.get("model") == model]
        others = [row for row in rows if row.groups.get("model") != model and part(row.configuration) == FIT]
        gpus = {row.groups.get("gpu") for row in others}
        known = [row for row in own if row.groups.get("gpu") in gpus]
        if known:
            ignorant = without_scales(catalog, model)
            fitted = quick.fit(others, ignorant, rng, unheard)
            with TemporaryDirectory() as folder:
                path = Path(folder) / "others.toml"
                write_toml(fitted.tables, [], path, source, ignorant)
                using, figures = with_file(source, ignorant, path)
            outcomes = using.simulate(known, figures, seed, unheard)
            predicted |= {row.place: one for row, one in zip(known, outcomes, strict=True)}
        advance(done)
    chosen = [row for row in rows if "model" in row.groups]
    return Comparison.of(chosen, [predicted.get(row.place, ALONE) for row in chosen], source.quantities)


@runtime_checkable
class Unsure(Protocol):
    """A source whose fits are quicker without intervals, which nobody looks at here."""

    def without_intervals(self) -> Calibrated:
        """The same without them."""
        ...


def without_scales(catalog: Catalog, model: str) -> Catalog:
    """The catalogue without the factors of one model."""
    return replace(catalog, scales={cut: one for cut, one in catalog.scales.items() if cut.model != model})
