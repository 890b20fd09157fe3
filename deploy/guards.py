"""What stands between an agent's caps and the GPUs: bounds, rate, budget, and no needless writes. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
Mask = NDArray[np.bool_]

CLAMPED, RATED, BUDGETED, SPARED = "clamped", "rate", "budget", "spared"


@dataclass(frozen=True, eq=False)
class Bounds:
    """What a site allows of the caps of R slots, watts (R,).

    Attributes:
        floor_w: Lowest cap.
        ceiling_w: Highest cap.
        max_rise_w: A cap rises by this much a decision at most.
        max_fall_w: It falls by this much at most, unless the budget wants more.
        hysteresis_w: Smaller changes are not written.
        min_interval_s: Time between two writes; the budget does not wait.
    """

    floor_w: F64
    ceiling_w: F64
    max_rise_w: F64
    max_fall_w: F64
    hysteresis_w: F64
    min_interval_s: float


@dataclass(frozen=True, eq=False)
class Caps:
    """Caps that may be written.

    Attributes:
        watts: The cap of each slot from now on (R,).
        write: Whether it is to be written (R,); the others stay as they are.
        reasons: What was changed of the wish.
    """

    watts: F64
    write: Mask
    reasons: tuple[str, ...]


def guard(
    wish_w: F64, in_force_w: F64, on: Mask, beside_w: float, budget_w: float, since_s: F64, bounds: Bounds
) -> Caps:
    """The caps nearest to a wish that hold all bounds.

    Args:
        wish_w: Caps as the agent wishes them, watts (R,).
        in_force_w: Caps in force (R,).
        on: Slots that may draw up to their cap until the next decision (R,).
        beside_w: What the other slots draw, watts.
        budget_w: What all may draw together until the next decision.
        since_s: Time since each cap was last written, seconds (R,).
        bounds: What the site allows.
    """
    reasons = []
    clamped_w = clamp(np.where(np.isfinite(wish_w), wish_w, in_force_w), bounds.floor_w, bounds.ceiling_w)
    rated_w = clamp(clamped_w, in_force_w - bounds.max_fall_w, in_force_w + bounds.max_rise_w)
    # What was in force may itself be out of bounds, as GPUs are found at the start.
    rated_w = clamp(rated_w, bounds.floor_w, bounds.ceiling_w)
    change_w = np.abs(rated_w - in_force_w)
    out_of_bounds = (in_force_w < bounds.floor_w) | (in_force_w > bounds.ceiling_w)
    quiet = ((change_w < bounds.hysteresis_w) | (since_s < bounds.min_interval_s)) & ~out_of_bounds
    kept_w = np.where(quiet, in_force_w, rated_w)
    held_w = under_budget(kept_w, on, beside_w, budget_w, bounds.floor_w)
    for reason, before, after in (
        (CLAMPED, wish_w, clamped_w),
        (RATED, clamped_w, rated_w),
        (SPARED, rated_w, kept_w),
        (BUDGETED, kept_w, held_w),
    ):
        if (before != after).any():
            reasons.append(reason)
    return Caps(held_w, held_w != in_force_w, tuple(reasons))


def clamp(watts: F64, low_w: F64, high_w: F64) -> F64:
    """Watts between two bounds; where they cross, the lower one counts, which is the safer."""
    return np.minimum(np.maximum(watts, low_w), high_w)


def under_budget(caps_w: F64, on: Mask, beside_w: float, budget_w: float, floor_w: F64) -> F64:
    """Caps lowered, each by the same share of what is above its floor, until they fit a budget.

    Where not even the floors fit, it is the floors: no cap can do more.

    Args:
        caps_w: Caps, watts (R,).
        on: Slots that may draw up to their cap (R,); the caps of others stay.
        beside_w: What the others draw, watts.
        budget_w: What all may draw together.
        floor_w: Lowest caps (R,).
    """
    above_w = np.where(on, np.maximum(caps_w - floor_w, 0.0), 0.0)
    over_w = float(caps_w[on].sum()) + beside_w - budget_w
    if over_w <= 0 or not above_w.any():
        return caps_w
    return caps_w - above_w * min(over_w / float(above_w.sum()), 1.0)


def in_safe_order(slots: Sequence[int], watts: F64, in_force_w: F64) -> list[int]:
    """Slots in the order in which caps are written: those that fall first, so that the sum never peaks in between."""
    return sorted(slots, key=lambda slot: float(watts[slot] - in_force_w[slot]))
