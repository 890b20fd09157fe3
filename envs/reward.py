"""The reward as named terms; each is about 1 at full load, its weight comes from the scenario."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..simulator.signals import SignalSpec
from ..simulator.units import J_PER_KWH
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
    """Mean overshoot of the power budget and of the rows' limits, relative to all TDPs; a cost."""
    return -(outcome.over_budget_j + sum(outcome.over_rows_j)) / (tdp_w * scenario.tick_s)


def pending(outcome: TickOutcome, scenario: Scenario, tdp_w: float) -> float:
    """Instances that wait for a slot; a cost."""
    return -float(outcome.pending_instances)


def cost(outcome: TickOutcome, scenario: Scenario, tdp_w: float) -> float:
    """Price of the energy, relative to all GPUs at TDP and the mean price; a cost."""
    return -_relative(outcome.energy_cost, scenario.grid.price_per_kwh, tdp_w * scenario.tick_s)


def carbon(outcome: TickOutcome, scenario: Scenario, tdp_w: float) -> float:
    """CO₂ of the energy, relative to all GPUs at TDP and the mean carbon intensity; a cost."""
    return -_relative(outcome.carbon_g, scenario.grid.carbon_g_per_kwh, tdp_w * scenario.tick_s)


def _relative(amount: float, per_kwh: SignalSpec | None, energy_j: float) -> float:
    return 0.0 if per_kwh is None else amount / (per_kwh.scale * energy_j / J_PER_KWH)


TERMS: Mapping[str, RewardTerm] = {
    "energy": energy,
    "tokens": tokens,
    "slo": slo,
    "budget": budget,
    "pending": pending,
    "cost": cost,
    "carbon": carbon,
}


def reward_terms(outcome: TickOutcome, scenario: Scenario, tdp_w: float) -> dict[str, float]:
    """Every term times its weight."""
    return {name: getattr(scenario.reward, name) * term(outcome, scenario, tdp_w) for name, term in TERMS.items()}
