"""What an engine kept busy, from what its counters say it did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ...simulator.kernels.tables import IterationCost, PowerCoefficients
from .batches import Batches, governed
from .iteration import Activity, activity


class Busy(NamedTuple):
    """Seconds of several iterations together.

    Attributes:
        length: How long they take.
        host: GPUs wait for the host.
        activity: For how long each power is drawn.
    """

    length: float
    host: float
    activity: Activity


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
    first token comes from its own prefill. Each runs at the highest clock that keeps it under the highest cap.
    """
    iterations = max(counted.iterations, 1.0 if counted.prompt_tokens + counted.output_tokens else 0.0)
    most = len(cost.compute_ps) - 1.0
    decodes = max(counted.output_tokens - counted.prompts, 0.0) / max(iterations, 1.0)
    read = decodes * counted.context_tokens
    with_prompt = min(float(np.ceil(counted.prompt_tokens / max(most - decodes, 1.0))), iterations)
    chunk, prompts = (value / max(with_prompt, 1.0) for value in (counted.prompt_tokens, counted.prompts))
    prompts = max(prompts, 1.0)
    own = chunk * (chunk / prompts + 1) / 2
    batches = Batches(
        # Where counters leap, more tokens than the budget seem to be in one iteration.
        tokens=np.minimum([decodes, chunk + decodes], most),
        sequences=np.array([decodes, decodes + prompts]),
        pairs=np.array([read, read + own]),
        read=np.array([read, read]),
    )
    count = np.array([iterations - with_prompt, with_prompt])
    done = governed(cost, power, batches)
    parts = activity(done.times, power.scale[done.step])
    return Busy(
        float(count @ done.times.length), float(count @ done.times.host), Activity(*(count @ part for part in parts))
    )
