"""Tenants: when they come and go, what they draw, and that nobody can do anything about it."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from llmcluster import LLMClusterEnv
from llmcluster.agents.base import Task, View
from llmcluster.agents.static import first_fit
from llmcluster.envs.telemetry import NOBODY_ASKS, TENANT_ASKS
from llmcluster.simulator.blueprint import Blueprint
from llmcluster.simulator.cluster import Cluster
from llmcluster.simulator.errors import InputError
from llmcluster.simulator.kernels.state import EMPTY, SERVING, SLEEPING, TENANT
from llmcluster.simulator.lifecycle import Target
from llmcluster.simulator.snapshot import Snapshot
from llmcluster.simulator.tenants import Tenants, TenantsSpec
from llmcluster.simulator.topology import ClusterSpec
from llmcluster.simulator.units import PS_PER_S, to_ps
from llmcluster.simulator.workload.table import RequestTable

Tiny = Callable[..., dict[str, Any]]
MODEL = "Llama-3.1-8B"
NOTHING = RequestTable.from_columns([], [], [])
IDLE_W, TDP_W = 121.0, 700.0


def blueprint(gpus: int = 4) -> Blueprint:
    """Empty H100."""
    server = {"gpu": "H100-80GB", "gpus": gpus, "initial": "empty"}
    return Blueprint.of(ClusterSpec.model_validate({"rows": [{"racks": [{"servers": [server]}]}], "models": [MODEL]}))


def cluster(gpus: int = 4) -> Cluster:
    return Cluster(blueprint(gpus), NOTHING, np.random.default_rng(0), 64)


class Hotel:
    """A cluster whose tenants take the first free slot when they come, as long as there is one."""

    def __init__(self, gpus: int = 4, seed: int = 0, **spec: Any) -> None:
        self.cluster, self.queue = cluster(gpus), deque[int]()
        rng = np.random.default_rng(seed)
        self.tenants = Tenants(TenantsSpec(**{"mean_interval_s": 60.0, **spec}), self.cluster, rng, self.queue, 7)

    def run(self, until_s: int) -> None:
        for second in range(self.cluster.now_ps // PS_PER_S + 1, until_s + 1):
            self.cluster.advance(second * PS_PER_S)
            free = np.flatnonzero(self.cluster.engine.slots["status"] == EMPTY)
            for slot in free[: len(self.queue)].tolist():
                assert self.queue.popleft() == 7
                self.tenants.move_in(slot)

    def column(self, name: str) -> np.ndarray[Any, Any]:
        return self.cluster.history.column(name)


# ------------------------------------------------------------------------------------------------------ lives and loads


def test_tenants_come_at_their_rate() -> None:
    counts = []
    for seed in range(30):
        hotel = Hotel(1, seed, mean_interval_s=20.0)
        hotel.cluster.advance(to_ps(600))
        assert hotel.tenants.arrived == len(hotel.queue)
        counts.append(len(hotel.queue))
    assert np.mean(counts) == pytest.approx(30, rel=0.1)
    assert np.var(counts) == pytest.approx(30, rel=0.6)


def test_the_first_ones_are_there_at_once() -> None:
    hotel = Hotel(initial=3)
    assert len(hotel.queue) == hotel.tenants.arrived == 3


def test_they_stay_for_their_lives_and_leave_an_empty_slot() -> None:
    lives = []
    for seed in range(40):
        hotel = Hotel(1, seed, mean_interval_s=1e9, initial=1, life_median_s=100.0, life_sigma=0.5)
        hotel.run(1500)
        there = hotel.column("status")[:, 0] == TENANT
        begin, end = np.flatnonzero(there)[[0, -1]]
        assert there[begin : end + 1].all()
        assert hotel.cluster.engine.slots["status"][0] == EMPTY and hotel.tenants.holder[0] == 0
        lives.append(end - begin + 1)
    assert np.median(lives) == pytest.approx(100, rel=0.2)
    assert np.log(lives).std() == pytest.approx(0.5, abs=0.15)


def test_they_draw_power_between_idle_and_tdp_in_steps() -> None:
    hotel = Hotel(1, 5, mean_interval_s=1e9, initial=1, life_median_s=1e6, load=(0.25, 0.75), mean_hold_s=40.0)
    hotel.run(4000)
    power_w = hotel.column("energy_j")[2:, 0]
    low_w, high_w = (IDLE_W + share * (TDP_W - IDLE_W) for share in (0.25, 0.75))
    assert low_w <= power_w.min() < low_w + 30 and high_w - 30 < power_w.max() <= high_w
    changes = np.count_nonzero(np.abs(np.diff(power_w)) > 1e-6)
    assert 60 < changes < 230  # two seconds see a change of load in their midst
    assert hotel.column("metered_w")[2:, 0] == pytest.approx(power_w)


def test_a_constant_load_is_what_the_slot_draws() -> None:
    hotel = Hotel(2, mean_interval_s=1e9, initial=1, life_median_s=1e6, load=(1.0, 1.0))
    hotel.run(30)
    assert hotel.column("energy_j")[-1].tolist() == [pytest.approx(TDP_W), pytest.approx(70.0)]
    assert hotel.column("temperature_c")[-1, 0] > hotel.column("temperature_c")[-1, 1] + 20


def test_caps_and_commands_do_not_reach_them() -> None:
    hotel = Hotel(1, mean_interval_s=1e9, initial=1, life_median_s=30.0, life_sigma=0.0, load=(1.0, 1.0))
    hotel.run(5)
    hotel.cluster.cap(200.0)
    hotel.cluster.lock_clock(0.3)
    hotel.cluster.command(0, int(Target.SERVE))
    hotel.run(20)
    assert hotel.column("energy_j")[-10:, 0] == pytest.approx(TDP_W)
    assert hotel.cluster.engine.slots["status"][0] == TENANT
    hotel.run(120)
    assert hotel.cluster.engine.slots["status"][0] == SERVING, "the target is pursued when they have left"


def test_none_moves_in_where_one_is() -> None:
    hotel = Hotel(1, mean_interval_s=1e9, initial=2, life_median_s=1e6)
    hotel.run(1)
    with pytest.raises(InputError, match="slot 0: is tenant"):
        hotel.tenants.move_in(0)


def test_the_events_of_one_tenant_do_not_move_the_next() -> None:
    """The slot fails under its tenant and is let again; what the first was to do is forgotten."""
    hotel = Hotel(1, 3, mean_interval_s=1e9, initial=2, life_median_s=50.0, life_sigma=0.0, mean_hold_s=5.0)
    hotel.run(10)
    hotel.cluster.fail(0, repair_s=20)
    hotel.run(32)
    assert hotel.tenants.holder[0] == 2
    hotel.run(80)
    there = hotel.column("status")[:, 0] == TENANT
    assert there[35:79].all(), "the first one's end at 51 s is not the second one's"
    hotel.run(90)
    assert hotel.cluster.engine.slots["status"][0] == EMPTY


def test_the_same_seed_gives_the_same_guests() -> None:
    one, same, other = (Hotel(3, seed, mean_interval_s=20.0, life_median_s=60.0) for seed in (1, 1, 2))
    for hotel in (one, same, other):
        hotel.run(600)
    assert one.column("energy_j").tobytes() == same.column("energy_j").tobytes()
    assert one.column("energy_j").tobytes() != other.column("energy_j").tobytes()


@pytest.mark.parametrize("load", [(0.5, 0.2), (-0.1, 0.5), (0.5, 1.1)])
def test_loads_ascend_from_idle_to_tdp(load: tuple[float, float]) -> None:
    with pytest.raises(ValidationError, match=r"load .* must ascend within 0 to 1"):
        TenantsSpec(mean_interval_s=1.0, load=load)


# ------------------------------------------------------------------------------------------------------ in the scenario


def let(tiny: Tiny, groups: tuple[str, ...] = ("route", "cap", "lifecycle", "place"), **tenants: Any) -> LLMClusterEnv:
    """An H100 that serves, a large and a small empty slot, and tenants."""
    servers = [
        {"gpu": "H100-80GB", "gpus": 1, "model": MODEL},
        {"gpu": "A100-80GB", "gpus": 2, "initial": "empty"},
        {"gpu": "A100-80GB", "gpus": 1, "model": MODEL, "initial": "sleeping"},
    ]
    spec = {"mean_interval_s": 1e9, "initial": 1, "life_median_s": 1e6, "load": (1.0, 1.0), **tenants}
    env = LLMClusterEnv(tiny(servers, budget={}, actions={"groups": groups}, tenants=spec, horizon_s=120))
    env.reset(seed=1)
    return env


def keep(env: LLMClusterEnv, place: int | None = None) -> np.ndarray[Any, Any]:
    """Leaves all as it is; ``place`` is the slot for what waits."""
    size = len(env.fleet)
    return np.array([*[4] * (2 * size), *[0] * size, 1, *([] if place is None else [place + 1])])


def test_the_place_action_seats_a_tenant(tiny: Tiny) -> None:
    env = let(tiny)
    assert (env.telemetry.pending_instances, env.telemetry.pending_model) == (1, TENANT_ASKS)
    for _ in range(3):
        info = env.step(keep(env, -1))[4]
        assert env.telemetry.pending_instances == 1 and info["reward_terms"]["pending"] < 0
    obs = env.step(keep(env, 2))[0]
    assert env.telemetry.status.tolist() == [SERVING, EMPTY, TENANT, SLEEPING]
    assert (env.telemetry.pending_instances, env.telemetry.pending_model) == (0, NOBODY_ASKS)
    assert View(obs, env.observations).slot("is_tenant").tolist() == [0, 0, 1, 0]
    env.step(keep(env, -1))
    assert env.telemetry.power_w[-1, 2] == pytest.approx(400.0)


def test_masks_open_every_free_slot_to_a_tenant(tiny: Tiny) -> None:
    env = let(tiny)
    assert env.action_masks()[-5:].tolist() == [True, False, True, True, True]
    env.step(keep(env, 3))
    assert env.telemetry.status[3] == TENANT
    assert env.action_masks()[-5:].tolist() == [True] + [False] * 4


def test_agents_see_that_a_tenant_asks(tiny: Tiny) -> None:
    env = let(tiny)
    task = Task.of(env)
    obs = env.observations.build(env.telemetry, np.zeros((5, 4, 3)))
    view = View(obs, env.observations)
    assert view.cluster("pending_tenant") == 1 and first_fit(task, view) == 1
    obs = env.step(keep(env, 1))[0]
    view = View(obs, env.observations)
    assert view.cluster("pending_tenant") == 0 and first_fit(task, view) == -1


def test_without_the_place_action_tenants_fit_themselves_in(tiny: Tiny) -> None:
    env = let(tiny, ("route", "cap", "lifecycle"), initial=4)
    env.step(keep(env))
    assert env.telemetry.status.tolist() == [SERVING, TENANT, TENANT, TENANT], "those asleep come after those empty"
    assert env.telemetry.pending_instances == 1
    sleep = keep(env)
    sleep[8] = 2  # the first slot off
    for _ in range(3):
        env.step(sleep)
    assert env.telemetry.status[0] == TENANT and env.telemetry.pending_instances == 0


def test_a_tenant_takes_its_turn_among_instances(tiny: Tiny) -> None:
    env = let(tiny)
    env.plant.pending.appendleft(0)
    env.step(keep(env, 1))
    env.step(keep(env, 2))
    assert env.telemetry.status[2] == TENANT and env.telemetry.status[1] != TENANT


@pytest.mark.parametrize("cut_s", [0, 30, 90])
def test_a_saved_run_has_the_same_guests(tiny: Tiny, cut_s: int) -> None:
    spec = {"initial": 2, "mean_interval_s": 15.0, "life_median_s": 20.0, "load": (0.0, 1.0), "mean_hold_s": 5.0}
    env, other = let(tiny, **spec), let(tiny, **spec)
    other.reset(seed=2)

    def play(env: LLMClusterEnv, ticks: int) -> list[bytes]:
        task, seen = Task.of(env), []
        for _ in range(ticks):
            view = View(env.observations.build(env.telemetry, np.zeros((5, 4, 3))), env.observations)
            seen.append(env.step(keep(env, first_fit(task, view)))[0]["slots"].tobytes())
        return seen

    play(env, cut_s // 10)
    snapshot = Snapshot.from_bytes(env.save_state().to_bytes())
    expected = play(env, 12 - cut_s // 10)
    for again in (env, other, copy.deepcopy(other)):
        again.restore_state(snapshot)
        assert play(again, 12 - cut_s // 10) == expected
    assert len(set(expected)) == len(expected)
