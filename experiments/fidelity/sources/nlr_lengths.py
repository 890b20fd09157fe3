"""Lengths of the requests of the NLR runs: shapes of the distributions, stretched to a given mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from ....simulator.errors import InputError

Tokens = NDArray[np.int64]

PROMPT_SIGMA = 0.5
"""Spread of the logarithm of prompt lengths; assumed."""

PROBABILITY = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 1.0)


@dataclass(frozen=True)
class Dataset:
    """What is known of the requests that are drawn from a published data set.

    Attributes:
        output_quantiles: Tokens that Llama-3.1-70B answers with, at ``PROBABILITY``: those from 0.1 to 0.9 by the
            end-to-end and token times of the runs at 10 requests a second, the ends so that the mean is right both cut
            at 256 and cut at 1024 tokens.
        prompt_mean: Mean prompt, tokens, where a file does not say it.
        default_limit: Longest output, tokens, where the client is not told.
        default_output_mean: Mean output then.
        shared_blocks: Leading KV blocks that prompts have in common: head of the chat template, system prompt.
    """

    output_quantiles: tuple[int, ...]
    prompt_mean: float
    default_limit: int
    default_output_mean: float
    shared_blocks: int


DATASETS = {
    "likaixin/InstructCoder": Dataset((10, 62, 104, 150, 222, 375, 560, 1024), 173.4, 200, 140.0, 1),
    "mgoin/mlperf-inference-llama2-data": Dataset((8, 86, 188, 250, 300, 375, 480, 1024), 119.7, 1024, 110.0, 2),
}
FIRST = next(iter(DATASETS))


def dataset(name: str, where: str) -> Dataset:
    """What is known of a data set; raises ``InputError`` if nothing is."""
    if name not in DATASETS:
        known = ", ".join(DATASETS)
        raise InputError(where, f"dataset is {name!r}, of whose lengths nothing is known", f"Known: {known}")
    return DATASETS[name]


def shape_of(name: str) -> Dataset:
    """What is known of a data set; of another one than those known, what is known of the first."""
    return DATASETS.get(name, DATASETS[FIRST])


def log_normal(mean: float, n: int, rng: np.random.Generator) -> Tokens:
    """Prompt lengths of this mean, evenly spread over a log-normal distribution and shuffled."""
    lengths = np.exp(PROMPT_SIGMA * _standard_normal(n))
    return rng.permutation(np.maximum(np.rint(lengths * (mean / lengths.mean())), 1).astype(np.int64))


def normal(mean: float, sd: float, limit: int, n: int, rng: np.random.Generator) -> Tokens:
    """Output lengths evenly spread over a normal distribution, cut at a limit and shuffled."""
    lengths = np.clip(mean + sd * _standard_normal(n), 1, limit)
    return rng.permutation(np.rint(lengths).astype(np.int64))


def with_mean(mean: float, limit: int, quantiles: Sequence[float], n: int, rng: np.random.Generator) -> Tokens:
    """Output lengths evenly spread over quantiles at ``PROBABILITY``, stretched, cut at a limit and shuffled.

    They are stretched so that those cut have this mean, as far as it can be.
    """
    shape = np.interp(_evenly(n), PROBABILITY, quantiles)
    low, high = 1e-3, 1e3
    for _ in range(60):
        factor = (low * high) ** 0.5
        low, high = (factor, high) if np.clip(shape * factor, 1, limit).mean() < mean else (low, factor)
    return rng.permutation(np.rint(np.clip(shape * high, 1, limit)).astype(np.int64))


def _standard_normal(n: int) -> NDArray[np.float64]:
    probability = np.linspace(0.002, 0.998, 250)
    return np.interp(_evenly(n), probability, [NormalDist().inv_cdf(p) for p in probability])


def _evenly(n: int) -> NDArray[np.float64]:
    return (np.arange(n) + 0.5) / n
