"""TAPAS: thermal- and power-aware scheduling (Stojkovic et al., ASPLOS 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...envs.actions import NOWHERE, ClusterAction
from ..base import Heuristic, Task, View
from ..static import first_fit, targets
from .allowance import CAPPED, ROUTED, domains, within
from .history import History, profiled
from .outlook import Forecaster, Outlook
from .placement import best_slot
from .reading import F64
from .reconfiguration import Variants, caps, in_flight
from .routing import weights

FORECAST = "point_30s_q0.5", "point_30s_q0.9"
"""The forecasts that the proactive version acts on: what is as likely passed as not, and what seldom is."""


Part = Literal["place", "route", "reconfigure"]
PARTS: tuple[Part, ...] = ("place", "route", "reconfigure")


ROUTER = "prefix-affinity"
"""Of the slots that their weights leave open, the one whose cache knows most of the prompt, unless it is far beyond its
share; where the scenario does not offer that router, least-outstanding stands in for it."""


class Tapas(Heuristic):
    """Places, routes and reconfigures by predicted temperature, power and airflow head-room.

    What is said of the paper here and beside follows its abstract and published summaries.

    Every slot serves. In each tick routing moves load from slots that would run hot, or whose row or site is short of
    power or air, to those with room; what is left over the limits then is capped. Temperatures are predicted by
    regressions of telemetry: see ``regression.py``.

    Args:
        task: What may be known beforehand.
        history: Telemetry of earlier runs; by default that of a profiling run.
        parts: What it does of all this; the rest is done as if nothing were known of heat and power.
    """

    def __init__(self, task: Task, history: History | None = None, parts: Sequence[Part] = PARTS) -> None:
        super().__init__(task)
        self._parts = parts
        self.forecaster = Forecaster(task, profiled(task) if history is None else history)
        self._lifecycle = targets(task, np.ones(len(task.fleet), bool))
        self._idle_w = np.array([task.blueprint.deployments[d].power.idle_w for d in task.blueprint.initial])
        self._weights: dict[int, F64] = {}
        self._variants: dict[int, Variants] = {}

    def forget(self, row: int) -> None:
        """Forgets the last episode of one row of a batch."""
        self.forecaster.forget(row)
        self._weights.pop(row, None)
        self._variants.pop(row, None)

    def expected_w(self, view: View) -> F64 | None:
        """Power that each slot is expected to draw, watts (R,); by default what it drew last and a reserve."""
        return None

    def decide(self, view: View) -> ClusterAction:
        """Weights, caps and a place; see :class:`Heuristic`."""
        outlook = self.forecaster.look(view, self.expected_w(view))
        now, size = outlook.reading, len(self.task.fleet)
        steered = now.serving
        soft = domains(self.task, outlook, steered, ROUTED, air=True)
        hard = domains(self.task, outlook, steered, CAPPED, air=False)
        tdp_w = self.task.fleet.cap_max_w
        even_w = np.full(size, float(now.power_w[steered].mean()) if steered.any() else 0.0)
        room_w = within(even_w, np.zeros(size), np.minimum(ROUTED * outlook.thermal_w, tdp_w).clip(min=0), soft)
        last = self._weights.get(view.row, np.ones(size))
        weight = weights(outlook.need_w, room_w, self._idle_w, steered, last)
        self._weights[view.row] = weight
        action = ClusterAction(
            router=ROUTER,
            route_weight=weight if "route" in self._parts else np.ones(size),
            cap_w=tdp_w,
            lifecycle=self._lifecycle,
            place=self._place(view, outlook) if "place" in self._parts else first_fit(self.task, view),
        )
        if "reconfigure" not in self._parts:
            return action
        cap_w = caps(self.task, outlook.need_w, outlook.thermal_w, hard, steered)
        granted_w = np.minimum(cap_w, np.maximum(outlook.thermal_w, 0.0))
        return replace(
            action,
            cap_w=cap_w,
            concurrency=in_flight(self.task, outlook, room_w, self._idle_w),
            variant=self._variant(view.row, outlook, granted_w),
        )

    def _variant(self, row: int, outlook: Outlook, granted_w: F64) -> NDArray[np.int64] | None:
        if "reconfigure" not in self.task.codec.groups:
            return None
        if row not in self._variants:
            self._variants[row] = Variants(self.task, self._idle_w)
        return self._variants[row].choose(outlook, granted_w)

    def _place(self, view: View, outlook: Outlook) -> int:
        """The slot for what waits for one, if anything does and there is one."""
        task, free = self.task, outlook.reading.free
        pending = [view.cluster(f"pending_model_{name}") > 0 for name in task.fleet.models]
        tenant = task.scenario.tenants is not None and view.cluster("pending_tenant") > 0
        if any(pending):
            free = free & task.fleet.fits[:, pending.index(True)]
        if not (any(pending) or tenant) or not free.any():
            return NOWHERE
        return best_slot(self.forecaster, outlook, np.flatnonzero(free), tenant=tenant)


class ForecastTapas(Tapas):
    """TAPAS by the power that is forecast, with its own reserve, in place of the last reading and the history's.

    Slots are seldom all at their upper quantile at once: taken for independent of one another, those of a row exceed
    their medians together by the root of the sum of squares, of which each bears its part.
    """

    def expected_w(self, view: View) -> F64 | None:
        """The forecast; none before its first reading, or where the scenario has no forecaster."""
        middle_w, high_w = (view.forecast_w(name)[:-1] for name in FORECAST)
        if not middle_w.any():
            return None
        row, squares = self.forecaster.row, (high_w - middle_w).clip(min=0) ** 2
        together_w = np.sqrt(np.bincount(row, weights=squares))[row]
        expected_w: F64 = middle_w + squares / np.maximum(together_w, 1e-9)
        return expected_w
