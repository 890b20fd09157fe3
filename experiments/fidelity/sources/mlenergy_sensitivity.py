"""How much the simulated runs of the ML.ENERGY benchmark depend on what is assumed of their requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ....simulator.catalog import Catalog
from ....simulator.errors import InputError
from ..errors import simulated_of
from ..source import Advance, Row, Simulated, unheard
from .mlenergy import MlEnergy
from .mlenergy_tasks import TASKS

VARIANTS: Mapping[str, Mapping[str, float]] = {
    "prompts halved": {"prompt": 0.5},
    "prompts doubled": {"prompt": 2.0},
    "outputs spread half as widely": {"spread": 0.5},
    "outputs spread 1.5 times as widely": {"spread": 1.5},
}


def sensitivity(
    rows: Sequence[Row], catalog: Catalog, seed: int, advance: Advance
) -> dict[str, dict[str, tuple[float, float]]]:
    """What changes with the assumptions.

    Args:
        rows: What to simulate.
        catalog: GPUs and models.
        seed: As for ``simulate``.
        advance: Is told how many variants are done.

    Returns:
        By variant and quantity the median over the rows of the relative change, and that of its absolute value.

    Raises:
        InputError: No row can be simulated.
    """
    base = _simulated(MlEnergy(), rows, catalog, seed)
    if not any(base):
        raise InputError("sensitivity", "none of the rows can be simulated", "Give rows of models in the catalogue")
    table: dict[str, dict[str, tuple[float, float]]] = {}
    for name, factors in VARIANTS.items():
        tasks = {task: assumed.scaled(**factors) for task, assumed in TASKS.items()}
        other = _simulated(MlEnergy(tasks=tasks), rows, catalog, seed)
        table[name] = {}
        for quantity in MlEnergy.quantities:
            change = [b[quantity] / a[quantity] - 1 for a, b in zip(base, other, strict=True) if a and b]
            table[name][quantity] = (float(np.median(change)), float(np.median(np.abs(change))))
        advance(len(table))
    return table


def _simulated(source: MlEnergy, rows: Sequence[Row], catalog: Catalog, seed: int) -> list[Simulated]:
    return [simulated_of(one) for one in source.simulate(rows, catalog, seed, unheard)]
