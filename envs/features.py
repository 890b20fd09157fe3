"""What an observation is made of: named numbers, and those that only some scenarios have."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..simulator.kernels.state import FAILED, TENANT
from ..simulator.signals import SignalSpec
from .scenario import Scenario
from .telemetry import LEAD_TIMES_S, TENANT_ASKS, Fleet, Telemetry

TEMPERATURE_C = (30.0, 60.0)
"""Temperatures are shown as (reading - first) / second."""


@dataclass(frozen=True)
class Feature:
    """One number of the observation.

    Attributes:
        name: Public name.
        unit: Unit of the reading; empty if it has none.
        scale: What the reading is divided by; ``nan`` where it differs by slot (power: the slot's TDP).
    """

    name: str
    unit: str
    scale: float = 1.0


Reading = NDArray[np.float64] | float


@dataclass(frozen=True)
class Sense:
    """Features that a scenario adds to every observation.

    Attributes:
        features: The features.
        read: Takes the telemetry; gives a reading for each feature: a number of the cluster, or one per slot.
    """

    features: tuple[Feature, ...]
    read: Callable[[Telemetry], Iterable[Reading]]


@dataclass(frozen=True)
class Senses:
    """What a scenario adds, by place in the observation.

    Attributes:
        slots: Of each slot.
        cluster: Of the cluster.
    """

    slots: tuple[Sense, ...] = ()
    cluster: tuple[Sense, ...] = ()


def senses_of(scenario: Scenario, fleet: Fleet) -> Senses:
    """The features that a scenario has beyond those that all have."""
    slots: list[Sense] = []
    cluster: list[Sense] = []
    rows, grid, groups = scenario.cluster.rows, scenario.grid, scenario.actions.groups
    protection = _protection(scenario)
    if scenario.faults or protection or scenario.budget.shed:
        slots.append(Sense((Feature("is_failed", ""),), lambda now: [(now.status == FAILED).astype(np.float64)]))
    if scenario.tenants is not None:
        slots.append(Sense((Feature("is_tenant", ""),), lambda now: [(now.status == TENANT).astype(np.float64)]))
        cluster.append(Sense((Feature("pending_tenant", ""),), lambda now: [float(now.pending_model == TENANT_ASKS)]))
    if scenario.outside_c is not None or any(row.airflow_m3_per_s for row in rows):
        inlet = Feature("inlet", "°C - 30", TEMPERATURE_C[1])
        slots.append(Sense((inlet,), lambda now: [_there(now.inlet_c) - TEMPERATURE_C[0]]))
    if any(row.power_limit_share for row in rows):
        total_w = float(fleet.cap_max_w.sum())
        ahead = tuple(Feature(f"row_headroom_in_{lead}s", "W", total_w) for lead in LEAD_TIMES_S)
        slots.append(Sense(ahead, lambda now: _there(now.row_headroom_w)))
    slots += protection
    if "concurrency" in groups:
        limit = Feature("in_flight_limit", "requests", float(fleet.max_num_seqs))
        slots.append(Sense((limit,), lambda now: [_there(now.in_flight_limit)]))
    if "reconfigure" in groups:
        slots.append(_variants(fleet))
    if (outside := scenario.outside_c) is not None:
        warmth = _ahead("outside", "°C - 30", TEMPERATURE_C[1], outside)
        cluster.append(Sense(warmth, lambda now: _there(now.outside_c)[: len(warmth)] - TEMPERATURE_C[0]))
    if (price := grid.price_per_kwh) is not None:
        prices = _ahead("price", "per kWh", price.scale, price)
        cluster.append(Sense(prices, lambda now: _there(now.price_per_kwh)[: len(prices)]))
    if (carbon := grid.carbon_g_per_kwh) is not None:
        grams = _ahead("carbon", "g/kWh", carbon.scale, carbon)
        cluster.append(Sense(grams, lambda now: _there(now.carbon_g_per_kwh)[: len(grams)]))
    return Senses(tuple(slots), tuple(cluster))


def _protection(scenario: Scenario) -> list[Sense]:
    """How near breakers are to a trip, and who is under a brake."""
    rows, found = scenario.cluster.rows, []
    racks = [rack for row in rows for rack in row.racks]
    if any(rack.breaker for rack in racks):
        found.append(Sense((Feature("rack_breaker", ""),), lambda now: [_there(now.rack_breaker)]))
    if any(row.breaker for row in rows):
        found.append(Sense((Feature("row_breaker", ""),), lambda now: [_there(now.row_breaker)]))
    if any(row.brake for row in rows) or any(s.power_limit_share for rack in racks for s in rack.servers):
        found.append(Sense((Feature("is_braked", ""),), lambda now: [np.asarray(now.braked, np.float64)]))
    return found


def _variants(fleet: Fleet) -> Sense:
    """Which variant each slot holds, of all that there are, and its score, 0 where none is known."""
    names = tuple(dict.fromkeys(name for own in fleet.variants for name in own[1:]))
    place = [np.array([-1, *(names.index(name) for name in own[1:])]) for own in fleet.variants]
    score = [np.nan_to_num(own) for own in fleet.quality]

    def read(now: Telemetry) -> list[Reading]:
        assert now.variant is not None, "the plant does not read what its scenario has"
        held = np.array([own[v] for own, v in zip(place, now.variant, strict=True)])
        quality = np.array([own[v] for own, v in zip(score, now.variant, strict=True)])
        return [*(np.asarray(held == i, np.float64) for i in range(len(names))), quality]

    return Sense((*(Feature(f"variant_{name}", "") for name in names), Feature("quality", "")), read)


def _ahead(name: str, unit: str, scale: float, spec: SignalSpec) -> tuple[Feature, ...]:
    """A feature for each lead time, or for now alone where nothing is announced."""
    leads = LEAD_TIMES_S if spec.announced else LEAD_TIMES_S[:1]
    return tuple(Feature(f"{name}_in_{lead}s", unit, scale) for lead in leads)


def _there(reading: NDArray[np.float64] | None) -> NDArray[np.float64]:
    assert reading is not None, "the plant does not read what its scenario has"
    return reading
