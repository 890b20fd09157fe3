"""Lengths of the requests of the NLR runs: shapes of the distributions, stretched to a given mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int64]

PROMPT_SIGMA = 0.5
"""Spread of the logarithm of prompt lengths; assumed."""

PROBABILITY = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 1.0)


@dataclass(frozen=True)
class DatasetShape:
    """What is known of the requests that are drawn from a published data set.

    Attributes:
        output_quantiles: Tokens that Llama-3.1-70B answers with, at ``PROBABILITY``; those between 0.1 and 0.9 follow
            from the end-to-end and token times of the runs at 10 requests a second, the ends from the means at 256 and
            at 1024 tokens.
        prompt_mean: Mean prompt, tokens, where a file does not say it.
        shared_blocks: Leading KV blocks that prompts have in common: the chat template's head and system prompt.
    """

    output_quantiles: tuple[int, ...]
    prompt_mean: float
    shared_blocks: int


DATASETS = {
    "likaixin/InstructCoder": DatasetShape((10, 62, 104, 150, 222, 375, 560, 1024), 173.4, 1),
    "mgoin/mlperf-inference-llama2-data": DatasetShape((8, 86, 188, 250, 300, 375, 480, 1024), 119.7, 2),
}


def log_normal(mean: float, n: int, rng: np.random.Generator) -> Tokens:
    """Prompt lengths of this mean, evenly spread over a log-normal distribution and shuffled."""
    probability = np.linspace(0.002, 0.998, 250)
    value = np.exp(PROMPT_SIGMA * np.array([NormalDist().inv_cdf(p) for p in probability]))
    lengths = np.interp(_evenly(n), probability, value)
    return rng.permutation(np.maximum(np.rint(lengths * (mean / lengths.mean())), 1).astype(np.int64))


def cut_at(
    limit: int, value: Sequence[float], probability: Sequence[float], n: int, rng: np.random.Generator
) -> Tokens:
    """Output lengths with these quantiles, cut at a limit, evenly spread and shuffled."""
    lengths = np.interp(_evenly(n), probability, value)
    return rng.permutation(np.clip(np.rint(lengths), 1, limit).astype(np.int64))


def with_mean(mean: float, limit: int, value: Sequence[float], n: int, rng: np.random.Generator) -> Tokens:
    """As :func:`cut_at` over ``PROBABILITY``, stretched so that the cut lengths have this mean."""
    low, high = 0.1, 10.0
    for _ in range(40):
        factor = (low * high) ** 0.5
        lengths = np.clip(np.interp(_evenly(n), PROBABILITY, value) * factor, 1, limit)
        low, high = (factor, high) if lengths.mean() < mean else (low, factor)
    return rng.permutation(np.rint(lengths).astype(np.int64))


def _evenly(n: int) -> NDArray[np.float64]:
    return (np.arange(n) + 0.5) / n
