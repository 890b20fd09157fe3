"""Power caps and clock locks on their way to the GPUs: what control sets holds after a while."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .agenda import Agenda
from .kernels.state import Records
from .snapshot import State

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


class Settings:
    """Brings settings into force after each GPU's transition time, as events of the agenda.

    Until then the governor keeps to the old ones. Settings do not overtake one another. Where the transition takes no
    time they hold at once. A brake lowers the clock at once, whatever is set.

    Args:
        agenda: Events to come.
        slots: The engine's slots, whose ``cap_w`` and ``clock_limit`` this class owns.
        cap_ps: int64 (R,): transition time of a cap.
        lock_ps: int64 (R,): of a clock lock.
        brake_step: int64 (R,): highest step of the clock ladder under a brake.
        most_w: (D,): power that the GPUs of a slot can be given under each deployment, watts: where some of them idle,
            those at work still have no more than their TDP.
    """

    def __init__(self, agenda: Agenda, slots: Records, cap_ps: I64, lock_ps: I64, brake_step: I64, most_w: F64) -> None:
        self._agenda, self._slots, self._brake_step, self._most_w = agenda, slots, brake_step, most_w
        self._delay_ps = {"cap_w": cap_ps, "clock_limit": lock_ps}
        self._ordered = {name: slots[name].copy() for name in self._delay_ps}
        self._in_force = {name: slots[name].copy() for name in self._delay_ps}
        self._braked = np.zeros(len(slots), bool)
        agenda.on("cap", self._cap)
        agenda.on("lock", self._lock)

    def cap(self, now_ps: int, cap_w: F64) -> None:
        """Sets the power limits (R,), watts."""
        self._order(now_ps, "cap", "cap_w", cap_w)

    def lock(self, now_ps: int, step: I64) -> None:
        """Sets the highest steps (R,) of the clock ladders."""
        self._order(now_ps, "lock", "clock_limit", step)

    def brake(self, braked: NDArray[np.bool_]) -> None:
        """Says which slots are under a brake, (R,)."""
        if changed := np.flatnonzero(braked != self._braked).tolist():
            self._braked = braked.copy()
            self.refresh(changed)

    def refresh(self, slots: I64 | list[int] | int) -> None:
        """Brings the settings in force to bear on slots, for what they hold and whether they are braked now."""
        records, deployment = self._slots, self._slots["deployment"][slots]
        records["cap_w"][slots] = np.minimum(self._in_force["cap_w"][slots], self._most_w[deployment])
        step = self._in_force["clock_limit"][slots]
        braked = np.minimum(step, self._brake_step[slots])
        records["clock_limit"][slots] = np.where(self._braked[slots], braked, step)
        records["governed"][slots] = 0

    def _order(self, now_ps: int, kind: str, column: str, values: F64 | I64) -> None:
        delay_ps, ordered = self._delay_ps[column], self._ordered[column]
        at_once = delay_ps == 0
        self._put(column, np.flatnonzero(at_once), values[at_once])
        new = (values != ordered) & ~at_once
        ordered[:] = values
        for delay in np.unique(delay_ps[new]):
            chosen = np.flatnonzero(new & (delay_ps == delay))
            # The agenda keeps whole numbers: those that the same bits make.
            bits = np.ascontiguousarray(values[chosen]).view(np.int64)
            pairs = np.stack([chosen, bits], axis=1).ravel()
            self._agenda.at(int(now_ps + delay), kind, *pairs.tolist())

    def _cap(self, values: tuple[int, ...]) -> None:
        slots, bits = np.array(values, np.int64).reshape(-1, 2).T
        self._put("cap_w", slots, np.ascontiguousarray(bits).view(np.float64))

    def _lock(self, values: tuple[int, ...]) -> None:
        slots, steps = np.array(values, np.int64).reshape(-1, 2).T
        self._put("clock_limit", slots, steps)

    def _put(self, column: str, slots: I64, values: F64 | I64) -> None:
        self._in_force[column][slots] = values
        self.refresh(slots)

    def save_state(self) -> State:
        """What was set last, what holds, and the brakes; what is on its way is in the agenda."""
        return {
            "ordered": {name: values.copy() for name, values in self._ordered.items()},
            "in_force": {name: values.copy() for name, values in self._in_force.items()},
            "braked": self._braked.copy(),
        }

    def restore_state(self, state: State) -> None:
        """Takes up a state of :meth:`save_state`."""
        self._ordered = {name: state["ordered"][name].copy() for name in self._ordered}
        self._in_force = {name: state["in_force"][name].copy() for name in self._in_force}
        self._braked = state["braked"].copy()
