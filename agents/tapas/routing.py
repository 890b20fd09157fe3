"""Routing: less for slots that would run hot or whose row is short of power, evenly for all others."""

from __future__ import annotations

import numpy as np

from .reading import F64, Mask

STEADY = 0.5
"""Share of the way that weights go in one tick: sessions stay where their cache is unless heat or power moves them."""
LEAST = 0.05
"""A slot with less of the load than this gets none."""


def weights(need_w: F64, room_w: F64, idle_w: F64, serving: Mask, last: F64) -> F64:
    """Routing weights (R,), the highest 1.

    The load, told by what all draw above idle, is levelled over the slots as water is: each gets the level, or what its
    room allows if that is less. So a slot at risk gives up what is too much for it and no more, as the paper's router
    leaves servers out that would pass a limit and else keeps to the caches.

    Args:
        need_w: Power that each slot asks for, watts (R,).
        room_w: Power that it may draw, watts (R,).
        idle_w: What it draws without work, watts (R,).
        serving: Slots that take requests (R,).
        last: Weights of the last tick (R,).
    """
    room_w = np.where(serving, (room_w - idle_w).clip(min=0), 0.0)
    load_w = float((need_w - idle_w).clip(min=0)[serving].sum())
    shares = room_w if room_w.sum() <= load_w else np.minimum(room_w, level(room_w, load_w))
    if shares.max(initial=0.0) <= 0:
        return np.ones(len(need_w))
    wanted = np.where(serving, shares / shares.max(), 1.0)
    moved: F64 = last + STEADY * (wanted - last)
    moved /= moved.max()
    return np.where(moved < LEAST, 0.0, moved)


def level(room_w: F64, load_w: float) -> float:
    """The level at which slots of these rooms hold the load together; it must fit."""
    rooms = np.sort(room_w)
    left_w = load_w
    for i, room in enumerate(rooms):
        if left_w <= room * (len(rooms) - i):
            return left_w / (len(rooms) - i)
        left_w -= room
    return float(rooms[-1])
