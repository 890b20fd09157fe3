"""Agents that scale ahead of the load: by power alone, or by the traffic and what the forecast says of its growth."""

from __future__ import annotations

import numpy as np

from .base import Agent, Task, View
from .scaling import FollowLoad

FORECAST = "mean_30s_q0.5"
"""The forecast it acts on: a slot that is woken now serves within that time."""
HIGHEST = ("point_30s_q0.9", "point_60s_q0.9")
LEAST_BUSY = 0.05
"""Share of the idle power below which power above idle is noise, of which no growth can be told."""
MOST_GROWTH = 2.0
"""A slot can draw no more than its cap, so that growth beyond this is the forecast's tail and not traffic."""
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


class ForecastLoad(FollowLoad):
    """Follows the load, but wakes slots ahead of it where the power forecast says that it is about to grow.

    The traffic of now is taken to grow as power above idle does, up to the 90 % quantile of the next minute. A forecast
    only ever adds slots: they go to sleep as :class:`FollowLoad` lets them, by traffic that has been low for a while.

    Args:
        task: What may be known beforehand.
        load: Target share of each slot's capacity.
        patience: Ticks of low traffic before a slot sleeps.
    """

    def __init__(self, task: Task, load: float = 0.8, patience: int = 3) -> None:
        super().__init__(task, load, patience)
        self._idle_w = np.array([task.blueprint.deployments[d].power.idle_w for d in task.blueprint.initial])

    def expected_requests_per_s(self, view: View) -> float:
        """Recent traffic, or that of now grown with the forecast where that is more; see :class:`FollowLoad`."""
        recent = super().expected_requests_per_s(view)
        return max(recent, self.growth(view, *HIGHEST) * view.cluster("arrivals"))

    def growth(self, view: View, *names: str) -> float:
        """By what power above idle is forecast to grow, at the highest of some forecast figures; 1 if none is told."""
        serving = view.slot("is_serving") > 0
        base_w = float(self._idle_w[serving].sum())
        busy_w = float(view.slot("power")[serving].sum()) - base_w
        ahead_w = max(float(view.forecast_w(name)[:-1][serving].sum()) for name in names)
        if busy_w <= LEAST_BUSY * base_w or ahead_w <= 0:
            return 1.0
        return min(max((ahead_w - base_w) / busy_w, 1 / MOST_GROWTH), MOST_GROWTH)


def candidates(task: Task) -> dict[str, Agent]:
    """Every target share with every patience, by names that say so."""
    return {
        f"target share {share:g}, patience {patience} ticks": FollowPower(task, share, patience)
        for share in TARGET_SHARES
        for patience in PATIENCES
    }
