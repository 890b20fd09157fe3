"""What a slot does at a power cap and a number of requests in flight: tokens, watts, time per token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from ...simulator.errors import InputError

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

PEAK = 0.95
"""Quantile of the power of single seconds that a budget is held with."""


@dataclass(frozen=True, eq=False)
class PowerTable:
    """Steady states of one model on one kind of slot, by cap (rows, C) and requests in flight (columns, B).

    The paper fits a random forest to such points and asks it for configurations between them (section 3.2). With two
    dimensions, in which both throughput and power rise, interpolation does: linear in the cap and in the logarithm of
    the batch.

    Attributes:
        cap_w: Power limits, ascending, watts (C,).
        batch: Requests in flight, ascending (B,).
        tokens_per_s: Output tokens (C, B); a higher cap never gives fewer.
        power_w: Mean power, watts (C, B); a higher cap never draws less.
        peak_w: Power that one second in twenty exceeds, watts (C, B).
        tpot_s: Mean time per output token of a request, what it waits for other prompts included, seconds (C, B).
    """

    cap_w: F64
    batch: I64
    tokens_per_s: F64
    power_w: F64
    peak_w: F64
    tpot_s: F64

    @classmethod
    def of_seconds(cls, rows: Seconds, cap_w: F64, batch: I64) -> PowerTable:
        """The means of recorded seconds, each counted to the nearest cap and, by its logarithm, the nearest batch.

        Where a batch was never seen at a cap, the two next to it that were are interpolated, or the outermost holds.

        Args:
            rows: The seconds.
            cap_w: Power limits of the table, ascending, watts (C,).
            batch: Requests in flight of the table, ascending (B,).

        Raises:
            InputError: There is no second of a cap with requests in the batch.
        """
        busy = (rows.in_flight > 0) & (rows.tokens > 0)
        rows = rows.taken(busy)
        at_cap = np.abs(rows.cap_w[:, None] - cap_w).argmin(axis=1) if len(rows.cap_w) else np.zeros(0, np.int64)
        steps = np.log2(batch)
        at_batch = np.abs(np.log2(np.maximum(rows.in_flight, 1))[:, None] - steps).argmin(axis=1)
        shape = (len(cap_w), len(batch))
        tokens, power, peak, tpot = (np.full(shape, np.nan) for _ in range(4))
        for c, b in np.unique(np.column_stack([at_cap, at_batch]), axis=0):
            here = rows.taken((at_cap == c) & (at_batch == b))
            tokens[c, b], power[c, b] = here.tokens.mean(), here.power_w.mean()
            peak[c, b] = np.quantile(here.power_w, PEAK)
            tpot[c, b] = here.running.sum() / here.tokens.sum()
        for c, watts in enumerate(cap_w):
            seen = ~np.isnan(tokens[c])
            if not seen.any():
                problem = f"no second with requests at {watts:.0f} W was recorded"
                raise InputError("table of power and performance", problem, "Record a run at that cap, or leave it out")
            for column in (tokens, power, peak, tpot):
                column[c] = np.interp(steps, steps[seen], column[c, seen])
        return cls(cap_w, batch, _rising(tokens), _rising(power), _rising(peak), -_rising(-tpot))

    def refined(self, cap_w: F64, batch: I64) -> PowerTable:
        """The same at other caps and batches; beyond the outermost these hold."""

        def at(column: F64) -> F64:
            by_batch = np.array([np.interp(np.log2(batch), np.log2(self.batch), row) for row in column])
            return np.array([np.interp(cap_w, self.cap_w, by_cap) for by_cap in by_batch.T]).T

        columns = (self.tokens_per_s, self.power_w, self.peak_w, self.tpot_s)
        return PowerTable(cap_w, batch, *(at(column) for column in columns))

    @property
    def tokens_per_j(self) -> F64:
        """Energy efficiency, Eff(c) of section 3.3 (C, B)."""
        return self.tokens_per_s / self.power_w

    def power_at(self, cap_w: float, running: float) -> float:
        """Mean power at the nearest cap and between the batches, watts."""
        row = self.power_w[np.abs(self.cap_w - cap_w).argmin()]
        return float(np.interp(np.log2(max(running, 1.0)), np.log2(self.batch), row))


@dataclass(frozen=True, eq=False)
class Seconds:
    """Seconds of slots that are alike, n of them: what a table is made of.

    Attributes:
        cap_w: Power limit in force, watts (n,).
        in_flight: Requests in flight by which to count the second: the limit where one held, else those in the batch.
        running: Requests in the batch (n,).
        tokens: Output tokens (n,).
        power_w: Mean power, watts (n,).
    """

    cap_w: F64
    in_flight: F64
    running: F64
    tokens: F64
    power_w: F64

    def taken(self, which: NDArray[np.bool_]) -> Seconds:
        """Some of them."""
        columns = (self.cap_w, self.in_flight, self.running, self.tokens, self.power_w)
        return Seconds(*(column[which] for column in columns))


def _rising(column: F64) -> F64:
    """The nearest column (C, B) that never falls with the cap, by least squares.

    What a higher cap does worse is the chance of the requests that it met: isotonic regression shares it out.
    """
    return np.stack([isotonic_regression(by_cap).x for by_cap in column.T], axis=1)
