"""The power limits that one knows of, and caps dealt out under them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..envs.telemetry import LEAD_TIMES_S
from .base import Task, View
from .static import ROUNDING

SEEN_CUT = 0.95
"""A row counts as cut once no more than this share of its own limit is seen: head-room and power are read at different
seconds of the tick, so that their sum wavers by some percent."""


@dataclass(frozen=True, eq=False)
class Limit:
    """What some slots may draw together.

    Attributes:
        slots: The slots (R,).
        watts: What they may draw.
    """

    slots: NDArray[np.bool_]
    watts: float


def known_limits(task: Task, view: View, ahead_s: int) -> list[Limit]:
    """The lowest limits of the site and of its rows from now until ``ahead_s``, as far as they have been announced."""
    leads = [lead for lead in LEAD_TIMES_S if lead <= ahead_s]
    size, tdp_w = len(task.fleet), task.fleet.cap_max_w
    limits = [Limit(np.ones(size, bool), min(view.cluster(f"budget_in_{lead}s") for lead in leads))]
    shares = [row.power_limit_share for row in task.scenario.cluster.rows]
    if not any(shares):
        return limits
    row_of, power_w = np.array([slot.row for slot in task.blueprint.slots]), view.slot("power")
    headroom_w = np.min([view.slot(f"row_headroom_in_{lead}s") for lead in leads], axis=0)
    for row, share in enumerate(shares):
        slots = row_of == row
        if share is None or not slots.any():
            continue
        own_w = share * float(tdp_w[slots].sum())
        seen_w = float(headroom_w[slots][0] + power_w[slots].sum())
        limits.append(Limit(slots, own_w if seen_w > SEEN_CUT * own_w else seen_w))
    return limits


def lead_until_next(task: Task) -> int:
    """How far ahead one must look for a limit to hold until the next decision: the first lead not before it."""
    return min(lead for lead in LEAD_TIMES_S if lead >= task.scenario.tick_s)


def uncappable(task: Task, view: View) -> NDArray[np.bool_]:
    """Slots that nobody can command: those with tenants, and those that have failed (R,)."""
    tenants, faults = task.scenario.tenants is not None, bool(task.scenario.faults)
    foreign = np.zeros(len(task.fleet), bool)
    if tenants:
        foreign |= view.slot("is_tenant") > 0
    return foreign | (view.slot("is_failed") > 0) if faults else foreign


def unheld_w(view: View) -> NDArray[np.float64]:
    """What slots are seen to draw above their caps, watts (R,); 0 where the cap holds.

    Even the lowest clock reads memory at full speed, so that a low cap may not hold; a lower one then does no better.
    """
    power_w, cap_w = view.slot("power"), view.slot("cap")
    return np.where(power_w > cap_w * (1 + ROUNDING), power_w, 0.0)


def beside_w(task: Task, view: View, on: NDArray[np.bool_]) -> NDArray[np.float64]:
    """What the slots draw that are not ``on``, watts (R,): a tenant what it is seen to, the others next to nothing."""
    off_w = np.array([task.blueprint.deployments[d].power.off_w for d in task.blueprint.initial])
    return np.where(on, 0.0, np.where(uncappable(task, view), view.slot("power"), off_w))


def deal(
    task: Task,
    on: NDArray[np.bool_],
    want_w: NDArray[np.float64],
    least_w: NDArray[np.float64],
    beside_w: NDArray[np.float64],
    limits: Sequence[Limit],
    *,
    beyond: bool = True,
) -> NDArray[np.float64]:
    """Caps of levels that can be encoded, raised one by one where most is wanting, while all limits hold.

    Args:
        task: What may be known beforehand.
        on: Slots that may draw up to their cap (R,).
        want_w: What each is wished to have, watts (R,).
        least_w: What each of them draws whatever its cap, watts (R,).
        beside_w: What the others draw, watts (R,).
        limits: What may be drawn.
        beyond: Whether to deal out what is left once every wish is met.

    Returns:
        Caps, watts (R,); the lowest where even these exceed a limit, and of slots that are not on.
    """
    fleet, steps = task.fleet, task.codec.steps - 1
    step_w = (fleet.cap_max_w - fleet.cap_min_w) / steps
    level = np.zeros(len(fleet), np.int64)
    draws_w = np.where(on, np.maximum(fleet.cap_min_w, least_w), beside_w)
    room_w = np.array([limit.watts - float(draws_w[limit.slots].sum()) for limit in limits])
    under = np.array([limit.slots for limit in limits])
    slack_w = ROUNDING * float(fleet.cap_max_w.sum())
    is_open = on.copy()
    while is_open.any():
        wanting_w = np.where(is_open, want_w - fleet.cap_min_w - level * step_w, -np.inf)
        slot = int(wanting_w.argmax())
        if not beyond and wanting_w[slot] <= slack_w:
            break
        above = under[:, slot]
        more_w = max(fleet.cap_min_w[slot] + (level[slot] + 1) * step_w[slot], least_w[slot]) - draws_w[slot]
        if level[slot] == steps or (room_w[above] + slack_w < more_w).any():
            is_open[slot] = False
            continue
        level[slot] += 1
        draws_w[slot] += more_w
        room_w[above] -= more_w
    caps_w: NDArray[np.float64] = fleet.cap_min_w + level * step_w
    return caps_w
