"""Agents that route and place by head-room in power: what is metered, or what is forecast."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..envs.actions import NOWHERE, ClusterAction
from ..envs.telemetry import LEAD_TIMES_S
from .base import Heuristic, Task, View
from .budget_caps import QUANTILES_AHEAD
from .limits import row_limits
from .static import all_on, places

F64 = NDArray[np.float64]


class Headroom(Heuristic):
    """All slots on, no caps; requests and new instances go where most power is left, in the slot and in its row.

    Args:
        task: What may be known beforehand.
    """

    ahead_s = 0

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._all_on = all_on(task, "least-outstanding")
        self._row = np.array([slot.row for slot in task.blueprint.slots])
        self._row_tdp_w = np.bincount(self._row, task.fleet.cap_max_w)
        self._least = 1 / (task.codec.steps - 1)

    def expected_w(self, view: View) -> F64:
        """Power that each slot is taken to draw, watts (R,): what it drew last."""
        return view.slot("power")

    def room(self, view: View) -> F64:
        """Share of its TDP that is left to each slot, or of its row's to the row where that is less (R,)."""
        expected_w, limit_w = self.expected_w(view), self._row_tdp_w.copy()
        for limit in row_limits(self.task, view, self.ahead_s):
            limit_w[self._row[limit.slots]] = limit.watts
        of_row = (limit_w - np.bincount(self._row, expected_w, len(limit_w))) / np.maximum(self._row_tdp_w, 1.0)
        return np.asarray(np.minimum(1 - expected_w / self.task.fleet.cap_max_w, of_row[self._row]))

    def decide(self, view: View) -> ClusterAction:
        """Weights and a place; see :class:`Heuristic`."""
        room, free = self.room(view), places(self.task, view)
        serving = view.slot("is_serving") > 0
        most = float(room[serving].max(initial=0.0))
        weight = np.where(serving & (most > 0), (room / max(most, self._least)).clip(self._least, 1.0), 1.0)
        place = int(np.where(free, room, -np.inf).argmax()) if free.any() else NOWHERE
        return replace(self._all_on, route_weight=weight, place=place)


class ForecastHeadroom(Headroom):
    """Head-room by the highest 90 % quantile forecast for the next minute, and the lowest limit announced for it.

    So load moves, and instances go elsewhere, before a slot or a row is short of power. Without a forecast it goes by
    what is metered.
    """

    ahead_s = LEAD_TIMES_S[-1]

    def expected_w(self, view: View) -> F64:
        """Power that each slot is taken to draw, watts (R,): what it seldom exceeds in the next minute."""
        ahead_w = np.max([view.forecast_w(name)[:-1] for name in QUANTILES_AHEAD], axis=0)
        return np.asarray(ahead_w) if ahead_w.any() else super().expected_w(view)
