"""What error to expect of a model on a GPU, by what backs its figures: medians over the ML.ENERGY runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from ...simulator.catalog import Catalog, GpuSpec, ModelSpec
from ...simulator.confidence import LEVELS, Level
from ...simulator.files import whole
from .errors import Comparison
from .source import Advance, Row, Source, unheard
from .split import HELD_OUT

QUANTITIES = ("itl", "power")
HEADER = """\
# Median absolute relative errors by what backs the figures; see confidence.py.
# Written by `python -m llmcluster.experiments.write_fidelity`; do not edit by hand.

"""


def expected_errors(
    source: Source, rows: Sequence[Row], compared: Comparison, left_out: Comparison, seed: int, advance: Advance
) -> dict[Level, dict[str, Any]]:
    """Errors of every level of confidence.

    * ``fitted``: held-out rows of what has factors of its own.
    * ``shared``: every model, predicted from the others.
    * ``carried_over``: every GPU with the fitted figures of another one of these runs, watts scaled by TDP.
    * ``guessed``: every model with dimensions guessed from its size, and the figures of its GPU.

    Args:
        source: The runs.
        rows: All of them.
        compared: They as the catalogue is.
        left_out: They without their models.
        seed: Seed of the simulation.
        advance: Is told how many of the two last are simulated.
    """
    catalog = replace(Catalog.builtin(), scales={})
    swapped = replace(catalog, gpus=_swapped(catalog, sorted({row.groups["gpu"] for row in rows})))
    guessed = replace(catalog, models=_guessed(catalog, sorted({row.groups["model"] for row in rows})))
    others = []
    for done, figures in enumerate((swapped, guessed), 1):
        others.append(Comparison.of(rows, source.simulate(rows, figures, seed, unheard), QUANTITIES))
        advance(done)
    kinds = (compared.where(part=HELD_OUT, calibrated="yes"), left_out, *others)
    return {level: _medians(comparison) for level, comparison in zip(LEVELS, kinds, strict=True)}


def write_expected_errors(errors: Mapping[Level, Mapping[str, Any]], path: Path) -> None:
    """Writes them where ``confidence.py`` reads them."""
    with whole(path) as partial:
        partial.write_text(
            HEADER + tomli_w.dumps({level: dict(one) for level, one in errors.items()}), encoding="utf-8"
        )


def _medians(comparison: Comparison) -> dict[str, Any]:
    errors = {name: np.abs(comparison.error[name]) for name in QUANTITIES}
    medians = {name: round(float(np.nanmedian(values)), 3) for name, values in errors.items()}
    compared = np.flatnonzero(np.isfinite(errors["itl"])).tolist()
    gpus = sorted({comparison.rows[i].groups["gpu"] for i in compared})
    return medians | {"rows": len(compared), "gpus": gpus}


def _swapped(catalog: Catalog, names: Sequence[str]) -> dict[str, GpuSpec]:
    """Every measured GPU with the fitted figures of the next one."""
    gpus = dict(catalog.gpus)
    for name, other in zip(names, [*names[1:], names[0]], strict=True):
        card, donor = catalog.gpu(name), catalog.gpu(other)
        watts = card.cap_max_w / donor.cap_max_w
        fields = ("off_w", "idle_w", "resident_w", "active_w", "compute_w", "memory_w", "cache_w", "link_w")
        power = donor.power.model_copy(update={field: getattr(donor.power, field) * watts for field in fields})
        gpus[name] = card.model_copy(update={"timing": donor.timing, "power": power})
    return gpus


def _guessed(catalog: Catalog, names: Sequence[str]) -> dict[str, ModelSpec]:
    """Every measured model as if only its size were known."""
    models = dict(catalog.models)
    for name in names:
        if name in models:
            one = models[name]
            per_weight = one.weight_bytes / one.parameters
            generic = ModelSpec.generic(name, one.parameters, one.active_parameters, min(per_weight, 2))
            models[name] = generic.model_copy(update={"aliases": one.aliases})
    return models
