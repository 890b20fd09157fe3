"""What no server tells: the budget, rows and breakers, weather and prices."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..envs.scenario import Scenario
from ..envs.telemetry import LEAD_TIMES_S
from ..simulator.blueprint import Blueprint
from ..simulator.limits import Feeds, RowLimits
from ..simulator.protection import Protection
from .config import LimitsConfig, SiteConfig
from .fallback import Trouble
from .readings import ReadingError
from .site import Source, SourceSpec

F64 = NDArray[np.float64]
OF_ALL = ("outside_c", "price_per_kwh", "carbon_g_per_kwh")


class Surroundings:
    """Budget, head-room of rows, heat of breakers, weather and prices, as telemetry has them.

    Limits of rows are the scenario's: no meter tells of a feed that fails. Breakers are followed by the simulator's own
    law from measured power.

    Args:
        scenario: The scenario.
        blueprint: Its cluster.
        limits: Where the budget comes from.
        site: Where the rest comes from.
        stale_s: A file that cannot be read keeps its value for so long.
        clock: Monotonic seconds.

    Attributes:
        troubles: What could not be read at the last call.
    """

    def __init__(
        self,
        scenario: Scenario,
        blueprint: Blueprint,
        limits: LimitsConfig,
        site: SiteConfig,
        stale_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stale_s, self._clock = stale_s, clock
        tdp_w, row = blueprint.cap_max_w, np.array([s.row for s in blueprint.slots])
        rows = len(scenario.cluster.rows)
        feeds = Feeds.of(scenario.cluster, np.arange(rows)[:, None] == row, tdp_w)
        self._rows = RowLimits(feeds.rows, row, tdp_w)
        self._protection = Protection(blueprint.spec, blueprint.slots, tdp_w, feeds)
        self._seconds, self._slots = 0, len(tdp_w)
        budget = limits.budget_w or SourceSpec(value=float(tdp_w.sum()))
        given = {"budget": budget, **{name: spec for name, spec in site if spec is not None}}
        self._sources = {name: Source(spec, clock) for name, spec in given.items()}
        self._held: dict[str, tuple[float, F64]] = {}
        self._lowest_w = budget.lowest if budget.lowest is not None else float("inf")
        self._faults: dict[str, Trouble] = {}
        self._said_none = float(tdp_w.sum())

    @property
    def troubles(self) -> tuple[Trouble, ...]:
        """What could not be read at the last call."""
        return tuple(self._faults.values())

    def budget_w(self) -> F64:
        """The budget now, in 30 s and in 60 s, watts (3,); the lowest there has been where it cannot be read."""
        told_w = self._read("budget")
        if told_w is None or "budget" in self._faults:
            lowest_w = self._lowest_w if np.isfinite(self._lowest_w) else self._said_none
            return np.full(len(LEAD_TIMES_S), lowest_w)
        self._lowest_w = min(self._lowest_w, float(told_w.min()))
        return told_w

    def dip_w(self, ahead_s: float) -> float:
        """The lowest budget that is scheduled within some seconds, watts; infinite where none is."""
        return self._sources["budget"].dip(ahead_s)

    def carry(self, power_w: F64) -> None:
        """Lets breakers carry a second's power of each slot, watts (R,)."""
        self._protection.look(self._seconds, power_w)
        self._seconds += 1

    def read(self, power_w: F64) -> dict[str, Any]:
        """The rest of telemetry by field.

        Args:
            power_w: Power of each slot now, watts (R,).
        """
        now_s = float(self._seconds)
        found: dict[str, Any] = {name: self._read(name) for name in OF_ALL}
        inlet_c = self._read("inlet_c")
        found["inlet_c"] = None if inlet_c is None else np.full(self._slots, inlet_c[0])
        headroom = self._rows.headroom_w(power_w, now_s, LEAD_TIMES_S) if self._rows.rows else None
        heat = {f"{level}_breaker": self._protection.heat(level) for level in ("rack", "row")}
        return {**found, "row_headroom_w": headroom, **heat}

    def _read(self, name: str) -> F64 | None:
        """What a source says, or said last; `None` where there is none, or it has never said anything."""
        if name not in self._sources:
            return None
        now_s = self._clock()
        try:
            value = self._sources[name].read()
        except ReadingError as fault:
            at_s, held = self._held.get(name, (-np.inf, None))
            if name != "budget" or now_s - at_s > self._stale_s:
                self._faults[name] = Trouble("budget" if name == "budget" else "site", name, str(fault))
            return held
        self._faults.pop(name, None)
        self._held[name] = now_s, value
        return value
