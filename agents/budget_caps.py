"""Agents that leave every slot on and share the power budget out as caps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..envs.actions import ClusterAction
from ..envs.observation import BACKLOG_SCALE
from ..envs.telemetry import LEAD_TIMES_S
from .base import Heuristic, Task, View
from .limits import beside_w, deal, known_limits, uncappable, unheld_w
from .static import all_on, first_fit

QUANTILES_AHEAD = ("point_30s_q0.9", "point_60s_q0.9", "mean_30s_q0.9", "mean_60s_q0.9")


class ProportionalCap(Heuristic):
    """All slots on; the budget that holds now is shared out as caps, in proportion to the requests on each slot.

    Args:
        task: What may be known beforehand.
    """

    ahead_s = 0

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._all_on = all_on(task, "least-outstanding")

    def demand(self, view: View) -> NDArray[np.float64]:
        """By which the budget is shared (R,): requests in the batch and in the queue."""
        waiting = BACKLOG_SCALE * (np.exp2(view.slot("waiting")) - 1)
        return view.slot("running") + waiting + 1.0

    def decide(self, view: View) -> ClusterAction:
        """Caps by demand; see :class:`Heuristic`."""
        task, fleet = self.task, self.task.fleet
        on = ~uncappable(task, view)
        beside = beside_w(task, view, on)
        limits = known_limits(task, view, self.ahead_s)
        spare_w = max(limits[0].watts - float(beside.sum() + fleet.cap_min_w[on].sum()), 0.0)
        share = np.where(on, self.demand(view), 0.0)
        want_w = fleet.cap_min_w + spare_w * share / max(float(share.sum()), 1e-9)
        caps_w = deal(task, on, want_w, unheld_w(view), beside, limits)
        return replace(self._all_on, cap_w=caps_w, place=first_fit(task, view))


class ForecastCap(ProportionalCap):
    """All slots on; the lowest budget of the next minute is shared out as caps by the power forecast of each slot.

    It acts on the highest 90 % quantile of the next minute, above what a slot draws at the lowest cap, so that what is
    about to be busy has its power before it is. Without a forecast it goes by the power that is metered now.
    """

    ahead_s = LEAD_TIMES_S[-1]

    def demand(self, view: View) -> NDArray[np.float64]:
        """By which the budget is shared (R,): watts that the forecast has above the lowest cap."""
        ahead_w = np.max([view.forecast_w(name)[:-1] for name in QUANTILES_AHEAD], axis=0)
        power_w = ahead_w if ahead_w.any() else view.slot("power")
        return np.clip(power_w - self.task.fleet.cap_min_w, 1.0, None)
