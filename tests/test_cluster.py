"""The cluster from outside: power, heat, caps, the record and what it refuses."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from llmcluster.simulator.blueprint import Blueprint
from llmcluster.simulator.catalog import Catalog
from llmcluster.simulator.cluster import Cluster
from llmcluster.simulator.errors import InputError
from llmcluster.simulator.kernels.state import CLOCK, LOADING, SERVING, SLEEPING
from llmcluster.simulator.lifecycle import Target
from llmcluster.simulator.topology import ClusterSpec, EngineSpec, ServerSpec
from llmcluster.simulator.units import PS_PER_S, to_ps
from llmcluster.simulator.workload.table import RequestTable
from llmcluster.tests.one_server import (
    ASLEEP,
    BARE,
    GPU,
    MODEL,
    OFF,
    ONE,
    SERVE,
    SLEEP,
    TWO,
    blueprint,
    cluster,
    crowd,
    run_to,
    table,
)

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
