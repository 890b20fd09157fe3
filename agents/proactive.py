"""An agent that scales by power: that of now, or of the next half minute where there is a forecast."""

from __future__ import annotations

import numpy as np

from .base import Agent, Task, View
from .scaling import FollowLoad

FORECAST = "mean_30s_q0.5"
"""The forecast it acts on: a slot that is woken now serves within that time."""
TARGET_SHARES = (0.4, 0.6, 0.8, 0.9, 0.95, 1.0)
PATIENCES = (1, 3)


class FollowPower(FollowLoad):
    """Serves with the fewest slots that keep power, forecast for the next half minute, at a share of the full one.

    It sees no traffic: how busy a slot is it tells from where its power lies between idle and full. Without a forecast
    it takes the power of the last tick, so the difference between the two is what the forecast is worth to it.

    Args:
        task: What may be known beforehand.
        share: Target share of each slot's power between idle and full.
        patience: Ticks of low power before a slot sleeps.
    """

    def __init__(self, task: Task, share: float = 0.9, patience: int = 1) -> None:
        super().__init__(task, share, patience)
        power = [task.blueprint.deployments[d].power for d in task.blueprint.initial]
        self._idle_w = np.array([p.idle_w for p in power])
        self._full_w = np.array([p.idle_w + p.active_w + p.compute_w + max(p.memory_w, p.cache_w) for p in power])

    def expected_requests_per_s(self, view: View) -> float:
        """What the serving slots would carry at that power: the highest of the last ticks; see :class:`FollowLoad`."""
        serving = view.slot("is_serving") > 0
        if not serving.any():
            return float(self._capacity.sum())
        forecast_w = view.forecast_w(FORECAST)
        power_w = forecast_w[:-1] if forecast_w[-1] > 0 else view.slot("power")
        range_w = np.minimum(self._full_w, view.slot("cap")) - self._idle_w
        busy = np.clip((power_w - self._idle_w) / np.maximum(range_w, 1.0), 0.0, 1.0)
        recent = [*self._recent.get(view.row, [])[-self._patience :], float((busy * self._capacity)[serving].sum())]
        self._recent[view.row] = recent
        return max(recent)


def candidates(task: Task) -> dict[str, Agent]:
    """Every target share with every patience, by names that say so."""
    return {
        f"target share {share:g}, patience {patience} ticks": FollowPower(task, share, patience)
        for share in TARGET_SHARES
        for patience in PATIENCES
    }
