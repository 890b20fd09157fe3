"""The cluster from outside: life of instances, power, heat, caps, the record, the gateway and what it refuses."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from llmcluster.simulator.blueprint import Blueprint
from llmcluster.simulator.catalog import Catalog
from llmcluster.simulator.cluster import Cluster
from llmcluster.simulator.errors import InputError
from llmcluster.simulator.kernels.state import (
    AT_GATEWAY,
    CLOCK,
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
from llmcluster.simulator.topology import ClusterSpec, EngineSpec, ServerSpec
from llmcluster.simulator.units import PS_PER_S, to_ps
from llmcluster.simulator.workload.table import RequestTable

GPU, MODEL, OTHER = "H100-80GB", "Llama-3.1-8B", "Qwen3-8B"
SERVE, SERVE_OTHER = int(Target.SERVE), int(Target.SERVE) + 1
SLEEP, OFF = int(Target.SLEEP), int(Target.OFF)


def blueprint(gpus: int = 1, engine: dict[str, Any] | None = None, **server: Any) -> Blueprint:
    """One server of single-GPU slots; both models may be loaded."""
    fields = {"gpu": GPU, "gpus": gpus, "model": MODEL, **server}
    spec = {"rows": [{"racks": [{"servers": [fields]}]}], "models": [MODEL, OTHER], "engine": engine or {}}
    return Blueprint.of(ClusterSpec.model_validate(spec))


ONE, TWO = blueprint(), blueprint(2)
ASLEEP, BARE = blueprint(initial="sleeping"), blueprint(initial="empty")
NOTHING = RequestTable.from_columns([], [], [])


def table(arrival_s: list[float], prompt: int = 200, output: int = 100, **optional: Any) -> RequestTable:
    n = len(arrival_s)
    return RequestTable.from_columns([to_ps(t) for t in arrival_s], [prompt] * n, [output] * n, **optional)


def crowd(n: int, rate: float, prompt: int = 800, output: int = 200, seed: int = 0) -> RequestTable:
    rng = np.random.default_rng(seed)
    arrival_s = rng.exponential(1 / rate, n).cumsum()
    lengths = rng.integers(1, 2 * prompt, n), rng.integers(1, 2 * output, n)
    return RequestTable.from_columns((arrival_s * PS_PER_S).astype(np.int64), *lengths)


def cluster(plan: Blueprint = ONE, requests: RequestTable = NOTHING, seed: int = 0) -> Cluster:
    return Cluster(plan, requests, np.random.default_rng(seed), 8)


def run_to(world: Cluster, second: float) -> None:
    world.advance(to_ps(second))


def states(world: Cluster, slot: int = 0) -> list[int]:
    return [t.status for t in world.lifecycle.transitions if t.slot == slot]


def status(world: Cluster, slot: int = 0) -> int:
    return int(world.engine.slots["status"][slot])


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


# ------------------------------------------------------------------------------------------------------ power and heat


@pytest.mark.parametrize(
    ("plan", "name"), [(ONE, "idle_w"), (ASLEEP, "off_w"), (BARE, "off_w")], ids=["serving", "sleeping", "empty"]
)
def test_power_without_work(plan: Blueprint, name: str) -> None:
    world = cluster(plan)
    run_to(world, 5)
    expected = getattr(plan.deployments[0].power, name)
    assert world.history.column("energy_j").tolist() == [[pytest.approx(expected, rel=1e-12)]] * 5
    assert world.history.column("metered_w").tolist() == [[pytest.approx(expected, rel=1e-12)]] * 5


def test_a_change_of_state_in_mid_second_is_billed_to_the_picosecond() -> None:
    world = cluster()
    power = world.blueprint.deployments[0].power
    run_to(world, 2.25)
    world.command(0, OFF)
    run_to(world, 5)
    expected = [power.idle_w, power.idle_w, 0.25 * power.idle_w + 0.75 * power.off_w, power.off_w, power.off_w]
    assert world.history.column("energy_j")[:, 0].tolist() == pytest.approx(expected, rel=1e-12)


def test_temperature_settles_at_the_inlet_plus_resistance_times_power() -> None:
    world = cluster(blueprint(2, inlet_c=30.0, inlet_k_per_kw=4.0))
    run_to(world, 400)
    power = world.blueprint.deployments[0].power
    expected = 30 + 4e-3 * 2 * power.idle_w + power.thermal_r_k_per_w.sum() * power.idle_w
    assert world.history.column("temperature_c", 1)[0].tolist() == pytest.approx([expected, expected], rel=1e-6)


def test_heat_rises_with_the_time_constants_of_the_catalogue() -> None:
    world = cluster(blueprint(inlet_k_per_kw=0.0))
    run_to(world, 3)
    power = world.blueprint.deployments[0].power
    seconds = np.arange(1, 4)[:, None]
    rise = power.thermal_r_k_per_w * power.idle_w * (1 - np.exp(-seconds / power.thermal_tau_s))
    assert world.history.column("temperature_c")[:, 0] == pytest.approx(24 + rise.sum(axis=1), rel=1e-6)


def test_a_hot_inlet_throttles_with_hysteresis() -> None:
    requests = RequestTable.from_columns(np.arange(3000) * to_ps(0.02), [6000] * 3000, [2] * 3000)
    cool, hot = cluster(requests=requests), cluster(blueprint(inlet_c=60.0), requests)
    for world in (cool, hot):
        run_to(world, 300)
    assert cool.engine.slots["throttle_events"][0] == 0
    events = int(hot.engine.slots["throttle_events"][0])
    assert events >= 2
    power = hot.blueprint.deployments[0].power
    temperature, clock = hot.history.column("temperature_c")[:, 0], hot.history.column("clock_ratio")[:, 0]
    throttled = np.zeros(len(temperature), bool)
    for second, degrees in enumerate(temperature):
        before = second > 0 and throttled[second - 1]
        throttled[second] = degrees > power.resume_c if before else degrees >= power.throttle_c
    assert np.count_nonzero(np.diff(throttled.astype(int)) == 1) == events
    assert ((temperature > power.resume_c) & (temperature < power.throttle_c) & throttled).any(), "no hysteresis seen"
    # The clock at the end of a second that began throttled.
    assert clock[1:][throttled[:-1]].max() <= power.clock_ratio[len(power.clock_ratio) // 4]
    # Long prompts are held to the TDP, below the highest clock, hot or not.
    assert clock[1:][~throttled[:-1]].max() >= 0.98 * cool.history.column("clock_ratio")[:, 0].max() > 0.5


def test_caps_hold_and_never_raise_power() -> None:
    requests = crowd(400, 12.0, 1500, 150)
    peak, finish, energy = [], [], []
    for cap_w in (700.0, 500.0, 400.0, 350.0):  # at 300 W the lowest clock draws more
        world = cluster(requests=requests)
        world.cap(cap_w)
        assert world.drain()
        power_w = world.history.column("energy_j")[:, 0]
        assert power_w.max() <= cap_w * 1.005
        peak.append(float(power_w.max()))
        finish.append(int(world.engine.requests["finish_ps"].max()))
        energy.append(float(power_w[: finish[0] // PS_PER_S].sum()))
    assert peak == sorted(peak, reverse=True) and peak[0] > 500
    assert finish == sorted(finish) and finish[-1] > finish[0]
    assert energy == sorted(energy, reverse=True)


def test_caps_are_clipped_to_what_the_driver_accepts() -> None:
    world = cluster(TWO)
    world.cap([1.0, 1e6])
    run_to(world, 1)
    assert world.engine.slots["cap_w"].tolist() == [200.0, 700.0]


def test_a_clock_lock_holds_slows_and_saves_power() -> None:
    requests = crowd(200, 10.0, 1500, 100)
    free, locked = cluster(requests=requests), cluster(requests=requests)
    locked.lock_clock(0.5)
    assert free.drain() and locked.drain()
    ladder = locked.engine.ladder[0, CLOCK]
    limit = locked.engine.slots["clock_limit"][0]
    assert ladder[limit] <= 0.5 < ladder[limit + 1]
    clocks = locked.history.column("clock_ratio")[:, 0]
    assert clocks.max() == np.float32(ladder[limit]) and free.history.column("clock_ratio").max() == 1.0
    assert locked.history.column("energy_j").max() < free.history.column("energy_j").max()
    assert locked.engine.requests["finish_ps"].sum() > free.engine.requests["finish_ps"].sum()


@pytest.mark.parametrize(("ratio", "step"), [(1.0, 80), (0.0, 0), (0.17424242424242425, 0)])
def test_a_clock_lock_takes_the_step_below(ratio: float, step: int) -> None:
    world = cluster()
    world.lock_clock(ratio)
    run_to(world, 1)
    assert world.engine.slots["clock_limit"].tolist() == [step]


# ---------------------------------------------------------------------------------------------------------- the record


def test_the_history_has_a_row_for_each_whole_second() -> None:
    world = cluster(TWO, crowd(100, 10.0))
    for second, length in ((0.4, 0), (1.0, 1), (1.7, 1), (3.2, 3), (100.0, 100)):
        run_to(world, second)
        assert len(world.history) == length
    for name in ("energy_j", "metered_w", "temperature_c", "running", "kv_used", "output_tokens", "status"):
        assert world.history.column(name).shape == (100, 2)
        assert world.history.column(name, 7).tolist() == world.history.column(name)[-7:].tolist()
    assert world.history.column("output_tokens").sum() == world.requests.output_tokens.sum()


def test_the_history_is_aligned_with_time() -> None:
    """A request that arrives at second 300, past the ring of bins, shows there and nowhere before."""
    world = cluster(requests=table([300.0], prompt=64, output=3))
    run_to(world, 305)
    assert np.flatnonzero(world.history.column("prompt_tokens")[:, 0]).tolist() == [300]
    assert np.flatnonzero(world.history.column("output_tokens")[:, 0]).tolist() == [300]
    energy = world.history.column("energy_j")[:, 0]
    assert (energy[:300] == pytest.approx(energy[0])) and energy[300] > energy[299]


def test_the_status_column_follows_the_life_of_the_slot() -> None:
    world = cluster(ASLEEP)
    run_to(world, 10)
    world.command(0, SERVE)
    run_to(world, 60)
    ready = world.lifecycle.ready_ps[0] / PS_PER_S
    column = world.history.column("status")[:, 0]
    assert (column[:10] == SLEEPING).all() and (column[10 : int(ready)] == LOADING).all()
    assert (column[int(ready) + 1 :] == SERVING).all()


@settings(max_examples=50)
@given(st.lists(st.floats(0.01, 90.0), max_size=15), st.integers(0, 99))
def test_it_does_not_matter_how_the_time_is_sliced(pauses: list[float], seed: int) -> None:
    plan = blueprint(2, inlet_k_per_kw=0.0)
    worlds = []
    for pauses_here in ([], pauses):
        world = cluster(plan, crowd(80, 8.0, seed=seed), seed)
        for pause in pauses_here:
            world.advance(world.now_ps + to_ps(pause))
        run_to(world, 2000)
        worlds.append(world)
    one, two = worlds
    assert one.engine.requests.tobytes() == two.engine.requests.tobytes()
    for name in ("energy_j", "temperature_c"):
        np.testing.assert_allclose(one.history.column(name), two.history.column(name), rtol=1e-9)


def test_drain_stops_when_all_have_left() -> None:
    world = cluster(requests=crowd(30, 10.0))
    assert world.drain() and world.finished and len(world.done) == 30
    last = int(world.engine.requests["finish_ps"].max())
    assert world.now_ps % PS_PER_S == 0 and last <= world.now_ps < last + PS_PER_S


def test_drain_gives_up_after_its_patience() -> None:
    world = cluster(ASLEEP, table([0.0]))
    run_to(world, 1.5)
    assert not world.drain(20) and not world.finished
    assert to_ps(21.5) <= world.now_ps < to_ps(22.5)


def digest(seed: int) -> str:
    """Of everything that a run with caps, sleep and wake leaves behind."""
    world = cluster(TWO, crowd(300, 10.0, seed=seed), seed)
    for second, slot, target in ((5, 0, SLEEP), (12, 0, SERVE), (20, 1, OFF)):
        run_to(world, second)
        world.cap([300.0 + second, 700.0])
        world.command(slot, target)
    world.drain()
    found = hashlib.sha256(world.engine.requests.tobytes() + world.done.tobytes())
    for name in ("energy_j", "metered_w", "temperature_c", "kv_used", "running", "status"):
        found.update(world.history.column(name).tobytes())
    found.update(repr(world.lifecycle.transitions).encode())
    return found.hexdigest()


def test_the_same_seed_gives_the_same_bytes_here_and_in_another_process() -> None:
    code = "from llmcluster.tests.test_cluster import digest; print(digest(3))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert digest(3) == digest(3) == other.stdout.strip()
    assert digest(3) != digest(4)


# ----------------------------------------------------------------------------------------------------- what is refused


def test_a_workload_for_an_unknown_model_is_refused() -> None:
    with pytest.raises(InputError, match=r"does not have model 'GPT-5'.*Use one of Llama-3.1-8B, Qwen3-8B"):
        cluster(requests=table([0.0], models=("GPT-5",), model=[0]))


def test_an_unknown_router_is_refused() -> None:
    with pytest.raises(InputError, match=r"'fastest' is unknown\. Use one of round-robin, least-outstanding"):
        cluster().route(1.0, "fastest")


def test_tp_must_divide_the_server() -> None:
    with pytest.raises(ValidationError, match=r"tp 8 cannot be laid on a server of 4 GPUs; use a tp of 1, 2, 4, or"):
        ServerSpec(gpu=GPU, gpus=4, tp=8, model=MODEL)


def test_a_serving_server_needs_a_model() -> None:
    with pytest.raises(ValidationError, match="initial 'serving' needs a model"):
        ServerSpec(gpu=GPU)


@pytest.mark.parametrize("budget", [255, 256])
def test_the_budget_must_hold_all_decodes_and_some_prefill(budget: int) -> None:
    with pytest.raises(ValidationError, match=f"max_num_batched_tokens {budget} must exceed max_num_seqs 256"):
        EngineSpec(max_num_batched_tokens=budget)
    assert EngineSpec(max_num_batched_tokens=257).max_num_batched_tokens == 257


def test_a_model_that_does_not_fit_is_refused_with_a_remedy() -> None:
    with pytest.raises(InputError, match=r"Llama-3.1-70B on H100-80GB with tp=1: needs .* GB.* Use tp=\d") as refusal:
        blueprint(model="Llama-3.1-70B")
    tp = int(refusal.value.remedy.split("tp=")[1][0])
    spec = {"gpu": GPU, "gpus": 8, "tp": tp, "model": "Llama-3.1-70B"}
    fitting = Blueprint.of(ClusterSpec.model_validate({"rows": [{"racks": [{"servers": [spec]}]}]}))
    assert len(fitting.slots) == 8 // tp


def test_a_cluster_without_any_model_is_refused() -> None:
    spec = ClusterSpec.model_validate({"rows": [{"racks": [{"servers": [{"gpu": GPU, "initial": "empty"}]}]}]})
    with pytest.raises(InputError, match="no model is named"):
        Blueprint.of(spec)


@pytest.mark.parametrize("field", [{"gpu": "H100-81GB"}, {"model": "Lama-3.1-8B"}])
def test_unknown_names_are_refused_with_a_guess(field: dict[str, str]) -> None:
    with pytest.raises(InputError, match="Did you mean"):
        blueprint(**field)


def test_slots_are_named_by_their_place() -> None:
    servers = [{"gpu": GPU, "gpus": 2, "model": MODEL, "count": 2}]
    racks = [{"servers": servers}, {"servers": [{"gpu": GPU, "gpus": 2, "tp": 2, "model": MODEL}]}]
    spec = ClusterSpec.model_validate({"rows": [{"racks": racks}, {"racks": racks[1:]}]})
    plan = Blueprint.of(spec, Catalog.builtin())
    assert [s.name for s in plan.slots] == [
        "row0/rack0/server0/slot0",
        "row0/rack0/server0/slot1",
        "row0/rack0/server1/slot0",
        "row0/rack0/server1/slot1",
        "row0/rack1/server2/slot0",
        "row1/rack2/server3/slot0",
    ]
    assert plan.cap_max_w.tolist() == [700.0] * 4 + [1400.0] * 2


@pytest.mark.parametrize("weight", [-1.0, float("nan")])
def test_weights_that_mean_nothing_are_refused(weight: float) -> None:
    with pytest.raises(InputError, match=r"Give weights of at least 0|Give 2 finite numbers"):
        cluster(blueprint(gpus=2)).route([1.0, weight])


@pytest.mark.parametrize(
    ("act", "remedy"),
    [
        (lambda c: c.cap(float("nan")), "Give 2 finite numbers"),
        (lambda c: c.cap([1.0, 2.0, 3.0]), "Give 2 finite numbers"),
        (lambda c: c.route([1.0, float("inf")]), "Give 2 finite numbers"),
        (lambda c: c.lock_clock(-1.0), "from 0 to 1"),
        (lambda c: c.lock_clock(1.5), "from 0 to 1"),
        (lambda c: c.limit(1.7), "whole numbers"),
        (lambda c: c.command(9, Target.SLEEP), "Give 0 to 1"),
        (lambda c: c.fail(-1, repair_s=1.0), "Give 0 to 1"),
        (lambda c: c.occupy(0, 1e6), "below 92 kW"),
    ],
)
def test_control_that_means_nothing_is_refused(act: Callable[[Cluster], None], remedy: str) -> None:
    with pytest.raises(InputError, match=remedy):
        act(cluster(blueprint(gpus=2)))


@pytest.mark.parametrize("limit", [0, 3])
def test_into_how_many_calls_a_run_is_cut_does_not_matter(limit: int) -> None:
    """Hot enough to throttle, so that inlets matter, and with room at the gateway running out."""
    rng = np.random.default_rng(0)
    table = RequestTable.from_columns(
        np.sort(rng.integers(0, 150 * PS_PER_S, 2000)), rng.integers(500, 3000, 2000), rng.integers(1, 200, 2000)
    )
    plan = blueprint(gpus=2, inlet_c=60.0, inlet_k_per_kw=8.0)
    runs = []
    for step_s in (200.0, 1.0, 10.0, 0.73):
        run = cluster(plan, table)
        run.limit(limit)
        for stop in np.arange(step_s, 200.0, step_s):
            run.advance(to_ps(stop))
        run.advance(200 * PS_PER_S)
        runs.append(run)
    assert runs[0].engine.slots["throttle_events"].sum() > 0
    for run in runs[1:]:
        assert run.engine.requests.tobytes() == runs[0].engine.requests.tobytes()
        assert run.history.records.tobytes() == runs[0].history.records.tobytes()
