"""Tasks of the ML.ENERGY benchmark: how many requests a run sends, and how long they are taken to be.

The leaderboard publishes the mean output length of a run and nothing of its prompts. What is known of the rest:

- ml-energy/benchmark, ``configs/vllm`` and ``mlenergy/llm/benchmark.py``: 1,024 requests of a data set (198 for GPQA
  Diamond) are all sent at once to vLLM 0.11.1; 8,192 batched tokens, contexts to 20,480. For large batches the whole
  list is sent ``num_request_repeats`` times over, so that vLLM's prefix cache holds the prompts of every time but the
  first: without that, runs of 1,024 places and more come out with a third to a half of their throughput and batch.
- LM Arena: ``arena-human-preference-100k``; every turn of a conversation is a request that carries the turns before
  it. Chatbot Arena (Chiang et al., arXiv 2403.04132) counts 1.3 turns a conversation and 95 tokens a user's turn. With
  turns distributed geometrically 0.3 answers of 300 to 500 tokens precede a request, so that it has some 280 with the
  chat template.
- GPQA Diamond: questions with their four choices are 841 characters on the average and 5,845 at most with the
  instructions of EvalScope, which are some 170 longer than those here; at 3.3 characters a token with template, 230.

The rest was chosen on runs of the split's fit part alone, by how well four things that hardly depend on fitted figures
come out: the mean batch of runs that are short of KV cache, throughput times median latency, and the 90th and 99th
percentile of latencies over the median. Of 14 combinations for LM Arena (prompts of 150 to 400 tokens) 350 with spreads
of 1.3 and 1.1 is within 1 % of the best, before the prefix cache was found out and after; prompts of 250 are 25 %
worse. Of five for GPQA an output spread of 0.9 is best. Memory beside weights and KV cache (``runtime_bytes``) was
looked at too: runs short of KV cache ask for 2 GB (Llama-3.1-8B, Qwen3-235B) to 6 GB (Qwen3-30B on one GPU), so that
the catalogue's 2 GB stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from math import log, sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from ....simulator.errors import InputError

MAX_MODEL_LEN = 20_480
MAX_BATCHED_TOKENS = 8192

FEWEST_PER_PLACE = 4 / 3
"""Published sweeps repeat the requests until there are at least so many for every place of the batch; and twice where
there are just two, which would leave no steady part."""

MOST_REPEATS = 64


@dataclass(frozen=True)
class Task:
    """Requests of one task.

    Attributes:
        requests: In its data set.
        prompt_mean: Mean prompt length with chat template, tokens.
        prompt_spread: Standard deviation of prompt lengths over their mean.
        output_spread: The same of output lengths.
        output_most: Longest output, tokens.
    """

    requests: int
    prompt_mean: float
    prompt_spread: float
    output_spread: float
    output_most: int

    def scaled(self, prompt: float = 1.0, spread: float = 1.0) -> Task:
        """With prompts so many times as long, and outputs so many times as widely spread."""
        return replace(self, prompt_mean=self.prompt_mean * prompt, output_spread=self.output_spread * spread)


TASKS = {
    "lm-arena-chat": Task(1024, 350.0, 1.3, 1.1, 4096),
    "gpqa": Task(198, 230.0, 0.8, 0.9, MAX_MODEL_LEN),
}


def task_named(name: str, mean_output: float, tasks: Mapping[str, Task] = TASKS) -> Task:
    """What is assumed of a task; of one that is not known, prompts and spreads as of ``lm-arena-chat``.

    Outputs longer on the average than the task's longest are cut off at the context length instead.
    """
    task = tasks.get(name, TASKS["lm-arena-chat"])
    return task if name in tasks and mean_output < task.output_most else replace(task, output_most=MAX_MODEL_LEN)


def requests_sent(task: Task, mean_output: float, max_num_seqs: int) -> int:
    """Requests of a run: the fewest repetitions that fit the batch and of which the mean output is a whole fraction.

    The mean output length is total tokens over requests, so that its denominator tells a multiple of what the
    repetitions must be; where it is rounded, it tells nothing.
    """
    least = Fraction(mean_output * task.requests).limit_denominator(MOST_REPEATS)
    exact = abs(least - mean_output * task.requests) < 1e-5
    step = least.denominator if exact else 1
    enough = FEWEST_PER_PLACE * max_num_seqs / task.requests
    enough = 2.0 if task.requests == 2 * max_num_seqs else enough
    return task.requests * step * max(1, -int(-enough // step))


def lengths(
    task: Task, mean_output: float, requests: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Prompt and output lengths: evenly spaced quantiles of lognormal distributions, in random order.

    Requests of the data set that are sent again come in the same order, one time after the other.

    Raises:
        InputError: The mean output is out of the question.
    """
    if not 1 <= mean_output < task.output_most:
        problem = f"a mean of {mean_output} output tokens cannot be where {task.output_most} is the most"
        raise InputError("avg_output_len", problem, "Give a mean from 1 up to that")
    distinct = min(requests, task.requests)
    prompt = _lognormal(task.prompt_mean, task.prompt_spread, MAX_MODEL_LEN // 2, distinct)
    output = _lognormal(mean_output, task.output_spread, task.output_most, distinct)
    prompt, output = (np.resize(rng.permutation(one), requests) for one in (prompt, output))
    return prompt, np.minimum(output, MAX_MODEL_LEN - prompt)


def _lognormal(mean: float, spread: float, most: int, number: int) -> NDArray[np.int64]:
    """Evenly spaced quantiles, cut off at ``most``, with the mean that is asked for."""
    width = sqrt(log(1 + spread**2))
    normal = np.array([NormalDist().inv_cdf((i + 0.5) / number) for i in range(number)])
    shape = np.exp(width * normal)
    low, high = 0.0, mean * number / float(shape.sum())
    while np.minimum(high * shape, most).mean() < mean * (1 - 1e-9) and high < most / float(shape[0]):
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(middle * shape, most).mean() < mean else (low, middle)
    return np.maximum(np.rint(np.minimum(high * shape, most)), 1).astype(np.int64)
