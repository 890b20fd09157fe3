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
        self._length = self._released = 0
        self._record = np.zeros((max(expected_s, 1), slots), BIN)
        self._status = np.zeros((max(expected_s, 1), slots), np.int8)

    def __len__(self) -> int:
        """Seconds held."""
        return self._length

    def take(self, bins: Records, until_s: int, status: NDArray[np.int64]) -> None:
        """Moves the bins before ``until_s`` into the record and clears them in the ring."""
        cell, first, until_s = (self._released + self._length) % BINS, self._length, until_s - self._released
        if until_s <= first:
            return
        self._reserve(until_s)
        self._status[first:until_s] = status
        while first < until_s:
            stop = min(until_s, first - cell + BINS)
            # As plain words: numpy copies and clears records one by one.
            taken = bins[cell : cell + stop - first].view(np.int64)
            self._record[first:stop].view(np.int64)[:] = taken
            taken.fill(0)
            first, cell = stop, 0
        self._length = until_s

    def _reserve(self, seconds: int) -> None:
        if seconds > len(self._record):
            more = max(seconds, 2 * len(self._record)) - len(self._record)
            self._record = np.pad(self._record, ((0, more), (0, 0)))
            self._status = np.pad(self._status, ((0, more), (0, 0)))

    def release(self) -> tuple[Records, NDArray[np.int8]]:
        """Hands out all that is held, records and status, (seconds, slots) each, and forgets it."""
        held = self._record[: self._length].copy(), self._status[: self._length].copy()
        self._released += self._length
        self._length = 0
        return held

    def save_state(self) -> State:
        """A copy of what is held."""
        held = self._record[: self._length], self._status[: self._length]
        return {"released": self._released, "record": copied(held[0]), "status": copied(held[1])}

    def restore_state(self, state: State) -> None:
        """Goes back, or on, to a state of :meth:`save_state`."""
        self._released, self._length = state["released"], len(state["record"])
        self._reserve(self._length)
        overwrite(self._record[: self._length], state["record"])
        overwrite(self._status[: self._length], state["status"])

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

    @property
    def records(self) -> Records:
        """All columns of the seconds held, (seconds, slots) BIN; a view."""
        return self._record[: self._length]
