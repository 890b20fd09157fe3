"""Iterations over given batches, as the engine's own tables have them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...simulator.kernels.tables import IterationCost, PowerCoefficients
from ...simulator.units import PS_PER_S
from .iteration import F64, Governed, Needs, Watts, govern

Counts = NDArray[Any]
I64 = NDArray[np.int64]


class Batches(NamedTuple):
    """What each of N iterations has to do; means of like iterations need not be whole.

    Attributes:
        tokens: Batched tokens (N,).
        sequences: Requests that they belong to (N,).
        pairs: Pairs of a query token and a token that it attends to (N,).
        read: Cached tokens read (N,).
    """

    tokens: Counts
    sequences: Counts
    pairs: Counts
    read: Counts


def prompts(batch: I64, prompt: I64) -> Batches:
    """Whole prompts, each batch in one iteration."""
    return Batches(batch * prompt, batch, batch * (prompt * (prompt + 1) // 2), np.zeros_like(batch))


def decodes(batch: I64, context: I64) -> Batches:
    """One token of every sequence, each with so much context."""
    return Batches(batch, batch, batch * context, batch * context)


def needs(cost: IterationCost, batches: Batches) -> Needs:
    """What iterations ask for, in seconds, by the formulas of ``IterationCost``.

    Args:
        cost: The deployment's.
        batches: The iterations, none of more tokens than the tables have.
    """
    tokens, sequences, pairs, read = batches
    return Needs(
        host=(cost.step_ps + cost.sequence_ps * sequences) / PS_PER_S,
        gap=cost.gap_ps / PS_PER_S,
        sample=cost.sample_ps * sequences / PS_PER_S,
        link=_looked_up(cost.link_ps, tokens),
        # Not in integers: those of the longest prompts times their pairs would not fit.
        compute=_looked_up(cost.compute_ps, tokens) + cost.attention_ps / PS_PER_S * pairs,
        weights=_looked_up(cost.memory_ps, tokens) + cost.state_ps / PS_PER_S * sequences,
        cache=cost.kv_read_ps / PS_PER_S * read,
    )


def governed(cost: IterationCost, power: PowerCoefficients, batches: Batches) -> Governed:
    """Iterations at the highest clocks that keep them under the highest power limit.

    Args:
        cost: Iteration cost of the deployment.
        power: Its power.
        batches: The iterations.
    """
    return govern(needs(cost, batches), Watts.of(power), power.clock_ratio, power.scale, power.cap_max_w)


def _looked_up(table_ps: I64, tokens: Counts) -> F64:
    """Seconds at so many tokens; between two whole numbers of them in proportion."""
    low, high = np.floor(tokens).astype(np.int64), np.ceil(tokens).astype(np.int64)
    return np.asarray((table_ps[low] + (tokens - low) * (table_ps[high] - table_ps[low])) / PS_PER_S)
