"""The clock of the reference engine: SimPy, with a defined order of what happens at one instant."""

from __future__ import annotations

import simpy
from simpy.events import EventPriority

# The steps of one instant, as priorities of SimPy's events: lower ones first. SimPy's own (the start of a process, an
# interrupt, a plain event) are 0 and 1 and so come before whatever else is due.
CLOSE, LAND, CONTROL, ARRIVE, SERVE, TIMER = 2, 3, 4, 5, 6, 7
SCHEDULE = 2**62  # after the timers, whose priority is TIMER plus the row of their request


class World(simpy.Environment):
    """A SimPy environment in integer picoseconds, from zero."""

    @property
    def now_ps(self) -> int:
        """The time."""
        return self._now  # type: ignore[return-value]

    def at(self, time_ps: int, step: int) -> simpy.Event:
        """An event at ``time_ps``, which is not past, in the given step of that instant."""
        event = Moment(self)
        self.schedule(event, EventPriority(step), time_ps - self._now)
        return event


class Moment(simpy.Event):
    """An event that is sure to happen, like SimPy's own ``Timeout``, which cannot be given a priority."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._ok, self._value = True, None
