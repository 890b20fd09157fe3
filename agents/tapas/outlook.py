"""What lies ahead of every slot: expected power and heat, and what row, site and air leave it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...simulator.facility import AIR_J_PER_M3_K
from ..base import Task, View
from .history import History
from .reading import F64, Mask, Reading
from .regression import DieRegression, InletRegression

AHEAD_S = 60
"""How far inlets are looked ahead: about what they need to follow a change of the load."""
FORGIVES_S = 180.0
"""Time constant with which a failure of the cooling is taken to be over."""
RISE = 0.95
"""Quantile of the rises of power from tick to tick that is kept in reserve."""
PEAK = 0.9
"""Quantile of power that counts as a machine's peak."""
LIMIT_BLUR = 0.08
"""Meters of a row and of its slots differ by less: a limit that seems so near to the planned one is the planned one."""
SATURATED = 0.93
"""Share of its cap from which on a slot would take more."""


@dataclass(frozen=True, eq=False)
class Outlook:
    """One tick's predictions for R slots.

    Attributes:
        reading: What was read.
        need_w: Power that each slot will ask for, with a reserve, watts (R,).
        mean_w: Smoothed power, watts (R,).
        inlet_c: Inlet temperature a minute ahead, °C (R,); ``nan`` where it is not metered.
        outside_c: Outside temperature ahead, °C; ``nan`` where it is not metered.
        thermal_w: Power that a slot can hold at that inlet without throttling, watts (R,).
        row_limit_w: Power limit of each row, watts; endless where it has none.
        inner: Racks and servers that have a limit, each as its slots (R,) and watts.
        row_air_w: Heat that each row's planned airflow carries off, watts; endless where none is planned.
        emergency: Whether inlets are much warmer than load and weather explain.
    """

    reading: Reading
    need_w: F64
    mean_w: F64
    inlet_c: F64
    outside_c: float
    thermal_w: F64
    row_limit_w: F64
    inner: tuple[tuple[Mask, float], ...]
    row_air_w: F64
    emergency: bool


