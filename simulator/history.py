"""The per-second record of a run: one row per second, one column per slot."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .kernels.state import BIN, BINS, J_PER_UNIT, Records
from .snapshot import State, copied, overwrite


class History:
    """Seconds that have passed, taken from the engine's ring of bins.

    Args:
        slots: Number of slots R.
        expected_s: Length that is reserved at first; it grows as needed.
    """

    def __init__(self, slots: int, expected_s: int = 1024) -> None:
        self._length = 0
        self._record = np.zeros((max(expected_s, 1), slots), BIN)
        self._status = np.zeros((max(expected_s, 1), slots), np.int8)

    def __len__(self) -> int:
        """Seconds recorded."""
        return self._length

    def take(self, bins: Records, until_s: int, status: NDArray[np.int64]) -> None:
        """Moves the bins before ``until_s`` into the record and clears them in the ring."""
        first = self._length
        if until_s <= first:
            return
        self._reserve(until_s)
        self._status[first:until_s] = status
        while first < until_s:
            cell = first % BINS
            stop = min(until_s, first - cell + BINS)
            taken = bins[cell : cell + stop - first]
            self._record[first:stop] = taken
            taken.fill(0)
            first = stop
        self._length = until_s

    def _reserve(self, seconds: int) -> None:
        if seconds > len(self._record):
            more = max(seconds, 2 * len(self._record)) - len(self._record)
            self._record = np.pad(self._record, ((0, more), (0, 0)))
            self._status = np.pad(self._status, ((0, more), (0, 0)))

    def save_state(self) -> State:
        """A copy of what has been recorded."""
        return {"record": copied(self._record[: self._length]), "status": self._status[: self._length].copy()}

    def restore_state(self, state: State) -> None:
        """Goes back, or on, to a state of :meth:`save_state`."""
        self._length = len(state["record"])
        self._reserve(self._length)
        overwrite(self._record[: self._length], state["record"])
        self._status[: self._length] = state["status"]

    def column(self, name: str, last_s: int | None = None) -> NDArray[Any]:
        """A column of the record.

        Args:
            name: One of the engine's bin columns: ``energy_j`` (J in that second, so also the mean W), ``energy`` (the
                same exactly, in units of 1e-14 J), ``metered_w``, ``temperature_c``, ``clock_ratio``, ``running``,
                ``waiting``, ``kv_used``, ``prompt_tokens``, ``output_tokens``; or ``status``.
            last_s: Only the last so many seconds.

        Returns:
            Array (seconds, slots).
        """
        first = 0 if last_s is None else max(0, self._length - last_s)
        if name == "status":
            return self._status[first : self._length]
        record = self._record[first : self._length]
        return record["energy"] * J_PER_UNIT if name == "energy_j" else record[name]
