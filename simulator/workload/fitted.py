"""Fitted workloads: models of published traces, a few kilobytes each, shipped with the package."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from .arrivals import ARRIVALS, OpenLoop, Seconds
from .gaussian import gaussian_series
from .lengths import LENGTHS, Lengths, Tokens

FittedName = Literal["azure-2023-code", "azure-2023-conv"]
FITTED: tuple[FittedName, ...] = ("azure-2023-code", "azure-2023-conv")
EVEN_LEVELS = 256
WARM_UP = 1_000
"""Mean gaps before the run begins, at least, so that it begins at a random instant and not at an arrival."""


@dataclass(frozen=True)
class GapModel:
    """Inter-arrival times with the trace's distribution and memory.

    A Gaussian series with short memories and one slow cycle (of random phase) is mapped through the quantiles of the
    trace's inter-arrival times: the distribution holds by construction, the memory is what makes counts over-dispersed.

    Attributes:
        normal: Places of the quantiles on the Gaussian axis.
        gap_s: Inter-arrival time there, seconds.
        mean_gap_s: Mean inter-arrival time, seconds.
        memories: Pairs (requests, weight) of the series' memories.
        cycle_requests: Length of the cycle, requests.
        cycle_weight: Variance of the cycle.
    """

    normal: NDArray[np.float64]
    gap_s: NDArray[np.float64]
    mean_gap_s: float
    memories: tuple[tuple[float, float], ...]
    cycle_requests: float
    cycle_weight: float

    def sample(self, n: int, rng: np.random.Generator) -> Seconds:
        """Draws ``n`` consecutive inter-arrival times, seconds."""
        white = 1 - self.cycle_weight - sum(weight for _, weight in self.memories)
        z = gaussian_series(n, self.memories, rng, white)
        turns = np.arange(n) / self.cycle_requests + rng.random()
        z += np.sqrt(2 * self.cycle_weight) * np.cos(2 * np.pi * turns)
        return np.interp(z, self.normal, self.gap_s)


@dataclass(frozen=True)
class LengthModel:
    """Prompt and output lengths: quantiles of each, and the density of their ranks on a grid.

    Attributes:
        level: Levels of the quantiles, from 0 to 1.
        prompt_tokens: Quantiles of the prompt length.
        output_tokens: Quantiles of the output length.
        copula: Requests per cell of the grid of ranks, shape (prompt, output); rows and columns have even sums.
    """

    level: NDArray[np.float64]
    prompt_tokens: NDArray[np.float64]
    output_tokens: NDArray[np.float64]
    copula: NDArray[np.int64]

    def sample(self, n: int, rng: np.random.Generator) -> tuple[Tokens, Tokens]:
        """Draws ``n`` pairs: a cell, a place in it, and the lengths of those ranks."""
        cumulative = np.cumsum(self.copula)
        cell = np.searchsorted(cumulative, rng.integers(0, cumulative[-1], n), side="right")
        grid = len(self.copula)
        row, column = np.divmod(cell, grid)
        return (
            self._tokens(self.prompt_tokens, (row + rng.random(n)) / grid),
            self._tokens(self.output_tokens, (column + rng.random(n)) / grid),
        )

    def _tokens(self, quantiles: NDArray[np.float64], level: NDArray[np.float64]) -> Tokens:
        return np.rint(np.interp(level, self.level, quantiles)).astype(np.int32)


@cache
def load_fit(name: str) -> tuple[GapModel, LengthModel]:
    """Reads the fitted figures of a trace, once."""
    text = resources.files(__package__).joinpath("azure_2023.toml").read_text(encoding="utf-8")
    return parse_fit(tomllib.loads(text)[name])


def parse_fit(figures: dict[str, Any]) -> tuple[GapModel, LengthModel]:
    """Turns one table of the TOML file into its models."""
    gaps = GapModel(
        normal_axis(figures["requests"], len(figures["gap_us"])),
        np.asarray(figures["gap_us"]) * 1e-6,
        figures["mean_gap_s"],
        tuple((steps, weight) for steps, weight in figures["memories"]),
        figures["cycle_requests"],
        figures["cycle_weight"],
    )
    lengths = LengthModel(
        length_levels(len(figures["prompt_tokens"])),
        np.asarray(figures["prompt_tokens"], np.float64),
        np.asarray(figures["output_tokens"], np.float64),
        np.asarray(figures["copula"], np.int64),
    )
    return gaps, lengths


def normal_axis(requests: int, points: int) -> NDArray[np.float64]:
    """Even places on the Gaussian axis that span a sample of ``requests`` values, so that the tails have knots too."""
    edge = NormalDist().inv_cdf(1 - 0.5 / requests)
    return np.linspace(-edge, edge, points)


def length_levels(points: int) -> NDArray[np.float64]:
    """Levels of the length quantiles: 256 even steps, the last of them halved again and again to resolve the tail."""
    halvings = np.arange(1, points - EVEN_LEVELS)
    return np.concatenate([np.arange(EVEN_LEVELS) / EVEN_LEVELS, 1 - 0.5**halvings / EVEN_LEVELS, [1.0]])


@ARRIVALS.register(*FITTED)
class FittedArrivals(OpenLoop):
    """Arrivals of a published trace's fitted model.

    Attributes:
        kind: Name of the trace.
        rate_per_s: Mean rate, requests per second; the trace's own by default. Another rate stretches time, so that
            bursts keep their number of requests.
    """

    kind: FittedName
    rate_per_s: float | None = Field(None, gt=0)

    def times_s(self, duration_s: float, rng: np.random.Generator) -> Seconds:
        """Draws gaps until the run is full."""
        model = load_fit(self.kind)[0]
        stretch = 1.0 if self.rate_per_s is None else 1 / (self.rate_per_s * model.mean_gap_s)
        parts, now = [], -stretch * model.mean_gap_s * WARM_UP * rng.uniform(1, 2)
        while now < duration_s:
            n = int(1.1 * (duration_s - now) / (stretch * model.mean_gap_s)) + 1024
            parts.append(now + stretch * np.cumsum(model.sample(n, rng)))
            now = float(parts[-1][-1])
        times = np.concatenate(parts)
        first, last = np.searchsorted(times, [0.0, duration_s])
        return times[first:last]


@LENGTHS.register(*FITTED)
class FittedLengths(Lengths):
    """Prompt and output lengths of a published trace's fitted model."""

    kind: FittedName

    def sample(self, n: int, rng: np.random.Generator) -> tuple[Tokens, Tokens]:
        """Draws ``n`` pairs."""
        return load_fit(self.kind)[1].sample(n, rng)
