"""Faults by schedule and by chance: where they strike, how often, for how long, and what is refused."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from llmcluster.simulator.cluster import Cluster
from llmcluster.simulator.errors import InputError
from llmcluster.simulator.faults import GPU_MTBF_S, FaultSpec, RandomFault, ScheduledFault
from llmcluster.simulator.kernels.state import EMPTY, FAILED
from llmcluster.simulator.units import PS_PER_S, to_ps
from llmcluster.simulator.workload.table import RequestTable
from llmcluster.tests.lives import PLAN

NOTHING = RequestTable.from_columns([], [], [])


def cluster(*faults: Any, seed: int = 0) -> Cluster:
    return Cluster(PLAN, NOTHING, np.random.default_rng(seed), 8, faults)


def outages(world: Cluster) -> list[tuple[int, int]]:
    """Time and slot of every failure."""
    return [(t.time_ps, t.slot) for t in world.lifecycle.transitions if t.status == FAILED]


@pytest.mark.parametrize(
    ("place", "slots"),
    [({"slot": 2}, [2]), ({"server": 0}, [0, 1]), ({"rack": 1}, [2]), ({"row": 0}, [0, 1, 2]), ({"row": 1}, [3])],
)
def test_a_scheduled_fault_takes_all_slots_of_its_place_at_one_instant(place: dict[str, int], slots: list[int]) -> None:
    world = cluster(ScheduledFault(at_s=7.25, repair_s=10.5, **place))
    world.advance(to_ps(60))
    assert outages(world) == [(to_ps(7.25), slot) for slot in slots]
    repaired = [(t.time_ps, t.slot) for t in world.lifecycle.transitions if t.status == EMPTY]
    assert repaired == [(to_ps(17.75), slot) for slot in slots]


def test_a_fault_at_the_start_precedes_all_else() -> None:
    world = cluster(ScheduledFault(at_s=0, slot=0, repair_s=5))
    world.advance(1)
    assert outages(world) == [(0, 0)] and world.engine.slots["status"][0] == FAILED


@pytest.mark.parametrize("unit", ["gpu", "server"])
def test_random_faults_strike_as_often_as_they_should(unit: str) -> None:
    """Repairs are short, so that nearly every fault shows; a slot of four GPUs fails four times as often as one."""
    mtbf_s, duration_s = 2000.0, 400_000
    world = cluster(RandomFault(unit=unit, mtbf_s=mtbf_s, repair="exponential", repair_s=0.001))
    world.advance(to_ps(duration_s))
    struck = outages(world)
    share = {"gpu": np.array([1, 1, 1, 4]), "server": np.array([1, 1, 1, 1])}[unit]
    expected = share * duration_s / mtbf_s
    counts = np.bincount([slot for _, slot in struck], minlength=4)
    assert (abs(counts - expected) < 5 * np.sqrt(expected)).all()
    if unit == "server":
        times = [[t for t, slot in struck if slot == number] for number in (0, 1)]
        assert times[0] == times[1]
    gaps_s = np.diff(np.unique([t for t, _ in struck])) / PS_PER_S
    # Exponential: the standard deviation is the mean.
    assert gaps_s.std() == pytest.approx(gaps_s.mean(), rel=0.15)


@pytest.mark.parametrize(
    ("fields", "spread"),
    [({"repair": "lognormal", "repair_sigma": 0.9}, np.sqrt(np.exp(0.81) - 1)), ({"repair": "exponential"}, 1.0)],
)
def test_repairs_have_the_mean_and_the_spread_asked_for(fields: dict[str, Any], spread: float) -> None:
    world = cluster(RandomFault(unit="server", mtbf_s=3000.0, repair_s=8.0, **fields))
    world.advance(to_ps(600_000))
    log = [t for t in world.lifecycle.transitions if t.slot == 3]
    pairs = [(a, b) for a, b in pairwise(log) if a.status == FAILED]
    repairs_s = np.array([(after.time_ps - before.time_ps) / PS_PER_S for before, after in pairs])
    assert len(repairs_s) > 150 and all(after.status == EMPTY for _, after in pairs)
    assert repairs_s.mean() == pytest.approx(8.0, rel=3 * spread / np.sqrt(len(repairs_s)))
    assert repairs_s.std() / repairs_s.mean() == pytest.approx(spread, rel=0.35)


def test_a_repair_without_spread_takes_just_its_mean() -> None:
    world = cluster(RandomFault(mtbf_s=100.0, repair_s=3.0, repair_sigma=0.0))
    world.advance(to_ps(30))
    failed, repaired = (t.time_ps for t in world.lifecycle.transitions[:2])
    assert repaired - failed == pytest.approx(to_ps(3), rel=1e-9)


def test_times_differ_by_seed_and_agree_by_seed_and_leave_starts_alone() -> None:
    found = {}
    for seed in (0, 1, 0):
        world = cluster(RandomFault(mtbf_s=100.0), seed=seed)
        world.advance(to_ps(100))
        found.setdefault(seed, []).append(outages(world))
    assert found[0][0] == found[0][1] != found[1][0]
    ready = []
    for faults in ((), (RandomFault(mtbf_s=1e9),)):
        world = cluster(*faults)
        world.command(2, 4)
        world.advance(1)
        ready.append(int(world.lifecycle.ready_ps[2]))
    assert ready[0] == ready[1]


def test_the_default_is_the_rate_of_the_llama_3_training() -> None:
    years = GPU_MTBF_S / (365.25 * 86_400)
    assert years == pytest.approx(16.4, abs=0.05)
    assert RandomFault().mtbf_s == GPU_MTBF_S


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"kind": "scheduled", "at_s": 1, "repair_s": 1}, "give exactly one of slot, server, rack, row, not none"),
        ({"kind": "scheduled", "at_s": 1, "repair_s": 1, "slot": 0, "row": 0}, "not slot and row"),
        ({"kind": "scheduled", "at_s": 1, "slot": 0}, "repair_s"),
        ({"kind": "random", "mtbf_s": 0}, "mtbf_s"),
        ({"kind": "random", "unit": "rack"}, "unit"),
        ({"kind": "sometimes"}, "'scheduled', 'random'"),
    ],
)
def test_specifications_that_mean_nothing_are_refused(given: dict[str, Any], match: str) -> None:
    with pytest.raises(ValidationError, match=match):
        TypeAdapter(FaultSpec).validate_python(given)


@pytest.mark.parametrize(("level", "last"), [("slot", 3), ("server", 2), ("rack", 2), ("row", 1)])
def test_a_place_that_does_not_exist_is_refused(level: str, last: int) -> None:
    cluster(ScheduledFault(at_s=1, repair_s=1, **{level: last}))
    with pytest.raises(InputError, match=rf"faults\[1\]\.{level}: there is no {level} {last + 1}.* at most {last}"):
        cluster(RandomFault(), ScheduledFault(at_s=1, repair_s=1, **{level: last + 1}))
