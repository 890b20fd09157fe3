"""Energy against accuracy: the offline assignment over its knob, the online rule, and what they are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...agents.offline_optimal.assignment import Assignment, Shares, assign, mixed_cost
from ...agents.offline_optimal.dispatch import PricedDispatch
from ...agents.offline_optimal.lengths import OutputLengths
from ...agents.offline_optimal.models import WorkloadModel
from ...simulator.units import J_PER_KWH

F64 = NDArray[np.float64]
Tokens = NDArray[np.integer[Any]]

PRICE_STEP = 1e-4
"""Change of a price per query that runs ahead of its share, in units of the scaled cost."""


@dataclass(frozen=True)
class Batch:
    """Queries with what each takes on each model, and how well it is answered.

    Attributes:
        prompt: Prompt tokens (Q,).
        output: Output tokens (Q,).
        energy_j: Energy (Q, K).
        runtime_s: Runtime (Q, K).
        accuracy: Score of the model times the query's tokens, as the paper weighs it (Q, K).
    """

    prompt: Tokens
    output: Tokens
    energy_j: F64
    runtime_s: F64
    accuracy: F64

    @classmethod
    def of(cls, models: Sequence[WorkloadModel], scores: F64, prompt: Tokens, output: Tokens) -> Batch:
        """Evaluates the models on queries."""
        energy_j = np.stack([model.energy_j(prompt, output) for model in models], axis=1)
        runtime_s = np.stack([model.runtime_s(prompt, output) for model in models], axis=1)
        tokens = np.asarray(prompt, np.float64) + np.asarray(output, np.float64)
        return cls(prompt, output, energy_j, runtime_s, scores * tokens[:, None])

    def __len__(self) -> int:
        """Number of queries."""
        return len(self.prompt)

    def cost(self, zeta: float) -> F64:
        """The paper's objective of each query on each model."""
        return mixed_cost(self.energy_j, self.accuracy, zeta)


@dataclass(frozen=True)
class Outcome:
    """What an assignment of a batch comes to.

    Attributes:
        policy: Its name.
        zeta: The knob; ``nan`` where there is none.
        energy_kwh: Energy of all queries.
        accuracy: Mean score, weighed by tokens.
        runtime_s: Mean runtime of a query.
        shares: Share of the queries that each model serves (K,).
    """

    policy: str
    zeta: float
    energy_kwh: float
    accuracy: float
    runtime_s: float
    shares: tuple[float, ...]

    @classmethod
    def of(cls, batch: Batch, served: F64, policy: str, zeta: float = float("nan")) -> Outcome:
        """Scores an assignment (Q, K)."""
        return cls(
            policy,
            zeta,
            float((batch.energy_j * served).sum()) / J_PER_KWH,
            float((batch.accuracy * served).sum()) / float((batch.prompt + batch.output).sum()),
            float((batch.runtime_s * served).sum()) / len(batch),
            tuple((served.sum(axis=0) / len(batch)).tolist()),
        )


def one_hot(chosen: NDArray[np.integer[Any]], options: int) -> F64:
    """Choices (Q,) as an assignment (Q, K)."""
    return np.asarray(np.eye(options)[chosen])


def plain(batch: Batch, names: Sequence[str], gamma: F64, rng: np.random.Generator) -> list[Outcome]:
    """Round robin, random, random in the shares γ, and each model alone."""
    options, turns = len(names), np.arange(len(batch))
    by_share = rng.permutation(np.repeat(np.arange(options), np.rint(gamma * len(batch)).astype(int))[: len(batch)])
    by_share = np.append(by_share, np.full(len(batch) - len(by_share), options - 1))
    return [
        Outcome.of(batch, one_hot(turns % options, options), "round robin"),
        Outcome.of(batch, one_hot(rng.integers(options, size=len(batch)), options), "random"),
        Outcome.of(batch, one_hot(by_share, options), "random, shares γ"),
        *(Outcome.of(batch, one_hot(turns * 0 + k, options), f"{name} alone") for k, name in enumerate(names)),
    ]


def offline(batch: Batch, zeta: float, shares: Shares) -> Assignment:
    """The assignment by one who knows all output lengths."""
    return assign(batch.cost(zeta), np.ones(len(batch)), shares)


def online(past: Batch, batch: Batch, models: Sequence[WorkloadModel], scores: F64, zeta: float, shares: Shares) -> F64:
    """The rule for single queries: lengths predicted from the past, prices from an assignment of it (Q, K)."""
    scale = len(past) / len(batch)
    learnt = offline(past, zeta, Shares(np.floor(shares.low * scale), np.ceil(shares.high * scale)))
    lengths = OutputLengths(past.prompt, past.output)
    foreseen = Batch.of(models, scores, batch.prompt, np.maximum(np.rint(lengths(batch.prompt)), 1).astype(np.int64))
    scaled = zeta * foreseen.energy_j / np.ptp(past.energy_j) - (1 - zeta) * foreseen.accuracy / np.ptp(past.accuracy)
    rule = PricedDispatch(learnt.price, shares, len(batch), PRICE_STEP)
    return one_hot(np.array([rule.choose(cost) for cost in scaled]), len(models))


def zeta_for(batch: Batch, accuracy: float, shares: Shares, rounds: int = 9) -> tuple[float, Assignment]:
    """The largest knob, by bisection, at which the mean accuracy is still as high, and its assignment."""
    low, high = 0.0, 1.0
    best = offline(batch, low, shares)
    for _ in range(rounds):
        middle = (low + high) / 2
        found = offline(batch, middle, shares)
        if Outcome.of(batch, found.served, "").accuracy >= accuracy:
            low, best = middle, found
        else:
            high = middle
    return low, best


def saving(batch: Batch, served: F64, other: F64, rng: np.random.Generator, resamples: int = 1000) -> F64:
    """Energy that one assignment saves relative to another, in resamples of the queries (resamples,)."""
    mine, theirs = ((batch.energy_j * one).sum(axis=1) for one in (served, other))
    drawn = rng.integers(len(batch), size=(resamples, len(batch)))
    return np.asarray(1 - mine[drawn].sum(axis=1) / theirs[drawn].sum(axis=1))
