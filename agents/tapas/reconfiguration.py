"""Reconfiguration: what slots are set to where routing alone does not keep the limits, least harmful first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..base import Task
from .allowance import Domain, within
from .reading import F64, Mask


def caps(task: Task, need_w: F64, thermal_w: F64, limits: Sequence[Domain], steered: Mask) -> F64:
    """Power caps, watts (R,), on the levels of the action.

    A slot is capped where its die would pass its limit, or where a row or the site would: then the caps themselves hold
    the limit. Else it is left alone, for a cap that never binds is no use, and one that does takes the clock away.

    Args:
        task: What may be known beforehand.
        need_w: Power that each slot asks for, watts (R,).
        thermal_w: Power at which its die stays below its limit, watts (R,).
        limits: Limits of rows and site.
        steered: Slots that can be capped (R,).
    """
    low_w, high_w = task.fleet.cap_min_w, task.fleet.cap_max_w
    ceiling_w = np.where(need_w > thermal_w, np.clip(thermal_w, low_w, high_w), high_w)
    wanted_w = within(need_w, low_w, ceiling_w, limits)
    return np.where(steered, floored(task, wanted_w, need_w, ceiling_w, limits), high_w)


def floored(task: Task, wanted_w: F64, need_w: F64, ceiling_w: F64, limits: Sequence[Domain]) -> F64:
    """The levels below, and then one more for those who need it most, as far as the limits allow."""
    low_w, step_w = task.fleet.cap_min_w, (task.fleet.cap_max_w - task.fleet.cap_min_w) / (task.codec.steps - 1)
    caps_w = low_w + np.floor((wanted_w - low_w) / step_w + 1e-6) * step_w
    for slot in np.argsort(caps_w - need_w, kind="stable"):
        raised_w = caps_w.copy()
        raised_w[slot] += step_w[slot]
        fits = all(np.minimum(raised_w, need_w)[d.members].sum() <= d.allowance_w for d in limits if d.members[slot])
        if raised_w[slot] <= ceiling_w[slot] + 1e-6 and fits:
            caps_w = raised_w
    return caps_w
