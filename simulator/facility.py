"""The air that reaches the GPUs: outside temperature, cooling of the rows, and the servers' own heat."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .signals import PiecewiseLinear, through
from .snapshot import State
from .topology import ClusterSpec, Slot
from .units import PS_PER_S

F64 = NDArray[np.float64]

AIR_J_PER_M3_K = 1.184 * 1006.0
"""Heat capacity of air at 25 °C and 1 atm: density 1.184 kg/m³, specific heat 1006 J/(kg·K)."""


class Facility:
    """Inlet temperature of every slot: that of its place, plus three rises.

    * **Outside temperature** raises all inlets along the breakpoints of the specification. Their default has the three
      regimes that TAPAS (Stojkovic et al., ASPLOS 2025) reports of a production site: held constant in the cold, rising
      with the outside in between, and rising more slowly where the chillers work hardest. Its slopes are assumed.
    * **Recirculation.** Fans follow the load: a server with heat P moves the air that warms by the ΔT its fans are set
      to, P / (ΔT·ρ·c), but never less than their slowest turn. Where a row is supplied with less air, V, than its
      servers move together, F, the rest is its own exhaust. Mixing gives an inlet that is warmer by P / (V·ρ·c) −
      P / (F·ρ·c). The room approaches that with a time constant (Khankari, ASHRAE Transactions 117, 2011).
    * **The server's own heat**, as the slot's specification says.

    Args:
        spec: The cluster.
        slots: Its slots.
        outside_c: Outside temperature; where there is none, it has no influence.
        airflow: For each row, shares over time that its airflow is multiplied with; none by default.

    Attributes:
        outside_c: Outside temperature.
        airflow: Shares of the airflow.
        recirculation_k: Rise of each row's air at present, kelvin.
        time_ps: When that was.
    """

    def __init__(
        self,
        spec: ClusterSpec,
        slots: Sequence[Slot],
        outside_c: PiecewiseLinear | None = None,
        airflow: Sequence[Sequence[PiecewiseLinear]] = (),
    ) -> None:
        self._air, self.outside_c, self.airflow = spec.air, outside_c, airflow
        self._rise_k = through(spec.air.outside_rise_k)
        self._row = np.array([s.row for s in slots])
        self._server = np.array([s.server for s in slots])
        # Of each server: all slots of one agree.
        self._row_of_server = np.zeros(self._server.max() + 1, np.int64)
        self._row_of_server[self._server] = self._row
        self._fan_min_m3_per_s = np.zeros(len(self._row_of_server))
        self._fan_min_m3_per_s[self._server] = [s.spec.fan_min_m3_per_s for s in slots]
        self._place_c = np.array([s.spec.inlet_c for s in slots])
        self._k_per_w = np.array([s.spec.inlet_k_per_kw for s in slots]) / 1000
        # W/K that a row's air carries off; endless where no airflow is given.
        self._carries_w_per_k = np.array([(row.airflow_m3_per_s or math.inf) * AIR_J_PER_M3_K for row in spec.rows])
        self._mixes = bool(np.isfinite(self._carries_w_per_k).any())
        self.recirculation_k = np.zeros(len(spec.rows))
        self.time_ps = 0

    def inlet_c(self, now_ps: int, power_w: F64) -> F64:
        """Inlet temperatures now, °C (R,); calls are in the order of time.

        Args:
            now_ps: Time, picoseconds.
            power_w: Power of each slot in the last second, watts (R,).
        """
        air_c = self._place_c
        if self.outside_c is not None:
            air_c = air_c + self._rise_k.at(self.outside_c.at(now_ps / PS_PER_S))
        if self._mixes:
            self._mix(now_ps, power_w)
            air_c = air_c + self.recirculation_k[self._row]
        heat_w = np.bincount(self._server, weights=power_w)[self._server]
        inlet_c: F64 = air_c + self._k_per_w * heat_w
        return inlet_c

    def airflow_m3_per_s(self, power_w: F64) -> F64:
        """Air that the fans of each server move, m³/s.

        Args:
            power_w: Power of each slot, watts (R,).
        """
        heat_w = np.bincount(self._server, weights=power_w)
        needed: F64 = heat_w / (self._air.server_rise_k * AIR_J_PER_M3_K)
        return np.maximum(needed, self._fan_min_m3_per_s)

    def _mix(self, now_ps: int, power_w: F64) -> None:
        """Moves each row's recirculation towards where its heat and its airflow would bring it."""
        carries = self._carries_w_per_k.copy()
        for row, shares in enumerate(self.airflow):
            for share in shares:
                carries[row] *= share.at(now_ps / PS_PER_S)
        heat_w = np.bincount(self._row, weights=power_w, minlength=len(carries))
        moved = np.bincount(self._row_of_server, weights=self.airflow_m3_per_s(power_w), minlength=len(carries))
        # Without heat and air there is no rise; any will do.
        exhaust_k = heat_w / (np.where(moved > 0, moved, 1.0) * AIR_J_PER_M3_K)
        target_k = (heat_w / carries - exhaust_k).clip(min=0)
        stays = math.exp(-(now_ps - self.time_ps) / PS_PER_S / self._air.tau_s)
        self.recirculation_k = target_k + (self.recirculation_k - target_k) * stays
        self.time_ps = now_ps

    def save_state(self) -> State:
        """The air in the rows; the signals are their owner's."""
        return {"recirculation_k": self.recirculation_k, "time_ps": self.time_ps}

    def restore_state(self, state: State) -> None:
        """Takes up a state of :meth:`save_state`."""
        self.recirculation_k, self.time_ps = state["recirculation_k"], state["time_ps"]
