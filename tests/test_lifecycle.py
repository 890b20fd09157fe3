"""Failures and tenants, and laws that hold whatever happens to the slots."""

from __future__ import annotations

import gc
import weakref
from collections import defaultdict
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcluster.simulator.cluster import Cluster
from llmcluster.simulator.errors import InputError
from llmcluster.simulator.faults import RandomFault
from llmcluster.simulator.kernels.prefix import clear_cache
from llmcluster.simulator.kernels.state import (
    DRAINING,
    EMPTY,
    FAILED,
    FINISHED,
    LOADING,
    SERVING,
    SLEEPING,
    TENANT,
    TIMED_OUT,
)
from llmcluster.simulator.lifecycle import DRAIN_POLL_PS, START_JITTER, Lifecycle, Target
from llmcluster.simulator.units import PS_PER_S, to_ps
from llmcluster.simulator.workload.table import RequestTable
from llmcluster.tests.lives import FAULTS, LIVES, PLAN, SLOTS, act, cluster, play, requests

SERVE, SLEEP, OFF = int(Target.SERVE), int(Target.SLEEP), int(Target.OFF)
WAITS = (LOADING, DRAINING, FAILED)


def quiet(rows: int = 0, output: int = 2000) -> Cluster:
    """No faults of its own; ``rows`` long requests that only slots 0 and 1 can serve."""
    table = RequestTable.from_columns(
        [0] * rows, [200] * rows, [output] * rows, models=("Llama-3.1-8B",), model=[0] * rows
    )
    return Cluster(PLAN, table, np.random.default_rng(0), 8)


def run_to(world: Cluster, second: float) -> None:
    world.advance(to_ps(second))


def states(world: Cluster, slot: int) -> list[int]:
    return [t.status for t in world.lifecycle.transitions if t.slot == slot]


def status(world: Cluster, slot: int) -> int:
    return int(world.engine.slots["status"][slot])


# ------------------------------------------------------------------------------------------------------------ failures


def test_a_serving_slot_that_fails_is_repaired_and_loads_its_model_again() -> None:
    world = quiet()
    run_to(world, 5)
    world.fail(0, repair_s=30)
    assert status(world, 0) == FAILED and world.lifecycle.ready_ps[0] == to_ps(35)
    run_to(world, 200)
    assert states(world, 0) == [FAILED, EMPTY, LOADING, SERVING] and states(world, 1) == []
    times = [t.time_ps for t in world.lifecycle.transitions]
    assert times[:3] == [to_ps(5), to_ps(35), to_ps(35)]
    load_s = PLAN.deployments[int(world.engine.slots["deployment"][0])].load_s
    assert (1 - START_JITTER) * load_s <= (times[3] - times[2]) / PS_PER_S <= (1 + START_JITTER) * load_s
    assert world.lifecycle.starts == 1


def test_a_failed_slot_draws_nothing() -> None:
    world = quiet()
    run_to(world, 5)
    world.fail(0, repair_s=10)
    run_to(world, 20)
    energy_j = world.history.column("energy_j")[:, 0]
    assert (energy_j[5:15] == 0).all() and (energy_j[:5] > 0).all() and (energy_j[15:] > 0).all()
    assert (world.history.column("status")[5:15, 0] == FAILED).all()


def test_requests_of_a_failed_slot_are_served_elsewhere_and_none_is_lost() -> None:
    world = quiet(rows=20)
    run_to(world, 2)
    held = world.engine.slots["outstanding"].copy()
    assert held[0] > 0 and held[1] > 0
    world.fail(0, repair_s=1000)
    assert world.engine.slots["outstanding"][0] == 0 and world.held_at_gateway == held[0]
    assert world.drain()
    rows = world.engine.requests
    assert (rows["status"] == FINISHED).all() and (rows["slot"] == 1).all() and (rows["generated"] == 2000).all()
    assert world.engine.slots["free_blocks"][0] == PLAN.deployments[PLAN.initial[0]].kv_blocks
    # What had been generated on the failed slot was generated twice.
    assert world.history.column("output_tokens").sum() > 20 * 2000


