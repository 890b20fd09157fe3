"""What the world does in one run: everything that happens whatever the agent does, drawn beforehand as signals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..simulator.blueprint import Blueprint
from ..simulator.limits import Cut, Feeds, PowerLimit, RowLimits, outage
from ..simulator.signals import PiecewiseLinear, SignalSpec, random_holds, through
from .scenario import Scenario
from .telemetry import LEAD_TIMES_S
from .world_spec import EventSpec, Span


@dataclass(frozen=True, eq=False)
class World:
    """The signals of one run.

    Attributes:
        budget: Power limit of the site.
        rows: Power limits of the rows.
        feeds: The same, and the ratings of the rows' breakers.
        airflow: Shares that each row's airflow is multiplied with, one for each event that befalls it.
        outside_c: Outside temperature, °C, where it matters.
        price_per_kwh: Price of electricity, where there is one.
        carbon_g_per_kwh: Its carbon intensity, where it counts.
    """

    budget: PowerLimit
    rows: RowLimits
    feeds: Feeds
    airflow: tuple[tuple[PiecewiseLinear, ...], ...]
    outside_c: PiecewiseLinear | None
    price_per_kwh: PiecewiseLinear | None
    carbon_g_per_kwh: PiecewiseLinear | None


def draw_world(
    scenario: Scenario, blueprint: Blueprint, budget_rng: np.random.Generator, rng: np.random.Generator
) -> World:
    """Draws the world of one run.

    Args:
        scenario: The scenario.
        blueprint: Its cluster.
        budget_rng: Source of the budget's own moves.
        rng: Source of everything else; the time of day, and for each signal and event a child.

    Returns:
        The signals.
    """
    duration_s = scenario.horizon_s + LEAD_TIMES_S[-1]
    children = iter(rng.spawn(3 + len(scenario.events)))

    clock = float(rng.random())

    def drawn(spec: SignalSpec | None) -> PiecewiseLinear | None:
        child = next(children)
        return None if spec is None else spec.draw(duration_s, child, clock)

    outside_c, price = drawn(scenario.outside_c), drawn(scenario.grid.price_per_kwh)
    carbon = drawn(scenario.grid.carbon_g_per_kwh)
    site_cuts: list[Cut] = []
    row_cuts: list[list[Cut]] = [[] for _ in scenario.cluster.rows]
    airflow: list[list[PiecewiseLinear]] = [[] for _ in scenario.cluster.rows]
    for event in scenario.events:
        loss, row = _happening(event, len(row_cuts), next(children))
        befallen = range(len(row_cuts)) if row is None else (row,)
        if event.kind == "cooling-failure":
            for i in befallen:
                airflow[i].append(loss.left)
        elif row is None:
            site_cuts.append(loss)
        else:
            row_cuts[row].append(loss)
    tdp_w, row_of = blueprint.cap_max_w, np.array([s.row for s in blueprint.slots])
    planned_w = _budget_w(scenario, float(tdp_w.sum()), duration_s, budget_rng)
    usual = Feeds.of(scenario.cluster, np.arange(len(row_cuts))[:, None] == row_of, tdp_w)

    def cut(limits: tuple[PowerLimit | None, ...]) -> tuple[PowerLimit | None, ...]:
        return tuple(limit and PowerLimit(limit.planned_w, tuple(row_cuts[i])) for i, limit in enumerate(limits))

    site = PowerLimit(planned_w, tuple(site_cuts))
    feeds = Feeds(cut(usual.rows), cut(usual.breakers), site)
    return World(
        budget=site,
        rows=RowLimits(feeds.rows, row_of, tdp_w),
        feeds=feeds,
        airflow=tuple(tuple(shares) for shares in airflow),
        outside_c=outside_c,
        price_per_kwh=price,
        carbon_g_per_kwh=carbon,
    )


def _budget_w(scenario: Scenario, tdp_w: float, duration_s: float, rng: np.random.Generator) -> PiecewiseLinear:
    budget = scenario.budget
    if budget.schedule:
        return through(tuple((time_s, share * tdp_w) for time_s, share in budget.schedule))
    levels_w = tuple(level * tdp_w for level in budget.levels)
    return random_holds(rng, duration_s, levels_w, budget.mean_hold_s, budget.ramp_s)


def _happening(event: EventSpec, rows: int, rng: np.random.Generator) -> tuple[Cut, int | None]:
    """When an event happens in this run, and to which row."""
    start_s, duration_s = _draw(event.at_s, rng), _draw(event.duration_s, rng)
    row = int(rng.integers(rows)) if event.row == "random" else event.row
    left = outage(start_s, duration_s, event.severity, event.ramp_s)
    return (Cut(left, start_s - event.notice_s) if event.kind == "demand-response" else Cut(left)), row


def _draw(span: Span, rng: np.random.Generator) -> float:
    return float(rng.uniform(*span)) if isinstance(span, tuple) else span
