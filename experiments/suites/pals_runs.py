"""What the claims of PALS are measured by: throughput, power and budget, second by second."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...agents.base import Agent
from ...envs.cluster_env import LLMClusterEnv
from ...simulator.metrics import Summary
from ..rollout import play

F64 = NDArray[np.float64]

WARM_UP_S = 60
WINDOW_S = 10
"""Time over which throughput is held against its target."""


@dataclass(frozen=True, eq=False)
class Run:
    """One agent on one episode, after the warm-up.

    Attributes:
        summary: Its summary.
        tokens_per_s: Output tokens of each second and model (S, M).
        power_w: Power of each second (S,).
        budget_w: Budget of each second (S,).
        tdp_w: Highest power limit of all GPUs together.
    """

    summary: Summary
    tokens_per_s: F64
    power_w: F64
    budget_w: F64
    tdp_w: float

    @property
    def tokens_per_j(self) -> float:
        """Output tokens generated per joule."""
        return float(self.tokens_per_s.sum() / self.power_w.sum())

    def violations(self, target_tokens_per_s: F64) -> F64:
        """Share of the windows in which each model falls short of its target (M,); section 4.4."""
        whole = len(self.tokens_per_s) // WINDOW_S * WINDOW_S
        windows = self.tokens_per_s[:whole].reshape(-1, WINDOW_S, self.tokens_per_s.shape[1]).mean(axis=1)
        return np.asarray((windows < target_tokens_per_s).mean(axis=0))

    def tokens_at(self, share: float) -> float:
        """Mean throughput while the budget is below a share of the highest power there may be, tokens per second."""
        return float(self.tokens_per_s[self.budget_w < share * self.tdp_w].sum(axis=1).mean())

    @property
    def tracking_error(self) -> float:
        """Root mean square of power less budget, as a share of the mean budget."""
        return float(np.sqrt(np.square(self.power_w - self.budget_w).mean()) / self.budget_w.mean())


def played(env: LLMClusterEnv, agent: Agent, seed: int, *, drain: bool) -> Run:
    """Plays an episode and keeps what it was like by the second."""
    summary = play(env, agent, "", seed, WARM_UP_S, drain=drain).summary
    assert env.plant is not None
    history, blueprint = env.plant.cluster.history, env.blueprint
    until_s = env.scenario.horizon_s
    model = np.array([blueprint.deployments[d].model for d in blueprint.initial])
    tokens = history.column("output_tokens")[WARM_UP_S:until_s]
    by_model = np.stack([tokens[:, model == m].sum(axis=1) for m in range(len(blueprint.models))], axis=1)
    power_w = history.column("energy_j")[WARM_UP_S:until_s].sum(axis=1)
    budget_w = env.plant.budget.at(np.arange(WARM_UP_S, until_s))
    return Run(summary, by_model, power_w, budget_w, float(env.fleet.cap_max_w.sum()))
