"""PALS with foresight: budgets that have been announced, and power that is forecast."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...envs.telemetry import LEAD_TIMES_S
from ..base import Task, View
from .controller import Pals

FORECAST = "mean_30s_q0.5"
"""Forecast of each slot's power that it makes ready for: within that time a cap takes hold and a queue drains."""
MOST = 1.5
"""It makes ready for so many times the traffic of now at most."""


class PalsForecast(Pals):
    """PALS that does not wait for the budget to fall or the traffic to rise.

    The paper names it as a limit of PALS that it "cannot anticipate sudden load changes" (section 6). This one keeps
    what is announced of the site's budget until its next decision, and is ready for as much more traffic as the power
    forecast for the next half minute lies above that of now, both over idle. Without a forecast it reacts to traffic as
    PALS does. Arguments are those of :class:`Pals`.
    """

    def __init__(self, task: Task, **options: Any) -> None:
        super().__init__(task, **options)
        deployments = task.blueprint.deployments
        self._idle_w = np.array([deployments[d].power.idle_w for d in task.blueprint.initial])

    def site_budget_w(self, view: View) -> float:
        """The lowest that is announced until the next tick, taken to change evenly between announcements, watts."""
        announced_w = [view.cluster(f"budget_in_{lead}s") for lead in LEAD_TIMES_S]
        until_s = self.task.scenario.tick_s
        passed_w = [watts for lead, watts in zip(LEAD_TIMES_S, announced_w, strict=True) if lead <= until_s]
        return float(min(*passed_w, np.interp(until_s, LEAD_TIMES_S, announced_w)))

    def growth(self, view: View) -> float:
        """Forecast power of the slots that serve, over idle, as a multiple of that of now; at least 1."""
        serves = view.slot("is_serving") > 0
        forecast_w, now_w = view.forecast_w(FORECAST)[:-1][serves].sum(), view.slot("power")[serves].sum()
        idle_w = self._idle_w[serves].sum()
        if now_w <= idle_w:
            return 1.0
        return float(np.clip((forecast_w - idle_w) / (now_w - idle_w), 1.0, MOST))