def test_slots_that_fail_together_do_not_hand_requests_to_one_another() -> None:
    world = quiet(rows=20)
    run_to(world, 2)
    world.fail(0, 1, repair_s=50)
    assert world.held_at_gateway == 20
    run_to(world, 51)
    assert [t.time_ps for t in world.lifecycle.transitions] == [to_ps(2)] * 2
    assert world.drain()
    ready_ps = min(t.time_ps for t in world.lifecycle.transitions if t.status == SERVING)
    assert world.engine.requests["first_token_ps"].min() > ready_ps


def test_a_load_a_drain_and_a_sleep_end_with_the_failure() -> None:
    world = quiet(rows=10)
    world.command(3, SERVE)  # loads
    run_to(world, 1)
    world.command(0, SLEEP)  # drains
    run_to(world, 2)
    assert [status(world, slot) for slot in (0, 2, 3)] == [DRAINING, SLEEPING, LOADING]
    world.fail(0, 2, 3, repair_s=500)
    run_to(world, 501)
    assert [states(world, slot) for slot in (0, 2, 3)] == [[DRAINING, FAILED], [FAILED], [LOADING, FAILED]]
    run_to(world, 1000)
    assert [states(world, slot)[-1] for slot in (0, 2, 3)] == [EMPTY, EMPTY, SERVING]
    assert world.lifecycle.starts == 2


@pytest.mark.parametrize(("second", "end"), [(5, 30), (20, 35), (60, 75)])
def test_of_two_repairs_the_later_counts(second: float, end: float) -> None:
    world = quiet()
    world.command(0, OFF)
    run_to(world, 0.5)
    world.fail(0, repair_s=29.5)
    run_to(world, second)
    world.fail(0, repair_s=15)
    run_to(world, 100)
    outage = [FAILED, EMPTY] if second < 30 else [FAILED, EMPTY, FAILED, EMPTY]
    assert states(world, 0) == [DRAINING, EMPTY, *outage]
    assert world.lifecycle.transitions[-1].time_ps == to_ps(end) == world.lifecycle.ready_ps[0]


def test_targets_given_during_an_outage_count_after_it() -> None:
    world = quiet()
    world.fail(0, 1, repair_s=20)
    run_to(world, 5)
    world.command(0, SLEEP)
    world.command(1, SERVE + 1)
    run_to(world, 19)
    assert states(world, 0) == states(world, 1) == [FAILED]
    run_to(world, 200)
    assert states(world, 0) == [FAILED, EMPTY] and states(world, 1) == [FAILED, EMPTY, LOADING, SERVING]
    assert PLAN.deployments[int(world.engine.slots["deployment"][1])].model == 1


def test_requests_are_evicted_when_all_that_fail_have_failed() -> None:
    """Else a router might hand them to the next one that is about to fail."""
    world, seen = quiet(), []
    slots = world.engine.slots

    def evict(slot: int) -> None:
        seen.append((slot, slots["status"].tolist()))

    rng = np.random.default_rng(0)
    clear = partial(clear_cache, world.engine)
    life = Lifecycle(world.agenda, slots, PLAN.deployments, PLAN.index, rng, clear, clear, evict)
    life.fail(0, 1, 3, repair_ps=10)
    life.fail(1, 2, repair_ps=20)
    together = [FAILED, FAILED, SLEEPING, FAILED]
    assert seen == [(0, together), (1, together), (3, together), (2, [FAILED] * 4)]


def test_a_negative_repair_is_refused() -> None:
    with pytest.raises(InputError, match="at least 0"):
        quiet().fail(0, repair_s=-1)


# ------------------------------------------------------------------------------------------------------------- tenants