class Memory:
    """What is kept of an episode: means of power, and by how much inlets were warmer than the regression explains."""

    def __init__(self, reading: Reading) -> None:
        self.air_w = self.die_w = reading.power_w
        self._off_k: list[F64] = []
        self._inlet_c: F64 | None = None
        self._row_w: list[F64] = []
        self._gain = np.zeros(len(reading.power_w))

    def gain(self, inlet_c: F64, off_k: F64, row_w: F64, inlets: InletRegression, tick_s: int) -> F64:
        """Kelvins that inlets will rise beyond what is explained, per watt of a mean slot of their row (R,).

        Cooling that fails is not announced: one sees inlets that load and weather do not explain. What they will come
        to follows from their last minute, as they settle with the time constant of the air, and is taken to be in
        proportion to the heat of the row. A gain once seen is given up slowly, lest load come back in waves; a sensor
        that still shows the same tells nothing new.
        """
        ticks = max(1, AHEAD_S // tick_s)
        fresh = np.ones(len(off_k), bool) if self._inlet_c is None else inlet_c != self._inlet_c
        self._inlet_c = inlet_c
        self._off_k = [*self._off_k[-ticks:], off_k]
        self._row_w = [*self._row_w[1 - 2 * ticks :], row_w]
        stays = float(np.exp(-AHEAD_S / inlets.tau_s))
        settles_k = np.maximum(off_k, (off_k - stays * self._off_k[0]) / (1 - stays))
        strange = fresh & (off_k > 3 * inlets.spread_k + 1)
        seen = np.where(strange, settles_k / np.maximum(np.mean(self._row_w, axis=0), 1.0), 0.0)
        self._gain = np.maximum(seen, self._gain * np.exp(-tick_s / FORGIVES_S))
        self._gain[self._gain * self._row_w[-1] < inlets.spread_k] = 0.0
        return self._gain


class Forecaster:
    """Looks ahead with what the history taught.

    Args:
        task: What may be known beforehand.
        history: Telemetry of earlier runs.

    Attributes:
        inlets: Regression of inlets, where they are metered.
        dies: Regression of dies.
        tenant_share: Peak of a foreign machine as a share of the slot's TDP; 1 if the history knows none.
        serving_share: Peak of a slot that serves.
        hottest_c: Highest outside temperature that the history knows, °C; ``nan`` where it is not metered.
        limit_c: Die temperature that no slot should pass (R,).
    """

    def __init__(self, task: Task, history: History) -> None:
        self.task = task
        self.inlets = InletRegression.fitted(task, history)
        self.dies = DieRegression.fitted(task, history)
        self.row = np.array([slot.row for slot in task.blueprint.slots])
        tdp_w, rows = task.fleet.cap_max_w, range(self.row.max() + 1)
        self._row_tdp_w = np.array([tdp_w[self.row == i].sum() for i in rows])
        specs = task.scenario.cluster.rows
        self._rated_w = self._row_tdp_w * [s.breaker.rating_share if s.breaker else np.inf for s in specs]
        self._inner = _inner_limits(task)
        self._planned_w = self._row_tdp_w * [s.power_limit_share or np.inf for s in specs]
        warms_j_per_m3 = task.scenario.cluster.air.server_rise_k * AIR_J_PER_M3_K
        self._row_air_w = warms_j_per_m3 * np.array([s.airflow_m3_per_s or np.inf for s in specs])
        self.tenant_share = _peak(history.power_w / tdp_w, history.tenant)
        self.serving_share = _peak(history.power_w / tdp_w, history.serving)
        self._tenant_rise_w = self._rise_w(history, history.tenant)
        self._serving_rise_w = self._rise_w(history, history.serving)
        spread_k = self.dies.spread_k + (self.inlets.spread_k if self.inlets else 0.0)
        throttle_c = [task.blueprint.deployments[d].power.throttle_c for d in task.blueprint.initial]
        self.limit_c = np.array(throttle_c) - spread_k
        self.hottest_c = float(np.max(history.outside_c))
        self._memories: dict[int, Memory] = {}

    def _rise_w(self, history: History, who: np.ndarray) -> float:
        """What the slots of a row that are ``who`` draw more than a tick before, seldom exceeded."""
        same = who[1:] & who[:-1] & ~history.first[1:, None]
        grown_w = np.where(same, np.diff(history.power_w, axis=0), 0.0)
        rows = self.row == np.arange(self.row.max() + 1)[:, None]
        rises_w = (grown_w @ rows.T)[(same @ rows.T) > 0]
        return float(np.quantile(rises_w, RISE).clip(min=0)) if len(rises_w) else 0.0

    def forget(self, row: int) -> None:
        """Forgets the episode in this row of a batch."""
        self._memories.pop(row, None)

    def _known(self, row: int) -> bool:
        """Whether this row has been read; what comes before the first second has power 0 and does not count."""
        return row in self._memories and bool(self._memories[row].air_w.any())

    def look(self, view: View, power_w: F64 | None = None) -> Outlook:
        """Reads and predicts.

        Args:
            view: The observation.
            power_w: Power that each slot is expected to draw, watts (R,); by default what it drew last and a reserve.
        """
        task, now = self.task, Reading.of(self.task, view)
        if not self._known(view.row):
            self._memories[view.row] = Memory(now)
        memory = self._memories[view.row]
        tick_s = task.scenario.tick_s
        memory.die_w = _closer(memory.die_w, now.power_w, tick_s / self.dies.tau_s)
        inlet_c = explained_c = now.inlet_c
        gain = np.zeros(len(self.row))
        outside_c = float(now.outside_c.max()) if len(now.outside_c) else np.nan
        if self.inlets is not None:
            memory.air_w = _closer(memory.air_w, now.power_w, tick_s / self.inlets.tau_s)
            outside_now = now.outside_c[:1] if len(now.outside_c) else np.full(1, np.nan)
            explained_c = self.inlets.predict(memory.air_w[None], outside_now)[0]
            settled_c = self.inlets.predict(memory.air_w[None], np.full(1, outside_c))[0]
            row_w = (np.bincount(self.row, now.power_w) / np.bincount(self.row))[self.row]
            inlet_c = now.inlet_c + (settled_c - explained_c).clip(min=0)
            gain = memory.gain(now.inlet_c, now.inlet_c - explained_c, row_w, self.inlets, tick_s)
        row_power_w = np.bincount(self.row, weights=now.power_w)
        limit_w = np.full(len(self._planned_w), np.inf)
        for i in np.flatnonzero(np.isfinite(self._planned_w)):
            seen_w = row_power_w[i] + now.row_room_w[self.row == i][0]
            near = abs(seen_w - self._planned_w[i]) < LIMIT_BLUR * self._planned_w[i]
            limit_w[i] = self._planned_w[i] if near else seen_w
        thermal_w = self.dies.highest_w(inlet_c, self.limit_c)
        if gain.any():
            thermal_w = np.minimum(thermal_w, self.dies.highest_w(explained_c, self.limit_c, gain))
        return Outlook(
            reading=now,
            need_w=self._need_w(now, power_w),
            mean_w=memory.die_w,
            inlet_c=inlet_c,
            outside_c=outside_c,
            thermal_w=thermal_w,
            row_limit_w=np.minimum(limit_w, self._rated_w),
            inner=self._inner,
            row_air_w=self._row_air_w,
            emergency=bool(gain.any()),
        )

    def _need_w(self, now: Reading, power_w: F64 | None) -> F64:
        """What slots will ask for: a slot at its cap asks for its TDP, a reserve is shared by the slots of a row."""
        held = np.array([now.tenant[self.row == i].sum() for i in range(self.row.max() + 1)])[self.row]
        serving = np.array([now.serving[self.row == i].sum() for i in range(self.row.max() + 1)])[self.row]
        tdp_w = self.task.fleet.cap_max_w
        expected_w = now.power_w if power_w is None else power_w
        rise_w = np.where(now.tenant, self._tenant_rise_w / np.maximum(held, 1), 0.0)
        if power_w is None:
            rise_w += np.where(now.serving, self._serving_rise_w / np.maximum(serving, 1), 0.0)
        saturated = now.serving & (now.power_w > SATURATED * now.cap_w)
        need_w: F64 = np.where(saturated, tdp_w, np.minimum(expected_w + rise_w, tdp_w))
        return need_w


def _closer(mean: F64, value: F64, steps: float) -> F64:
    return value + (mean - value) * float(np.exp(-steps))


def _peak(shares: F64, who: np.ndarray) -> float:
    return float(np.quantile(shares[who], PEAK)) if who.any() else 1.0


def _inner_limits(task: Task) -> tuple[tuple[Mask, float], ...]:
    """Racks with a breaker, and servers whose supplies give less than their GPUs may draw."""
    slots, tdp_w, found = task.blueprint.slots, task.fleet.cap_max_w, []
    racks = [rack for row in task.scenario.cluster.rows for rack in row.racks]
    for number, rack in enumerate(racks):
        if rack.breaker is not None:
            inside = np.array([slot.rack == number for slot in slots])
            found.append((inside, rack.breaker.rating_share * float(tdp_w[inside].sum())))
    for number in sorted({slot.server for slot in slots}):
        inside = np.array([slot.server == number for slot in slots])
        share = slots[int(inside.argmax())].spec.power_limit_share
        if share is not None:
            found.append((inside, share * float(tdp_w[inside].sum())))
    return tuple(found)
