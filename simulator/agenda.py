"""What is still to happen, as plain data on top of SimPy: unlike a generator it can be saved and restored."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import simpy

from .errors import InputError

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

    Args:
        world: The environment, in picoseconds.
    """

    def __init__(self, world: simpy.Environment) -> None:
        self._world = world
        self._handlers: dict[str, Handler] = {}
        self._entries: dict[int, Entry] = {}
        self._number = 0

    def on(self, kind: str, handler: Handler) -> None:
        """Names the handler of a kind of event."""
        self._handlers[kind] = handler

    def at(self, due_ps: int, kind: str, *values: int) -> None:
        """Lets an event of ``kind`` happen at ``due_ps``, not before now."""
        self._number += 1
        self._schedule(Entry(due_ps, self._number, kind, values))

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Events to come, in the order in which they were made."""
        return tuple(self._entries.values())

    def restore(self, world: simpy.Environment, entries: tuple[Entry, ...]) -> None:
        """Moves to another environment, whose time has been set, and takes up its events.

        Raises:
            InputError: An event is of a kind without a handler here.
        """
        self._world, self._entries = world, {}
        for entry in entries:
            if entry.kind not in self._handlers:
                raise InputError(
                    "state", f"holds an event '{entry.kind}'", "Restore it into a run of the same scenario"
                )
            self._schedule(entry)
        self._number = max((entry.number for entry in entries), default=0)

    def _schedule(self, entry: Entry) -> None:
        self._entries[entry.number] = entry
        event = self._world.timeout(entry.due_ps - int(self._world.now))
        event.callbacks.append(partial(self._happen, entry.number))

    def _happen(self, number: int, _: simpy.Event) -> None:
        entry = self._entries.pop(number)
        self._handlers[entry.kind](entry.values)
