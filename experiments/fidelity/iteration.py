"""Length and energy of iterations outside the engine, for measurements of one fixed batch at a time.

The engine's own formulas (``IterationCost``, ``PowerCoefficients`` and the governor of ``kernels.physics``), for many
batches at once and in floating point. What takes time on the GPUs whatever the batch, and the choice of next tokens,
are left out: an engine that starts every kernel by itself takes longer for them, see ``eager``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...simulator.kernels.tables import IterationCost, PowerCoefficients
from ...simulator.units import PS_PER_S


class Batches(NamedTuple):
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
    """How each iteration went (N,); its length is the sum of the times.

    Attributes:
        host_s: The GPUs wait for the host.
        link_s: They communicate.
        work_s: They compute or read memory.
        energy_j: Energy of all GPUs of the slot.
    """

    host_s: NDArray[np.float64]
    link_s: NDArray[np.float64]
    work_s: NDArray[np.float64]
    energy_j: NDArray[np.float64]

    @property
    def length_s(self) -> NDArray[np.float64]:
        """Length of each iteration."""
        return self.host_s + self.link_s + self.work_s


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
        Times and energies.
    """
    tokens, sequences, read, pairs = (
        array[:, None] for array in (batches.tokens, batches.sequences, batches.read, batches.pairs)
    )
    host_ps = cost.step_ps + cost.sequence_ps * sequences
    link_ps = cost.link_ps[tokens]
    # Not in integers: those of the longest prompts times their pairs would not fit.
    compute_ps = (cost.compute_ps[tokens] + float(cost.attention_ps) * pairs) / power.clock_ratio
    memory_ps = cost.memory_ps[tokens] + float(cost.state_ps) * sequences
    cache_ps = float(cost.kv_read_ps) * read
    work_ps = np.maximum(compute_ps, memory_ps + cache_ps)
    length_ps = host_ps + link_ps + work_ps
    clocked = power.scale * (power.active_w * (length_ps - host_ps) + power.compute_w * compute_ps)
    read_w = power.memory_w * memory_ps + power.cache_w * cache_ps
    energy = power.idle_w * length_ps + clocked + read_w + power.link_w * link_ps
    allowed = energy <= power.cap_max_w * length_ps
    step = np.where(allowed.any(axis=1), allowed.shape[1] - 1 - np.argmax(allowed[:, ::-1], axis=1), 0)
    each = np.arange(len(step))
    chosen = (host_ps[:, 0], link_ps[:, 0], work_ps[each, step], energy[each, step])
    return Ran(*(np.asarray(values, np.float64) / PS_PER_S for values in chosen))
