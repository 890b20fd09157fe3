"""What is still to happen, as plain data on top of SimPy: unlike a generator it can be saved and restored."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from inspect import ismethod
from typing import NamedTuple

import simpy

from .errors import InputError
from .snapshot import State

Handler = Callable[[tuple[int, ...]], None]


class Entry(NamedTuple):
    """An event to come.

    Attributes:
        due_ps: When, picoseconds.
        number: Running number; among equals in time the smaller comes first.
        kind: Which handler is called.
        values: What it is given.
    """

    due_ps: int
    number: int
    kind: str
    values: tuple[int, ...]


class Agenda:
    """Events by name and number in a SimPy environment.

    SimPy and the agenda hold nobody alive: the environment knows the agenda, and the agenda the methods that handle its
    events, by weak reference only, so that a run is freed as soon as its owner lets go of it.

    Args:
        world: The environment, in picoseconds.
    """

    def __init__(self, world: simpy.Environment) -> None:
        self._world = world
        self._handlers: dict[str, Callable[[], Handler | None]] = {}
        self._entries: dict[int, Entry] = {}
        self._number = 0

    @property
    def world(self) -> simpy.Environment:
        """The environment; restoring a state replaces it."""
        return self._world

    @property
    def now_ps(self) -> int:
        """Time of the environment, picoseconds."""
        return int(self._world.now)

    def on(self, kind: str, handler: Handler) -> None:
        """Names the handler of a kind of event; what happens after its object is gone is forgotten."""
        self._handlers[kind] = weakref.WeakMethod(handler) if ismethod(handler) else lambda: handler

    def at(self, due_ps: int, kind: str, *values: int) -> None:
        """Lets an event of ``kind`` happen at ``due_ps``, not before now."""
        self._number += 1
        self._schedule(Entry(due_ps, self._number, kind, values))

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Events to come, in the order in which they were made."""
        return tuple(self._entries.values())

    def save_state(self) -> State:
        """Time and events to come.

        Raises:
            InputError: There are other SimPy events in the environment than the agenda's.
        """
        self._refuse_strangers()
        return {"now_ps": self.now_ps, "number": self._number, "entries": self.entries}

    def restore_state(self, state: State) -> None:
        """Goes to the time of a state, in a new environment, and takes up its events.

        Raises:
            InputError: An event is of a kind without a handler here, or there are SimPy events that would be lost.
        """
        self._refuse_strangers()
        entries = [Entry(due_ps, number, kind, tuple(values)) for due_ps, number, kind, values in state["entries"]]
        for entry in entries:
            if entry.kind not in self._handlers:
                raise InputError(
                    "snapshot", f"holds an event '{entry.kind}'", "Restore it into a run of the same scenario"
                )
        self._world, self._entries = simpy.Environment(initial_time=state["now_ps"]), {}
        for entry in entries:
            self._schedule(entry)
        self._number = state["number"]

    def _refuse_strangers(self) -> None:
        # SimPy has no public list of its events; those that nobody listens to any more do not matter.
        strangers = sum(bool(event.callbacks) for *_, event in self._world._queue) - len(self._entries)
        if strangers:
            raise InputError(
                "world",
                f"has {strangers} SimPy event(s) of processes, which cannot be saved or restored",
                "Write them as events of the agenda: agenda.on(kind, handler) and agenda.at(time, kind, …)",
            )

    def _schedule(self, entry: Entry) -> None:
        self._entries[entry.number] = entry
        event = self._world.timeout(entry.due_ps - self.now_ps)
        event.callbacks.append(partial(_happen, weakref.ref(self), entry.number))

    def _happen(self, number: int) -> None:
        entry = self._entries.pop(number)
        handler = self._handlers[entry.kind]()
        if handler is not None:
            handler(entry.values)

    def __getstate__(self) -> State:
        """For copies and pickles, which know no weak references."""
        handlers = {kind: handler() for kind, handler in self._handlers.items()}
        return {"handlers": handlers, "events": self.save_state()}

    def __setstate__(self, state: State) -> None:
        """The reverse of :meth:`__getstate__`."""
        self.__init__(simpy.Environment())  # type: ignore[misc]
        for kind, handler in state["handlers"].items():
            if handler is not None:
                self.on(kind, handler)
        self.restore_state(state["events"])


def _happen(agenda: weakref.ref[Agenda], number: int, _: simpy.Event) -> None:
    alive = agenda()
    if alive is not None:
        alive._happen(number)