def test_a_tenant_draws_what_it_says_and_the_target_waits_for_it_to_leave() -> None:
    world = quiet()
    world.occupy(3, 1200.0)
    run_to(world, 10)
    world.command(3, SERVE + 2)
    world.lifecycle.set_load(3, 300.0)
    run_to(world, 20)
    assert states(world, 3) == [TENANT]
    energy_j = world.history.column("energy_j")[:, 3]
    assert energy_j.tolist() == pytest.approx([1200.0] * 10 + [300.0] * 10)
    world.vacate(3)
    run_to(world, 400)
    assert states(world, 3) == [TENANT, EMPTY, LOADING, SERVING]
    assert world.engine.slots["load_w"][3] == 0


def test_a_tenant_on_a_sleeper_drops_its_weights() -> None:
    world = quiet()
    world.occupy(2, 100.0)
    run_to(world, 1)
    world.vacate(2)
    run_to(world, 2)
    assert states(world, 2) == [TENANT, EMPTY] and world.lifecycle.target[2] == SLEEP
    world.command(2, SERVE + 1)
    run_to(world, 3)
    deployment = PLAN.deployments[int(world.engine.slots["deployment"][2])]
    assert world.lifecycle.ready_ps[2] - to_ps(2) >= to_ps((1 - START_JITTER) * deployment.load_s)


def test_a_command_of_the_same_instant_waits_for_the_tenant() -> None:
    world = quiet()
    world.lifecycle.command(3, SERVE + 2)
    world.lifecycle.occupy(3, 100.0)
    run_to(world, 5)
    assert states(world, 3) == [TENANT]
    world.vacate(3)
    run_to(world, 6)
    assert states(world, 3) == [TENANT, EMPTY, LOADING]


def test_a_tenant_that_fails_is_gone() -> None:
    world = quiet()
    world.occupy(3, 1000.0)
    run_to(world, 1)
    world.fail(3, repair_s=5)
    run_to(world, 10)
    assert states(world, 3) == [TENANT, FAILED, EMPTY]
    with pytest.raises(InputError, match="has no tenant: it is empty"):
        world.vacate(3)


@pytest.mark.parametrize(
    ("deed", "match"),
    [
        (lambda world: world.occupy(0, 100.0), "is serving"),
        (lambda world: world.occupy(3, -1.0), "cannot draw -1.0 W"),
        (lambda world: world.occupy(3, float("nan")), "cannot draw nan W"),
        (lambda world: world.lifecycle.set_load(3, 1.0), "has no tenant: it is empty"),
        (lambda world: world.vacate(0), "has no tenant: it is serving"),
    ],
)
def test_what_tenants_cannot_do_is_refused(deed: Any, match: str) -> None:
    world = quiet()
    with pytest.raises(InputError, match=match):
        deed(world)
    run_to(world, 1)
    assert world.lifecycle.transitions == [] and world.engine.slots["load_w"].tolist() == [0.0] * SLOTS


# ---------------------------------------------------------------------------------------------------------------- laws

LEGAL = {
    EMPTY: {LOADING, TENANT, FAILED},
    LOADING: {SERVING, FAILED},
    SERVING: {DRAINING, FAILED},
    DRAINING: {SERVING, SLEEPING, EMPTY, FAILED},
    SLEEPING: {EMPTY, LOADING, TENANT, FAILED},
    TENANT: {EMPTY, FAILED},
    FAILED: {EMPTY},
}


def check(world: Cluster) -> None:
    """What holds between any two calls."""
    life, slots = world.lifecycle, world.engine.slots
    due = defaultdict(list)
    for entry in world.agenda.entries:
        assert entry.due_ps >= world.now_ps
        if entry.kind == "slot":
            due[entry.values].append(entry.due_ps)
    for slot in range(SLOTS):
        state, deployment = slots["status"][slot], int(slots["deployment"][slot])
        if state in (LOADING, SERVING, DRAINING, SLEEPING):
            assert PLAN.index[slot, PLAN.deployments[deployment].model] == deployment
        live = due[slot, int(life._turn[slot])]
        assert len(live) == (state in WAITS), "one event for a slot that waits, none for one that does not"
        if state in (LOADING, FAILED):
            assert live == [life.ready_ps[slot]]
        if state == DRAINING:
            assert live[0] <= world.now_ps + DRAIN_POLL_PS
        if state not in (*WAITS, TENANT):
            assert life._reached(slot)
        if state not in (SERVING, DRAINING):
            assert slots["outstanding"][slot] == 0
        assert (slots["load_w"][slot] == 0) or state == TENANT


