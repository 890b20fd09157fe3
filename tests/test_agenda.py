"""Events as data: order, and the same future after a restore."""

from __future__ import annotations

import copy
import pickle

import pytest
import simpy
from hypothesis import given
from hypothesis import strategies as st

from llmcluster.simulator.agenda import Agenda
from llmcluster.simulator.errors import InputError


def _recorder(world: simpy.Environment) -> tuple[Agenda, list[tuple[int, tuple[int, ...]]]]:
    agenda, seen = Agenda(world), []
    agenda.on("note", lambda values: seen.append((agenda.now_ps, values)))
    return agenda, seen


@given(st.lists(st.integers(0, 5), max_size=20), st.integers(0, 6))
def test_a_restored_agenda_has_the_same_future(dues: list[int], cut: int) -> None:
    agenda, seen = _recorder(simpy.Environment())
    for i, due in enumerate(dues):
        agenda.at(due, "note", i)
    while agenda.world.peek() < cut:
        agenda.world.step()
    state, before = agenda.save_state(), len(seen)

    other, again = _recorder(simpy.Environment())
    other.restore_state(state)
    agenda.world.run()
    other.world.run()

    assert again == seen[before:]
    assert [values for _, values in seen] == [(i,) for i, _ in sorted(enumerate(dues), key=lambda x: (x[1], x[0]))]
    assert agenda.entries == other.entries == ()
    assert agenda.save_state() == other.save_state()


def test_new_events_follow_restored_ones() -> None:
    agenda, seen = _recorder(simpy.Environment())
    agenda.at(3, "note", 1)
    agenda.restore_state(agenda.save_state())
    agenda.at(3, "note", 2)
    agenda.world.run()

    assert [values for _, values in seen] == [(1,), (2,)]


def test_an_event_without_a_handler_is_refused_and_changes_nothing() -> None:
    agenda, _ = _recorder(simpy.Environment())
    agenda.at(1, "note")
    stranger = Agenda(simpy.Environment(initial_time=7))

    with pytest.raises(InputError, match="same scenario"):
        stranger.restore_state(agenda.save_state())
    assert stranger.now_ps == 7 and stranger.entries == ()


def test_processes_of_others_are_refused_until_they_have_ended() -> None:
    agenda, _ = _recorder(simpy.Environment())
    agenda.at(9, "note", 1)
    state = agenda.save_state()

    def process(world: simpy.Environment) -> simpy.events.ProcessGenerator:
        yield world.timeout(5)

    agenda.world.process(process(agenda.world))
    for attempt in (agenda.save_state, lambda: agenda.restore_state(state)):
        with pytest.raises(InputError, match=r"cannot be saved.*agenda\.at"):
            attempt()
    agenda.world.run(until=6)
    assert agenda.save_state()["entries"] == state["entries"]


class _Counter:
    """Has a method as its handler, as parts of a cluster do."""

    def __init__(self) -> None:
        self.agenda, self.count = Agenda(simpy.Environment()), 0
        self.agenda.on("tick", self.tick)
        self.agenda.at(10, "tick", 1)

    def tick(self, values: tuple[int, ...]) -> None:
        self.count += values[0]
        self.agenda.at(self.agenda.now_ps + 10, "tick", values[0] + 1)


def test_copies_and_pickles_go_their_own_ways() -> None:
    first = _Counter()
    first.agenda.world.run(until=25)
    others = [copy.deepcopy(first), pickle.loads(pickle.dumps(first))]
    first.agenda.world.run(until=35)
    assert (first.count, [other.count for other in others]) == (6, [3, 3])
    for other in others:
        other.agenda.world.run(until=35)
        assert other.count == 6 and other.agenda.entries == first.agenda.entries


def test_events_of_an_object_that_is_gone_are_forgotten() -> None:
    counter = _Counter()
    agenda = counter.agenda
    del counter
    agenda.world.run(until=35)
    assert agenda.entries == ()
