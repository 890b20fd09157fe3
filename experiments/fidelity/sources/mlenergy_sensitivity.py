"""How much the simulated runs of the ML.ENERGY benchmark depend on what is assumed of their requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ....simulator.catalog import Catalog
from ....simulator.errors import InputError
from ..errors import simulated_of
from ..source import Advance, Row, Simulated, unheard
from .mlenergy import MlEnergy
from .mlenergy_tasks import TASKS, requests_sent, task_named

VARIANTS: Mapping[str, Mapping[str, float]] = {
    "prompts halved": {"prompt": 0.5},
    "prompts doubled": {"prompt": 2.0},
    "outputs spread half as widely": {"spread": 0.5},
    "outputs spread 1.5 times as widely": {"spread": 1.5},
}
ONCE = "requests sent once"

Change = tuple[float, float]
"""Median over the rows of the relative change, and that of its absolute value."""


def sensitivity(rows: Sequence[Row], catalog: Catalog, seed: int, advance: Advance) -> dict[str, dict[str, Change]]:
    """What changes with the assumed lengths.

    Args:
        rows: What to simulate.
        catalog: GPUs and models.
        seed: As for ``simulate``.
        advance: Is told how many variants are done.

    Returns:
        Changes by variant and quantity.

    Raises:
        InputError: No row can be simulated.
    """
    base = _simulated(MlEnergy(), rows, catalog, seed)
    if not any(base):
        raise InputError("sensitivity", "none of the rows can be simulated", "Give rows of models in the catalogue")
    table: dict[str, dict[str, Change]] = {}
    for name, factors in VARIANTS.items():
        tasks = {task: assumed.scaled(**factors) for task, assumed in TASKS.items()}
        table[name] = _changes(base, _simulated(MlEnergy(tasks=tasks), rows, catalog, seed))
        advance(len(table))
    return table


def sent_once(rows: Sequence[Row], catalog: Catalog, seed: int) -> dict[str, Change]:
    """What would change if requests that are taken to be sent several times were sent once.

    Args:
        rows: What to simulate; passed over are those that send them once anyway, and those whose batch would not fill.
        catalog: GPUs and models.
        seed: As for ``simulate``.

    Returns:
        Changes by quantity.

    Raises:
        InputError: There is no such row.
    """
    again = [row for row in rows if _repeats(row)]
    base, other = (_simulated(MlEnergy(once=once), again, catalog, seed) for once in (False, True))
    if not any(other):
        raise InputError("sensitivity", "no row sends requests again", "Give rows of larger batches")
    return _changes(base, other)


def _repeats(row: Row) -> bool:
    mean = row.given["avg_output_len"]
    task = task_named(row.given["task"], mean)
    return requests_sent(task, mean, row.given["max_num_seqs"]) > task.requests


def _changes(base: Sequence[Simulated], other: Sequence[Simulated]) -> dict[str, Change]:
    found = {}
    for quantity in MlEnergy.quantities:
        change = [b[quantity] / a[quantity] - 1 for a, b in zip(base, other, strict=True) if a and b]
        found[quantity] = (float(np.median(change)), float(np.median(np.abs(change))))
    return found


def _simulated(source: MlEnergy, rows: Sequence[Row], catalog: Catalog, seed: int) -> list[Simulated]:
    return [simulated_of(one) for one in source.simulate(rows, catalog, seed, unheard)]