@settings(max_examples=200)
@given(LIVES, st.integers(0, 9))
def test_whatever_happens_slots_obey_the_laws(life: list[Any], seed: int) -> None:
    world = cluster(seed, faults=())
    outages: dict[int, int] = {}
    for pause, deed in life:
        world.advance(world.now_ps + to_ps(pause))
        what, slot, value = deed
        if what == "fail":
            ended = outages.get(slot, -1) < world.now_ps
            outages[slot] = max(world.now_ps + to_ps(value), -1 if ended else outages[slot])
        act(world, *deed)
        world.advance(world.now_ps + 1)
        check(world)

    for slot in np.flatnonzero(world.engine.slots["status"] == TENANT):
        world.vacate(int(slot))
    for slot, target in ((0, SERVE), (1, SERVE + 1)):
        world.command(slot, target)
    settle(world)
    log = world.lifecycle.transitions
    assert [t.time_ps for t in log] == sorted(t.time_ps for t in log)
    assert world.lifecycle.starts == sum(t.status == LOADING for t in log)
    for slot, initial in enumerate((SERVING, SERVING, SLEEPING, EMPTY)):
        before, since = initial, 0
        for change in [t for t in log if t.slot == slot]:
            assert change.status in LEGAL[before]
            if (before, change.status) == (LOADING, SERVING):
                assert change.time_ps - since <= to_ps((1 + START_JITTER) * max(d.load_s for d in PLAN.deployments))
            before, since = change.status, change.time_ps
        ends = [t.time_ps for t in log if t.slot == slot and t.status == EMPTY]
        assert slot not in outages or outages[slot] in ends, "the last repair ends when it should"


def settle(world: Cluster) -> None:
    """With nothing more done to it, every slot reaches its target and every request leaves."""
    world.advance(world.now_ps + to_ps(400))
    assert world.drain(2000)
    world.advance(world.now_ps + to_ps(1))
    check(world)
    assert all(world.lifecycle._reached(slot) for slot in range(SLOTS))
    assert world.agenda.entries == ()
    assert sorted(world.done.tolist()) == list(range(len(world.requests)))
    assert set(world.engine.requests["status"]) <= {FINISHED, TIMED_OUT}
    served = [slot for slot in range(SLOTS) if status(world, slot) == SERVING]
    kv_blocks = [PLAN.deployments[int(world.engine.slots["deployment"][slot])].kv_blocks for slot in served]
    assert world.engine.slots["free_blocks"][served].tolist() == kv_blocks


@settings(max_examples=20)
@given(LIVES, st.integers(0, 9))
def test_equal_seeds_live_equal_lives(life: list[Any], seed: int) -> None:
    one, two = cluster(seed), cluster(seed)
    for world in (one, two):
        play(world, life)
        world.advance(world.now_ps + to_ps(50))
    assert one.save_state().to_bytes() == two.save_state().to_bytes()


def test_a_run_with_much_to_come_is_freed_at_once() -> None:
    world = Cluster(PLAN, requests(0), np.random.default_rng(0), 8, (*FAULTS, RandomFault(mtbf_s=50.0)))
    run_to(world, 30)
    world.command(3, SERVE)
    world.fail(0, repair_s=1000)
    assert len(world.agenda.entries) > 3
    parts = [weakref.ref(part) for part in (world, world.agenda, world.lifecycle, world.faults, world.engine.requests)]
    gc.collect()
    gc.disable()
    try:
        del world
        assert [part() for part in parts] == [None] * len(parts)
    finally:
        gc.enable()
