"""Which configuration each slot gets: the best tokens per joule that meet the throughput target, within the budgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .table import PowerTable

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

STRAIGHT = 1e-6
NEARLY = 1.25
"""Where no configuration keeps the time per token, those count that come this near to the least there is."""


@dataclass(frozen=True, eq=False)
class Ladder:
    """Configurations of one slot that are worth having, each step with more tokens for more watts.

    They are the corners of the upper hull of throughput over power: between two of them lies nothing that a mix of
    slots on the one and on the other would not do as well.

    Attributes:
        cap_w: Power limit of each step, watts (K,).
        batch: Limit of requests in flight (K,).
        tokens_per_s: Predicted throughput T(c), ascending (K,).
        power_w: Predicted power P(c), ascending, watts (K,).
        peak_w: Power to hold a budget with, watts (K,).
        best: Step of the most tokens per joule.
    """

    cap_w: F64
    batch: I64
    tokens_per_s: F64
    power_w: F64
    peak_w: F64
    best: int

    @classmethod
    def of(cls, table: PowerTable, tpot_s: float) -> Ladder:
        """The ladder of a table, of configurations that keep ``tpot_s`` seconds per output token."""
        c, b = np.nonzero(table.tpot_s <= max(tpot_s, NEARLY * float(table.tpot_s.min())))
        tokens, power = table.tokens_per_s[c, b], table.power_w[c, b]
        steps = _upper_hull(power, tokens)
        c, b, tokens, power = c[steps], b[steps], tokens[steps], power[steps]
        best = int((tokens / power).argmax())
        return cls(table.cap_w[c], table.batch[b], tokens, power, table.peak_w[c, b], best)


def _upper_hull(x: F64, y: F64) -> I64:
    """Corners of the upper hull from the least ``x`` to the greatest ``y``, by ascending ``x``."""
    hull: list[int] = []
    for i in np.lexsort((-y, x)):
        if hull and y[i] <= y[hull[-1]]:
            continue
        while len(hull) > 1:
            a, b = hull[-2], hull[-1]
            # What lies on the line between two others stays: it is a finer step.
            if (y[b] - y[a]) * (x[i] - x[b]) >= (y[i] - y[b]) * (x[b] - x[a]) * (1 - STRAIGHT):
                break
            hull.pop()
        hull.append(int(i))
    return np.array(hull, np.int64)


@dataclass(frozen=True, eq=False)
class Limit:
    """A power limit that some slots share.

    Attributes:
        slots: Whether it is one of them (R,).
        watts: What they may draw together.
    """

    slots: NDArray[np.bool_]
    watts: float


def allocate(
    ladders: Sequence[Ladder | None],
    model: I64,
    target_tokens_per_s: F64,
    endless: NDArray[np.bool_],
    limits: Sequence[Limit],
    scale: float,
) -> I64:
    """Step of each slot on its ladder: algorithm 1 of the paper for several slots that share budgets.

    For one slot it is the paper's rule: of the configurations that reach the target the one with the most tokens per
    joule, and where none does, the one with the most tokens. Where requests always wait, that is T(c) / P(c). Where
    they do not, the tokens served are those that are asked for, whatever the configuration, and it is the one with the
    least power. Several slots climb together, always the one whose next step brings the most tokens for a watt: while
    its model lacks throughput, with requests without end at least to its most efficient step, and never over a limit.

    Args:
        ladders: Ladder of each slot (R,); None for those that do not serve.
        model: Model of each slot (R,).
        target_tokens_per_s: Throughput that each model needs (M,).
        endless: Whether requests of each model always wait (M,).
        limits: Power limits.
        scale: Measured power over that of the tables.

    Returns:
        Steps (R,), 0 where there is no ladder.
    """
    step = np.zeros(len(ladders), np.int64)
    reached, room_w = np.zeros(len(target_tokens_per_s)), np.array([limit.watts for limit in limits], np.float64)
    climbs: list[tuple[float, int, int]] = []
    for r, ladder in enumerate(ladders):
        if ladder is None:
            continue
        reached[model[r]] += ladder.tokens_per_s[0]
        room_w -= _share(limits, r) * ladder.peak_w[0] * scale
        slopes = np.diff(ladder.tokens_per_s) / np.diff(ladder.power_w)
        climbs += [(-slope, r, k) for k, slope in enumerate(slopes.tolist(), 1)]
    for _, r, k in sorted(climbs):
        ladder, m = ladders[r], model[r]
        assert ladder is not None
        enough = reached[m] >= target_tokens_per_s[m] and not (endless[m] and k <= ladder.best)
        if step[r] != k - 1 or enough:
            continue
        more_w = _share(limits, r) * (ladder.peak_w[k] - ladder.peak_w[k - 1]) * scale
        if ((more_w > 0) & (more_w > room_w)).any():
            continue
        step[r] = k
        reached[m] += ladder.tokens_per_s[k] - ladder.tokens_per_s[k - 1]
        room_w -= more_w
    return step


def _share(limits: Sequence[Limit], r: int) -> F64:
    """1 for each limit that slot ``r`` is under, else 0."""
    return np.array([float(limit.slots[r]) for limit in limits])
