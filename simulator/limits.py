"""Power limits of the site and of its rows: what holds, and what is known ahead."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .signals import PiecewiseLinear, constant
from .topology import ClusterSpec

F64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Cut:
    """A share of a limit that falls away for a while: demand response, or the loss of a power feed.

    Attributes:
        left: The share that is left, over time.
        known_s: From when on its course is known, seconds; never for a failure, of which one sees what is.
    """

    left: PiecewiseLinear
    known_s: float = math.inf


def outage(start_s: float, duration_s: float, share: float, ramp_s: float = 0.0) -> PiecewiseLinear:
    """What is left of 1 while ``share`` of it is lost from ``start_s`` on; it takes ``ramp_s`` to go, and to return."""
    low_s = start_s + ramp_s
    end_s = max(start_s + duration_s, low_s)
    return PiecewiseLinear(
        np.array([start_s, low_s, end_s, end_s + ramp_s]), np.array([1.0, 1.0 - share, 1.0 - share, 1.0])
    )


@dataclass(frozen=True, eq=False)
class PowerLimit:
    """A limit on power.

    Attributes:
        planned_w: The limit as it is planned and published, watts.
        cuts: What comes on top.
    """

    planned_w: PiecewiseLinear
    cuts: tuple[Cut, ...] = ()

    def at(self, time_s: ArrayLike) -> F64:
        """The limit at each of ``time_s``, watts."""
        limit_w = self.planned_w.at(time_s)
        for cut in self.cuts:
            limit_w = limit_w * cut.left.at(time_s)
        return limit_w

    def foreseen(self, now_s: float, ahead_s: ArrayLike) -> F64:
        """The limit ``ahead_s`` seconds from now as one knows it now, watts.

        A cut that has not been announced counts for nothing before it begins, and is taken to last while it does.
        """
        time_s = now_s + np.asarray(ahead_s, np.float64)
        limit_w = self.planned_w.at(time_s)
        for cut in self.cuts:
            limit_w = limit_w * cut.left.at(time_s if cut.known_s <= now_s else np.minimum(time_s, now_s))
        return limit_w


class RowLimits:
    """Limits of those rows that have one.

    Args:
        limits: Limit of each row, or None.
        row: Row of each slot, int64 (R,).
        tdp_w: Highest power of each slot, watts (R,).
    """

    def __init__(self, limits: Sequence[PowerLimit | None], row: NDArray[np.int64], tdp_w: F64) -> None:
        self.rows = tuple(i for i, limit in enumerate(limits) if limit is not None)
        self._limits = [limit for limit in limits if limit is not None]
        self._row = row
        self._of_slot = np.arange(len(limits))[:, None] == row
        self._tdp_w = self._of_slot @ tdp_w

    def over_w(self, power_w: F64, seconds: NDArray[np.int64]) -> F64:
        """By how much each limited row exceeds its limit.

        Args:
            power_w: Power of each slot in each second, watts (n, R).
            seconds: The seconds (n,).

        Returns:
            Watts (n, limited rows).
        """
        over_w = np.empty((len(power_w), len(self.rows)))
        for i, (row, limit) in enumerate(zip(self.rows, self._limits, strict=True)):
            over_w[:, i] = power_w[:, self._row == row].sum(axis=1) - limit.at(seconds)
        return over_w.clip(min=0)

    def headroom_w(self, power_w: F64, now_s: float, ahead_s: Sequence[float]) -> F64:
        """What the row of each slot may draw more than it does now, watts (len(ahead_s), R).

        Args:
            power_w: Power of each slot now, watts (R,).
            now_s: Time, seconds.
            ahead_s: For how far ahead, by what is known now.

        Returns:
            Watts, negative above the limit; a row without a limit has its TDP.
        """
        limit_w = np.repeat(self._tdp_w[None], len(ahead_s), axis=0)
        for row, limit in zip(self.rows, self._limits, strict=True):
            limit_w[:, row] = limit.foreseen(now_s, ahead_s)
        headroom_w: F64 = (limit_w - self._of_slot @ power_w)[:, self._row]
        return headroom_w


@dataclass(frozen=True)
class Feeds:
    """Power limits over time, where there are any.

    Attributes:
        rows: Of each row.
        breakers: Rating of each row's breaker.
        site: Of the site.
    """

    rows: tuple[PowerLimit | None, ...]
    breakers: tuple[PowerLimit | None, ...]
    site: PowerLimit | None = None

    @classmethod
    def of(cls, spec: ClusterSpec, of_slot: NDArray[np.bool_], tdp_w: F64) -> Feeds:
        """Those of a specification, whatever the world brings.

        Args:
            spec: The cluster.
            of_slot: Whether each slot stands in each row, (rows, R).
            tdp_w: Highest power of each slot, watts (R,).
        """

        def limit(share: float | None, tdp_w: float) -> PowerLimit | None:
            return None if share is None else PowerLimit(constant(share * tdp_w))

        each = list(zip(spec.rows, (of_slot @ tdp_w).tolist(), strict=True))
        return cls(
            rows=tuple(limit(row.power_limit_share, tdp_w) for row, tdp_w in each),
            breakers=tuple(limit(row.breaker.rating_share if row.breaker else None, tdp_w) for row, tdp_w in each),
        )
