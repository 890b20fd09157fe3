"""Power shared out: what is left to the slots that can be steered, under all limits that hold for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..base import Task
from ..static import ROUNDING
from .outlook import Outlook
from .reading import F64, Mask

CAPPED, ROUTED = 0.98, 0.95
"""Share of a limit that caps hold, for meters are read once a tick, and at which routing sets in before them."""
HALVINGS = 20
"""Of the range of watts, in the search for a level: to less than a milliwatt."""


@dataclass(frozen=True, eq=False)
class Domain:
    """Slots that share a limit.

    Attributes:
        members: Which of the steered slots do (R,).
        allowance_w: What they may draw together, watts.
    """

    members: Mask
    allowance_w: float


def domains(task: Task, outlook: Outlook, steered: Mask, share: float, *, air: bool) -> list[Domain]:
    """Servers, racks, rows and the site, less what is drawn by those not steered; limits that TDPs keep are left out.

    Args:
        task: What may be known beforehand.
        outlook: What lies ahead.
        steered: Slots that can be steered (R,).
        share: Share of each limit that may be used.
        air: Whether a row's planned airflow counts as a limit too.
    """
    row = np.array([slot.row for slot in task.blueprint.slots])
    limits_w = np.minimum(outlook.row_limit_w, outlook.row_air_w) if air else outlook.row_limit_w
    places = [(row == number, float(limit_w)) for number, limit_w in enumerate(limits_w)]
    found = []
    for inside, limit_w in [*outlook.inner, *places, (np.ones(len(row), bool), outlook.reading.budget_w)]:
        if limit_w < task.fleet.cap_max_w[inside].sum() * (1 - ROUNDING):
            others_w = float(outlook.need_w[inside & ~steered].sum())
            found.append(Domain(inside & steered, max(limit_w * share - others_w, 0.0)))
    return found


def shared(need_w: F64, low_w: F64, high_w: F64, allowance_w: float) -> F64:
    """Watts that each slot may draw, the same for all but for their ends, so that together they ask for the allowance.

    A slot that asks for less than the others keeps what it does not need for its bursts: they seldom come together.

    Args:
        need_w: What each asks for (n,).
        low_w: Least that each can be given (n,).
        high_w: Most that it can (n,).
        allowance_w: What they may draw together.
    """
    high_w = np.maximum(high_w, low_w)
    low, high = 0.0, float(high_w.max(initial=0.0))
    if np.minimum(need_w, high_w).sum() <= allowance_w:
        return high_w
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        fits = np.minimum(need_w, np.clip(middle, low_w, high_w)).sum() <= allowance_w
        low, high = (middle, high) if fits else (low, middle)
    return np.asarray(np.clip(low, low_w, high_w))


def within(need_w: F64, low_w: F64, high_w: F64, limits: Sequence[Domain]) -> F64:
    """Watts for each slot under all limits at once, inner ones first: those of rows, then that of the site (R,)."""
    given_w = high_w
    for domain in limits:
        inside = domain.members
        given_w = given_w.copy()
        given_w[inside] = shared(need_w[inside], low_w[inside], given_w[inside], domain.allowance_w)
    return given_w
