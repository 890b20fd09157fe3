"""Power that the catalogue predicts from what an engine's counters say it did."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...simulator.kernels.tables import IterationCost, PowerCoefficients
from ...simulator.units import PS_PER_S

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Busy:
    """Times of one or several iterations, seconds, and the same weighted with dynamic power at their clock.

    Attributes:
        length: Their length.
        active: GPUs do not wait for the host, times dynamic power relative to the highest clock.
        compute: Compute units are busy, times the same.
        memory: Weights and states are read, or next tokens chosen.
        cache: Keys and values are read.
        link: Links are busy.
        host: GPUs wait for the host.
    """

    length: float
    active: float
    compute: float
    memory: float
    cache: float
    link: float
    host: float

    def times(self, count: float) -> Busy:
        """So many of them."""
        return Busy(*(count * value for value in (self.length, *self.parts, self.host)))

    def plus(self, other: Busy) -> Busy:
        """One after the other."""
        ours, theirs = ((one.length, *one.parts, one.host) for one in (self, other))
        return Busy(*(a + b for a, b in zip(ours, theirs, strict=True)))

    @property
    def parts(self) -> tuple[float, float, float, float, float]:
        """What is multiplied with active, compute, memory, cache and link power."""
        return self.active, self.compute, self.memory, self.cache, self.link


NOTHING = Busy(0, 0, 0, 0, 0, 0, 0)


def watts_of(power: PowerCoefficients) -> F64:
    """Active, compute, memory, cache and link power (5,)."""
    return np.array([power.active_w, power.compute_w, power.memory_w, power.cache_w, power.link_w])


def iteration(
    cost: IterationCost, power: PowerCoefficients, tokens: float, sequences: float, pairs: float, read: float
) -> Busy:
    """One iteration, at the highest clock that keeps it under the highest cap; by the formulas of docs/engine.md.

    Args:
        cost: What iterations cost.
        power: What they draw.
        tokens: Batched tokens; a mean, so need not be whole.
        sequences: Sequences in the batch.
        pairs: Query-key pairs attended.
        read: Cached tokens read.
    """
    at = np.arange(len(cost.compute_ps))
    link, compute, memory = (
        float(np.interp(tokens, at, column)) / PS_PER_S for column in (cost.link_ps, cost.compute_ps, cost.memory_ps)
    )
    host = (cost.step_ps + cost.sequence_ps * sequences) / PS_PER_S
    compute += cost.attention_ps * pairs / PS_PER_S
    memory += cost.state_ps * sequences / PS_PER_S
    cache = cost.kv_read_ps * read / PS_PER_S
    gap, samples = cost.gap_ps / PS_PER_S, cost.sample_ps * sequences / PS_PER_S
    for ratio, scale in zip(power.clock_ratio[::-1].tolist(), power.scale[::-1].tolist(), strict=True):
        busy = compute / ratio
        length = host + gap + samples + link + max(busy, memory + cache)
        found = Busy(length, scale * (length - host), scale * busy, memory + samples, cache, link, host)
        if power.idle_w * length + watts_of(power) @ found.parts <= power.cap_max_w * length:
            break
    return found


@dataclass(frozen=True)
class Counted:
    """What an engine did between two looks at its counters.

    Attributes:
        iterations: Iterations begun.
        prompt_tokens: Prompt tokens computed.
        output_tokens: Tokens generated.
        prompts: Requests whose prompts these were.
        context_tokens: Mean context of the requests that decoded.
    """

    iterations: float
    prompt_tokens: float
    output_tokens: float
    prompts: float
    context_tokens: float


def work(cost: IterationCost, power: PowerCoefficients, counted: Counted) -> Busy:
    """All iterations between two looks: those with a chunk of a prompt, and the others alike among themselves.

    Prompts fill as few iterations as the tables' token budget allows, beside the mean number of decodes; each prompt's
    first token comes from its own prefill.
    """
    iterations = max(counted.iterations, 1.0 if counted.prompt_tokens + counted.output_tokens else 0.0)
    if not iterations:
        return NOTHING
    decodes = max(counted.output_tokens - counted.prompts, 0.0) / iterations
    read = decodes * counted.context_tokens
    budget = max(len(cost.compute_ps) - 1 - decodes, 1.0)
    with_prompt = min(float(np.ceil(counted.prompt_tokens / budget)), iterations)
    done = iteration(cost, power, decodes, decodes, read, read).times(iterations - with_prompt)
    if with_prompt:
        chunk = counted.prompt_tokens / with_prompt
        prompts = max(counted.prompts / with_prompt, 1.0)
        own = chunk * (chunk / prompts + 1) / 2
        mixed = iteration(cost, power, chunk + decodes, decodes + prompts, read + own, read)
        done = done.plus(mixed.times(with_prompt))
    return done
