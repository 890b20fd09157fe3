"""Output lengths that are not known yet: what queries with prompts as long have generated before."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...simulator.errors import InputError

F64 = NDArray[np.float64]
Tokens = NDArray[np.integer[Any]]


class OutputLengths:
    """Expected output tokens by prompt length, in bins with equal numbers of queries.

    Args:
        prompt: Prompt tokens of past queries (n,).
        output: What they generated (n,).
        bins: Bins at most.
        quantile: Predicts this quantile of a bin in place of its mean.

    Raises:
        InputError: There are no queries to learn from.
    """

    def __init__(self, prompt: Tokens, output: Tokens, bins: int = 12, quantile: float | None = None) -> None:
        if not len(prompt):
            raise InputError("lengths", "there are no past queries", "Give some to learn from")
        inner = np.quantile(prompt, np.arange(1, bins) / bins)
        self._edges = np.unique(inner)
        place = self._bin(prompt)
        overall = _figure(output, quantile)
        self._expected = np.array(
            [
                _figure(output[place == b], quantile) if (place == b).any() else overall
                for b in range(len(self._edges) + 1)
            ]
        )

    def __call__(self, prompt: Tokens) -> F64:
        """Expected output tokens of queries with these prompts (n,)."""
        return np.asarray(self._expected[self._bin(prompt)])

    def _bin(self, prompt: Tokens) -> NDArray[np.int64]:
        return np.asarray(np.searchsorted(self._edges, prompt, side="right"), np.int64)


def _figure(output: Tokens, quantile: float | None) -> float:
    return float(output.mean() if quantile is None else np.quantile(output, quantile))
