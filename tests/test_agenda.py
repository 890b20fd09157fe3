"""Events as data: order, and the same future after a restore."""

from __future__ import annotations

import pytest
import simpy
from hypothesis import given
from hypothesis import strategies as st

from llmcluster.simulator.agenda import Agenda
from llmcluster.simulator.errors import InputError


def _recorder(world: simpy.Environment) -> tuple[Agenda, list[tuple[int, tuple[int, ...]]]]:
    agenda, seen = Agenda(world), []
    agenda.on("note", lambda values: seen.append((int(world.now), values)))
    return agenda, seen


@given(st.lists(st.integers(0, 5), max_size=20), st.integers(0, 6))
def test_a_restored_agenda_has_the_same_future(dues: list[int], cut: int) -> None:
    world = simpy.Environment()
    agenda, seen = _recorder(world)
    for i, due in enumerate(dues):
        agenda.at(due, "note", i)
    while world.peek() < cut:
        world.step()
    entries, before = agenda.entries, len(seen)

    later = simpy.Environment(initial_time=cut)
    other, again = _recorder(later)
    other.restore(later, entries)
    world.run()
    later.run()

    assert again == seen[before:]
    assert [values for _, values in seen] == [(i,) for i, _ in sorted(enumerate(dues), key=lambda x: (x[1], x[0]))]
    assert agenda.entries == other.entries == ()


def test_new_events_follow_restored_ones() -> None:
    world = simpy.Environment()
    agenda, seen = _recorder(world)
    agenda.at(3, "note", 1)
    later = simpy.Environment()
    agenda.restore(later, agenda.entries)
    agenda.at(3, "note", 2)
    later.run()

    assert [values for _, values in seen] == [(1,), (2,)]


def test_an_event_without_a_handler_is_refused() -> None:
    agenda, _ = _recorder(simpy.Environment())
    agenda.at(1, "note")
    stranger = Agenda(simpy.Environment())

    with pytest.raises(InputError, match="same scenario"):
        stranger.restore(simpy.Environment(), agenda.entries)
