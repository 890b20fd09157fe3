"""The cluster from outside: life of instances, and the gateway that holds and hands out requests meanwhile."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcluster.simulator.blueprint import Blueprint
from llmcluster.simulator.kernels.state import (
    AT_GATEWAY,
    DRAINING,
    EMPTY,
    FINISHED,
    LOADING,
    REJECTED,
    SERVING,
    SLEEPING,
    TIMED_OUT,
)
from llmcluster.simulator.lifecycle import DRAIN_POLL_PS, START_JITTER, Target
from llmcluster.simulator.topology import ClusterSpec
from llmcluster.simulator.units import PS_PER_S, to_ps
from llmcluster.simulator.workload.table import RequestTable
from llmcluster.tests.one_server import (
    ASLEEP,
    BARE,
    GPU,
    MODEL,
    OFF,
    ONE,
    OTHER,
    SERVE,
    SERVE_OTHER,
    SLEEP,
    TWO,
    blueprint,
    cluster,
    crowd,
    run_to,
    states,
    status,
    table,
)

# ------------------------------------------------------------------------------------------------------ instance life


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("plan", "name"), [(ASLEEP, "wake_s"), (BARE, "load_s")])
def test_a_start_takes_its_time_give_or_take_the_jitter(plan: Blueprint, name: str, seed: int) -> None:
    world = cluster(plan, seed=seed)
    run_to(world, 3)
    world.command(0, SERVE)
    run_to(world, 100)
    begin, end = world.lifecycle.transitions
    assert (begin.status, end.status) == (LOADING, SERVING)
    expected_s = getattr(plan.deployments[0], name)
    took_s = (end.time_ps - begin.time_ps) / PS_PER_S
    assert begin.time_ps == to_ps(3)
    assert (1 - START_JITTER) * expected_s <= took_s <= (1 + START_JITTER) * expected_s
    assert end.time_ps == world.lifecycle.ready_ps[0]
    assert world.lifecycle.starts == 1


def test_starts_differ_from_seed_to_seed() -> None:
    ready = set()
    for seed in range(5):
        world = cluster(ASLEEP, seed=seed)
        world.command(0, SERVE)
        run_to(world, 1)
        ready.add(int(world.lifecycle.ready_ps[0]))
    assert len(ready) == 5


@pytest.mark.parametrize(("target", "final"), [(SLEEP, SLEEPING), (OFF, EMPTY)])
def test_a_slot_drains_before_it_sleeps_or_empties(target: int, final: int) -> None:
    world = cluster(requests=table([0.0], output=2000))
    run_to(world, 1)
    world.command(0, target)
    run_to(world, 2)
    assert status(world) == DRAINING and not world.finished
    run_to(world, 60)
    assert states(world) == [DRAINING, final]
    row = world.engine.requests[0]
    assert row["status"] == FINISHED and row["finish_ps"] > to_ps(2)
    slept = world.lifecycle.transitions[-1].time_ps
    assert 0 <= slept - row["finish_ps"] <= DRAIN_POLL_PS


def test_a_draining_slot_takes_no_request_and_the_gateway_keeps_it() -> None:
    world = cluster(requests=table([0.0, 1.5], output=2000))
    run_to(world, 1)
    world.command(0, SLEEP)
    run_to(world, 40)
    assert status(world) == SLEEPING and world.held_at_gateway == 1
    assert world.engine.requests["status"].tolist() == [FINISHED, AT_GATEWAY]
    world.command(0, SERVE)
    assert world.drain()
    ready = world.lifecycle.transitions[-1].time_ps
    assert world.engine.requests["admit_ps"][1] == ready and world.held_at_gateway == 0


def test_a_target_may_be_taken_back_while_the_slot_drains() -> None:
    world = cluster(requests=table([0.0], output=2000))
    run_to(world, 1)
    world.command(0, SLEEP)
    run_to(world, 2)
    world.command(0, SERVE)
    run_to(world, 3)
    assert states(world) == [DRAINING, SERVING]
    assert world.lifecycle.transitions[-1].time_ps - to_ps(2) <= DRAIN_POLL_PS
    run_to(world, 60)
    assert world.finished and status(world) == SERVING and world.lifecycle.starts == 0


def test_the_last_target_counts_when_the_drain_ends() -> None:
    world = cluster(requests=table([0.0], output=2000))
    for second, target in ((1, SLEEP), (2, OFF)):
        run_to(world, second)
        world.command(0, target)
    run_to(world, 60)
    assert states(world) == [DRAINING, EMPTY]


def test_a_slot_changes_its_model_by_way_of_empty() -> None:
    world = cluster(requests=table([0.0, 2.0], models=(MODEL, OTHER), model=[0, 1], output=1500))
    run_to(world, 1)
    world.command(0, SERVE_OTHER)
    run_to(world, 3)
    assert status(world) == DRAINING and world.held_at_gateway == 1
    assert world.drain()
    assert states(world) == [DRAINING, EMPTY, LOADING, SERVING]
    assert world.blueprint.deployments[world.engine.slots["deployment"][0]].model == 1
    assert (world.engine.requests["status"] == FINISHED).all()
    assert world.engine.slots["free_blocks"][0] == world.blueprint.deployments[1].kv_blocks


def test_a_load_is_carried_through_before_another_target_counts() -> None:
    requests = table([0.0], models=(MODEL,), model=[0])
    world = cluster(BARE, requests)
    world.command(0, SERVE)
    run_to(world, 5)
    world.command(0, SERVE_OTHER)
    run_to(world, 200)
    assert states(world) == [LOADING, SERVING, DRAINING, EMPTY, LOADING, SERVING]
    assert world.lifecycle.starts == 2
    # The moment of service in between is none: nothing was admitted, and now the model is gone.
    assert world.held_at_gateway == 1 and world.engine.requests["admit_ps"][0] == -1


def test_a_wake_that_is_revoked_ends_asleep() -> None:
    world = cluster(ASLEEP)
    world.command(0, SERVE)
    run_to(world, 5)
    world.command(0, SLEEP)
    run_to(world, 100)
    assert states(world) == [LOADING, SERVING, DRAINING, SLEEPING]


def test_a_target_may_change_twice_during_a_load_at_no_cost() -> None:
    world = cluster(ASLEEP)
    for second, target in ((0, SERVE), (3, OFF), (6, SERVE)):
        run_to(world, second)
        world.command(0, target)
    run_to(world, 100)
    assert states(world) == [LOADING, SERVING] and world.lifecycle.starts == 1


def test_a_sleeper_can_be_switched_off_and_an_empty_slot_is_as_good_as_asleep() -> None:
    world = cluster(ASLEEP)
    world.command(0, OFF)
    run_to(world, 1)
    assert states(world) == [EMPTY]
    world.command(0, SLEEP)
    run_to(world, 2)
    assert status(world) == EMPTY


def test_another_model_than_the_one_asleep_is_loaded_not_woken() -> None:
    world = cluster(ASLEEP)
    world.command(0, SERVE_OTHER)
    run_to(world, 1)
    assert states(world) == [EMPTY, LOADING]
    assert world.lifecycle.ready_ps[0] >= to_ps((1 - START_JITTER) * world.blueprint.deployments[1].load_s)


@pytest.mark.parametrize("target", [int(Target.KEEP), SERVE])
def test_keep_and_the_target_in_force_change_nothing(target: int) -> None:
    world = cluster(requests=table([0.0]))
    world.command(0, target)
    run_to(world, 10)
    assert states(world) == [] and world.finished


def test_a_model_that_does_not_fit_is_no_target() -> None:
    fields = {"gpu": GPU, "gpus": 1, "model": MODEL}
    spec = {"rows": [{"racks": [{"servers": [fields]}]}], "models": [MODEL, "Llama-3.1-70B"]}
    world = cluster(Blueprint.of(ClusterSpec.model_validate(spec)))
    assert not world.lifecycle.fits(0, 1)
    world.command(0, SERVE + 1)
    run_to(world, 5)
    assert status(world) == SERVING and states(world) == []


commands = st.lists(st.tuples(st.integers(0, 25), st.integers(0, 1), st.integers(0, 4)), max_size=12)


@settings(max_examples=100)
@given(commands, st.integers(0, 9))
def test_whatever_is_commanded_no_request_is_lost(given: list[tuple[int, int, int]], seed: int) -> None:
    world = cluster(TWO, crowd(60, 3.0, 300, 150, seed), seed)
    for pause, slot, target in given:
        run_to(world, world.now_ps / PS_PER_S + pause)
        world.command(slot, target)
    world.command(0, SERVE)
    assert world.drain(600)
    assert sorted(world.done.tolist()) == list(range(60))
    assert (world.engine.requests["status"] == FINISHED).all()
    assert world.history.column("output_tokens").sum() == world.requests.output_tokens.sum()
    changes = world.lifecycle.transitions
    for slot in (0, 1):
        ours = [t for t in changes if t.slot == slot]
        legal = {
            SERVING: {DRAINING},
            DRAINING: {SERVING, SLEEPING, EMPTY},
            SLEEPING: {EMPTY, LOADING},
            EMPTY: {LOADING},
            LOADING: {SERVING},
        }
        before = SERVING
        for change in ours:
            assert change.status in legal[before]
            before = change.status
    assert world.lifecycle.starts == sum(t.status == LOADING for t in changes)


# ------------------------------------------------------------------------------------------------------------- gateway


def test_nothing_is_lost_while_all_sleep() -> None:
    world = cluster(blueprint(2, initial="sleeping"), crowd(50, 10.0))
    run_to(world, 30)
    assert world.held_at_gateway == world.arrived == 50 and len(world.done) == 0
    world.command(1, SERVE)
    assert world.drain()
    rows = world.engine.requests
    assert (rows["status"] == FINISHED).all() and (rows["slot"] == 1).all()
    # First come, first served, from the moment of readiness.
    assert rows["admit_ps"][0] == world.lifecycle.ready_ps[1]
    assert (np.diff(rows["admit_ps"]) >= 0).all()


def test_the_gateway_drops_clients_that_have_gone() -> None:
    world = cluster(ASLEEP, table([0.0, 1.0], timeout_ps=[to_ps(5), -1]))
    run_to(world, 4)
    assert world.held_at_gateway == 2
    run_to(world, 10)
    world.command(0, SERVE)
    assert world.drain()
    rows = world.engine.requests
    assert rows["status"].tolist() == [TIMED_OUT, FINISHED] and rows["admit_ps"][0] == -1


def test_a_request_too_long_for_the_context_is_rejected() -> None:
    world = cluster(blueprint(engine={"max_model_len": 300}), table([0.0, 1.0], prompt=200, output=101))
    run_to(world, 2)
    assert world.engine.requests["status"].tolist() == [REJECTED, REJECTED] and world.finished


def test_a_slot_of_weight_zero_gets_nothing_unless_it_is_the_only_one() -> None:
    for router in ("round-robin", "least-outstanding"):
        world = cluster(TWO, crowd(40, 20.0))
        world.route([0.0, 1.0], router)
        assert world.drain()
        assert (world.engine.requests["slot"] == 1).all()
        alone = cluster(ONE, crowd(5, 20.0))
        alone.route(0.0, router)
        assert alone.drain() and (alone.engine.requests["status"] == FINISHED).all()


def test_requests_go_only_to_slots_of_their_model() -> None:
    fields = [{"gpu": GPU, "gpus": 1, "model": name} for name in (MODEL, OTHER)]
    plan = Blueprint.of(ClusterSpec.model_validate({"rows": [{"racks": [{"servers": fields}]}]}))
    n = 30
    model = np.arange(n) % 3 - 1
    requests = table([0.1 * i for i in range(n)], models=(OTHER, MODEL), model=model)
    world = cluster(plan, requests)
    assert world.drain()
    slot = world.engine.requests["slot"]
    assert (slot[model == 0] == 1).all() and (slot[model == 1] == 0).all()
    assert set(slot[model == -1]) == {0, 1}


@settings(max_examples=50)
@given(st.integers(0, 2**32), st.sampled_from(["round-robin", "least-outstanding"]))
def test_a_session_has_one_request_in_flight_and_pauses_for_its_think_time(seed: int, router: str) -> None:
    rng = np.random.default_rng(seed)
    n = 80
    arrival_ps, session = np.sort(rng.integers(0, to_ps(20), n)), rng.integers(0, 6, n)
    think_ps = np.where(rng.random(n) < 0.8, rng.integers(0, to_ps(3), n), -1)
    prompt = np.where(rng.random(n) < 0.1, 131_072, rng.integers(1, 3000, n))
    columns = {"session": session, "think_ps": think_ps, "timeout_ps": np.where(rng.random(n) < 0.1, 0, -1)}
    requests = RequestTable.from_columns(arrival_ps, prompt, rng.integers(1, 300, n), **columns)
    world = cluster(TWO, requests, seed)
    world.route(1.0, router)
    assert world.drain()
    rows = world.engine.requests
    for number in range(6):
        mine = np.flatnonzero(session == number)
        for before, after in pairwise(mine):
            if think_ps[after] >= 0:
                released = rows["finish_ps"][before] + max(think_ps[after], 1)
                assert rows["arrival_ps"][after] == max(released, arrival_ps[after])
            else:
                assert rows["arrival_ps"][after] == arrival_ps[after]
    assert (rows["status"] == REJECTED).sum() == np.count_nonzero(prompt == 131_072)
