"""Length and energy of iterations outside the engine, for measurements of one fixed batch at a time.

The engine's own formulas (``IterationCost``, ``PowerCoefficients`` and the governor of ``kernels.physics``), for many
batches at once and in floating point.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...simulator.kernels.tables import IterationCost, PowerCoefficients
from ...simulator.units import PS_PER_S


@dataclass(frozen=True)
class Batches:
    """What each of N iterations has to do.

    Attributes:
        tokens: Batched tokens (N,).
        sequences: Requests that they belong to (N,).
        read: Cached tokens read (N,).
        pairs: Pairs of a query token and a token that it attends to (N,).
    """

    tokens: NDArray[np.int64]
    sequences: NDArray[np.int64]
    read: NDArray[np.int64]
    pairs: NDArray[np.int64]


class Ran(NamedTuple):
    """Length (s) and energy (J, of all GPUs of the slot) of each iteration."""

    length_s: NDArray[np.float64]
    energy_j: NDArray[np.float64]


def prompts(batch: NDArray[np.int64], prompt: NDArray[np.int64]) -> Batches:
    """Whole prompts, each batch in one iteration."""
    return Batches(batch * prompt, batch, np.zeros_like(batch), batch * (prompt * (prompt + 1) // 2))


def decodes(batch: NDArray[np.int64], context: NDArray[np.int64]) -> Batches:
    """One token of every sequence, each with so much context."""
    return Batches(batch, batch, batch * context, batch * context)


def run(cost: IterationCost, power: PowerCoefficients, batches: Batches) -> Ran:
    """Runs iterations at the highest clock that the TDP allows each of them.

    Args:
        cost: Iteration cost of the deployment.
        power: Its power coefficients.
        batches: The iterations.

    Returns:
        Length and energy.
    """
    column = {name: getattr(batches, name)[:, None] for name in ("tokens", "sequences", "read", "pairs")}
    host_ps = cost.step_ps + cost.sequence_ps * column["sequences"]
    link_ps = cost.link_ps[column["tokens"]]
    # Not in integers: those of the longest prompts times their pairs would not fit.
    at_top_ps = cost.compute_ps[column["tokens"]] + float(cost.attention_ps) * column["pairs"]
    read_ps = cost.kv_read_ps * column["read"] + cost.state_ps * column["sequences"]
    memory_ps = cost.memory_ps[column["tokens"]] + read_ps
    compute_ps = at_top_ps / power.clock_ratio
    length_ps = host_ps + link_ps + np.maximum(compute_ps, memory_ps)
    clocked = power.scale * (power.active_w * (length_ps - host_ps) + power.compute_w * compute_ps)
    energy = power.idle_w * length_ps + clocked + power.memory_w * memory_ps + power.link_w * link_ps
    allowed = energy <= power.cap_max_w * length_ps
    step = np.where(allowed.any(axis=1), allowed.shape[1] - 1 - np.argmax(allowed[:, ::-1], axis=1), 0)
    each = np.arange(len(step))
    return Ran(length_ps[each, step] / PS_PER_S, energy[each, step] / PS_PER_S)
