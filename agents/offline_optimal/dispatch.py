"""The assignment online: each query by itself, by its cost and the prices of the options' shares."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .assignment import Shares

F64 = NDArray[np.float64]


class PricedDispatch:
    """Sends each query where its cost and what it takes of a share, at the share's price, are least.

    With the dual prices of the offline program this is what the program would do, but for queries between which it is
    indifferent; and prices learnt on other traffic are a little off. So they move on: the price of an option that runs
    ahead of its share rises, of one that lags falls (dual mirror descent, Balseiro, Lu and Mirrokni, ICML 2020).

    Args:
        price: Prices to start from, such as :attr:`Assignment.price` of past traffic (K,).
        shares: Limits, for a run of ``expected`` queries.
        expected: Queries over which the limits are spread.
        step: Change of a price, in units of cost, for a whole average query above or below the share.
    """

    def __init__(self, price: F64, shares: Shares, expected: int, step: float) -> None:
        self._high, self._low = shares.high / expected, shares.low / expected
        self._above, self._below = np.maximum(price, 0.0), np.maximum(-price, 0.0)
        self._step = step

    @property
    def price(self) -> F64:
        """Prices now (K,)."""
        return np.asarray(self._above - self._below)

    def choose(self, cost: F64, weight: F64 | None = None) -> int:
        """Option for one query.

        Args:
            cost: Its expected cost on each option (K,); infinite where it cannot go.
            weight: What it is expected to take of each option's share (K,); 1 by default.

        Returns:
            The option.
        """
        taken = np.ones_like(cost) if weight is None else weight
        best = int(np.argmin(cost + self.price * taken))
        used = np.zeros_like(cost)
        used[best] = taken[best]
        scale = self._step / max(float(taken[np.isfinite(cost)].mean()), 1e-12)
        finite = np.isfinite(self._high)
        self._above[finite] = np.maximum(self._above + scale * (used - self._high), 0.0)[finite]
        self._below = np.maximum(self._below + scale * (self._low - used), 0.0)
        return best
