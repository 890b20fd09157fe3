"""The reward as named terms; each is about 1 at full load, its weight comes from the scenario."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .plant import TickOutcome
from .scenario import Scenario

RewardTerm = Callable[[TickOutcome, Scenario, float], float]
"""Takes the outcome of a tick, the scenario and the sum of all TDPs in watts."""


def energy(outcome: TickOutcome, scenario: Scenario, tdp_w: float) -> float:
    """Energy of the tick, relative to all GPUs at TDP; a cost."""
    return -outcome.energy_j / (tdp_w * scenario.tick_s)


def tokens(outcome: TickOutcome, scenario: Scenario, tdp_w: float) -> float:
    """Output tokens of requests that met their SLO, relative to the scenario's reference rate."""
    reference = scenario.reward.requests_per_s * scenario.reward.tokens_per_request * scenario.tick_s
    return outcome.good_tokens / reference


def slo(outcome: TickOutcome, scenario: Scenario, tdp_w: float) -> float:
    """Requests that missed their SLO, relative to the scenario's reference rate; a cost."""
    return -(outcome.misses + outcome.overdue) / (scenario.reward.requests_per_s * scenario.tick_s)


def budget(outcome: TickOutcome, scenario: Scenario, tdp_w: float) -> float:
    """Mean overshoot of the power budget, relative to all TDPs; a cost."""
    return -outcome.over_budget_j / (tdp_w * scenario.tick_s)


def pending(outcome: TickOutcome, scenario: Scenario, tdp_w: float) -> float:
    """Instances that wait for a slot; a cost."""
    return -float(outcome.pending_instances)


TERMS: Mapping[str, RewardTerm] = {
    "energy": energy,
    "tokens": tokens,
    "slo": slo,
    "budget": budget,
    "pending": pending,
}


def reward_terms(outcome: TickOutcome, scenario: Scenario, tdp_w: float) -> dict[str, float]:
    """Every term times its weight."""
    return {name: getattr(scenario.reward, name) * term(outcome, scenario, tdp_w) for name, term in TERMS.items()}
