"""Counters that go on when whoever counts starts anew."""

from __future__ import annotations

from collections.abc import Mapping

from .page import Labels


class Counter:
    """The sum of series that each only rise, except that they begin again at 0 with a new process.

    What a process had counted between the last look and its end is not known and is missing.
    """

    def __init__(self) -> None:
        self._last: dict[Labels, float] = {}
        self._before = 0.0

    def add(self, series: Mapping[Labels, float]) -> float:
        """Takes the present values by series, and gives the sum; a series that is gone keeps what it had."""
        for name, value in series.items():
            last = self._last.get(name, 0.0)
            if value < last:
                self._before += last
            self._last[name] = value
        return self._before + sum(self._last.values())
