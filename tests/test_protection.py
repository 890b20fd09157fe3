"""What happens above power limits: brakes, trips on inverse time, and shed load."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from llmcluster import InputError, LLMClusterEnv, LLMClusterVectorEnv
from llmcluster.simulator.blueprint import Blueprint
from llmcluster.simulator.breakers import Breaker, BreakerSpec
from llmcluster.simulator.cluster import Cluster
from llmcluster.simulator.kernels.state import EMPTY, FAILED, LOADING, SERVING
from llmcluster.simulator.limits import Feeds, PowerLimit
from llmcluster.simulator.metrics import SloLimits, summarize
from llmcluster.simulator.protection import BRAKE_S, Protection, ShedSpec
from llmcluster.simulator.signals import through
from llmcluster.simulator.snapshot import Snapshot
from llmcluster.simulator.topology import ClusterSpec
from llmcluster.simulator.units import to_ps
from llmcluster.simulator.workload.table import RequestTable

MODEL = "Llama-3.1-8B"
USUAL = BreakerSpec(rating_share=0.5)
LIMITS = SloLimits(np.array([to_ps(60.0)]), np.array([to_ps(1.0)]))


def trips_after(spec: BreakerSpec, ratio: float, heat: float = 0.0) -> int:
    """Seconds that a breaker carries a steady load for."""
    breaker = Breaker(spec)
    breaker.heat = heat
    return next(second for second in range(1, 100_000) if breaker.carry(ratio))


# ------------------------------------------------------------------------------------------------------------ breakers


@pytest.mark.parametrize(("ratio", "seconds"), [(1.1, 1020), (1.4, 60)])
def test_the_usual_breaker_trips_when_facebooks_did(ratio: float, seconds: int) -> None:
    assert trips_after(USUAL, ratio) == pytest.approx(seconds, abs=1)


@pytest.mark.parametrize(("ratio", "most_s"), [(1.35, 3600), (2.0, 120)])
def test_the_usual_breaker_keeps_to_ul_489(ratio: float, most_s: int) -> None:
    assert trips_after(USUAL, ratio) <= most_s


@given(st.floats(1.001, 3.0), st.floats(1.001, 3.0))
def test_the_more_the_sooner(one: float, other: float) -> None:
    breaker = Breaker(BreakerSpec(rating_share=1.0, trip=((1.05, 3600.0), (1.35, 600.0), (2.0, 30.0))))
    assert (one < other) == (breaker.trip_s(one) > breaker.trip_s(other)) or one == other


def test_between_breakpoints_it_is_a_power_law_of_the_overload() -> None:
    assert Breaker(USUAL).trip_s(1.2) == pytest.approx(np.sqrt(1020.0 * 60.0))  # 0.2 is the geometric mean of 0.1, 0.4


@given(st.lists(st.floats(0, 1), max_size=60))
def test_below_its_rating_it_never_trips(loads: list[float]) -> None:
    breaker = Breaker(USUAL)
    assert not any(breaker.carry(load) for load in loads) and breaker.heat == 0.0


def test_it_remembers_overloads_and_cools_by_the_load() -> None:
    def rest(load: float, seconds: int) -> float:
        breaker = Breaker(USUAL)
        assert not any(breaker.carry(1.4) for _ in range(30))
        assert breaker.heat == pytest.approx(0.5)
        for _ in range(seconds):
            breaker.carry(load)
        return breaker.heat

    assert trips_after(USUAL, 1.4, heat=0.5) == pytest.approx(30, abs=1)
    assert rest(0.0, 75) == pytest.approx(0.25)
    assert rest(1.0, 1000) == pytest.approx(0.5)
    assert rest(0.6, 75) == pytest.approx(0.5 - 0.25 * (1 - 0.36))
    assert rest(0.0, 400) == 0.0


@pytest.mark.parametrize(
    "fields",
    [
        {"rating_share": 0.0},
        {"rating_share": 1.0, "trip": ((1.0, 60.0), (1.4, 30.0))},
        {"rating_share": 1.0, "trip": ((1.4, 60.0), (1.1, 30.0))},
        {"rating_share": 1.0, "trip": ((1.1, 60.0), (1.4, 90.0))},
        {"rating_share": 1.0, "trip": ((1.1, 60.0),)},
        {"rating_share": 1.0, "cool_s": 0.0},
    ],
)
def test_strange_breakers_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        BreakerSpec(**fields)


# ---------------------------------------------------------------------------------------------------------- judgements


def spec(rack: dict[str, Any] | None = None, row: dict[str, Any] | None = None, **server: Any) -> ClusterSpec:
    """Two racks in a row, each with two servers of one H100."""
    servers = [{"gpu": "H100-80GB", "gpus": 1, "model": MODEL, **server} for _ in range(2)]
    racks = [{"servers": servers, **(rack or {})}, {"servers": servers}]
    return ClusterSpec.model_validate({"rows": [{"racks": racks, **(row or {})}]})


def protection(of: ClusterSpec, feeds: Feeds | None = None, shed: ShedSpec | None = None) -> Protection:
    plan = Blueprint.of(of)
    return Protection(of, plan.slots, plan.cap_max_w, feeds, shed)


def test_a_rack_trips_alone() -> None:
    guards = protection(spec(rack={"breaker": {"rating_share": 0.5, "reset_s": 90.0}}))
    strikes, tripped = [], -1
    while not strikes:
        tripped += 1
        strikes = guards.look(tripped, np.array([560.0, 420.0, 700.0, 700.0]))
    assert tripped == pytest.approx(60, abs=1)  # 980 W of 700 W
    ((slots, repair_ps),) = strikes
    assert (slots, repair_ps) == ((0, 1), to_ps(90.0))
    assert guards.trips == [(tripped, "rack", 0)]
    assert guards.heat("rack").tolist()[2:] == [0, 0] and (guards.heat("rack")[:2] == 1).all()
    assert guards.tally(0, tripped) == (0, 0, 0) and guards.tally(tripped) == (1, 0, 0)


def test_a_rows_breaker_follows_its_feed() -> None:
    of = spec(row={"breaker": {"rating_share": 1.0}})
    feeds = Feeds((None,), (PowerLimit(through(((0.0, 2800.0), (50.0, 2800.0), (50.0, 1000.0)))),))
    guards = protection(of, feeds)
    strikes = [bool(guards.look(second, np.full(4, 350.0))) for second in range(120)]
    assert strikes.index(True) == pytest.approx(110, abs=1) and guards.trips[0][1:] == ("row", 0)


def test_a_server_above_its_limit_brakes_for_a_while() -> None:
    guards = protection(spec(power_limit_share=0.8))
    guards.look(0, np.array([600.0, 500.0, 0.0, 0.0]))
    guards.look(1, np.array([300.0, 500.0, 0.0, 0.0]))
    assert [guards.is_braked(second).tolist()[:2] for second in (1, BRAKE_S, BRAKE_S + 1)] == [
        [True, False],
        [True, False],
        [False, False],
    ]
    assert guards.tally(0) == (0, 0, 2)


def test_a_row_brakes_as_a_whole() -> None:
    guards = protection(spec(row={"power_limit_share": 0.5, "brake": True}))
    guards.look(0, np.full(4, 350.0))
    assert not guards.is_braked(1).any()
    guards.look(1, np.full(4, 350.1))
    assert guards.is_braked(2).all()


def test_a_row_without_a_limit_cannot_brake() -> None:
    with pytest.raises(ValidationError, match="give power_limit_share"):
        spec(row={"brake": True})


def test_a_site_sheds_its_last_servers_once_it_is_above_for_long() -> None:
    site = PowerLimit(through(((0.0, 1500.0), (1.0, 1500.0))))
    of = spec()
    guards = protection(of, Feeds((None,), (None,), site), ShedSpec(after_s=3, restore_s=50.0))
    over, under = np.array([600.0, 600.0, 0.0, 400.0]), np.full(4, 100.0)
    course = [over, over, over, under, over, over, over, over, over]
    strikes = [guards.look(second, power_w) for second, power_w in enumerate(course)]
    assert [len(each) for each in strikes] == [0] * 7 + [1, 0]
    assert strikes[7][0] == ((3,), to_ps(50.0))  # 100 W above; the last server is enough
    assert guards.sheds == [(7, 3)] and guards.tally(0, 9) == (0, 1, 0)


def test_servers_of_low_priority_are_shed_first_and_those_without_power_spared() -> None:
    of = spec()
    servers = [rack.servers for rack in of.rows[0].racks]
    raised = [s.model_copy(update={"shed_priority": p}) for s, p in zip(sum(servers, ()), (0, 2, 1, 2), strict=True)]
    racks = tuple(
        rack.model_copy(update={"servers": tuple(raised[2 * i : 2 * i + 2])}) for i, rack in enumerate(of.rows[0].racks)
    )
    of = of.model_copy(update={"rows": (of.rows[0].model_copy(update={"racks": racks}),)})
    site = PowerLimit(through(((0.0, 500.0), (1.0, 500.0))))
    guards = protection(of, Feeds((None,), (None,), site), ShedSpec(after_s=0))
    guards.look(0, np.array([0.0, 300.0, 300.0, 300.0]))
    assert [shed.server for shed in guards.sheds] == [2, 3]


def test_without_limits_nobody_looks() -> None:
    assert not protection(spec()).is_needed
    assert not protection(spec(row={"power_limit_share": 0.5})).is_needed  # that one is only counted
    assert protection(spec(rack={"breaker": {"rating_share": 0.5}})).is_needed


# ------------------------------------------------------------------------------------------------------ in the cluster


def busy(of: ClusterSpec, engine: Any = "compiled", seconds: int = 400) -> Cluster:
    """More long prompts than four H100 can compute: they draw about their TDP."""
    rng = np.random.default_rng(0)
    arrivals = np.sort(rng.integers(0, to_ps(float(seconds)), 40 * seconds))
    table = RequestTable.from_columns(arrivals, np.full(len(arrivals), 4000), np.full(len(arrivals), 2))
    return Cluster(Blueprint.of(of), table, np.random.default_rng(0), seconds, engine=engine)


def states(cluster: Cluster, slot: int) -> list[int]:
    return [t.status for t in cluster.lifecycle.transitions if t.slot == slot]


TRIPPY = spec(rack={"breaker": {"rating_share": 0.6, "reset_s": 40.0}})


def test_a_tripped_rack_is_dark_until_it_is_reset_and_then_loads_again() -> None:
    cluster = busy(TRIPPY)
    cluster.advance(to_ps(300.0))
    (trip, *_), power_w = cluster.protection.trips, cluster.history.column("energy_j")
    assert 10 < trip.second < 120 and (trip.level, trip.number) == ("rack", 0)
    assert states(cluster, 0)[:4] == [FAILED, EMPTY, LOADING, SERVING] and states(cluster, 2) == []
    assert power_w[trip.second, :2].sum() > 0.6 * 1400
    assert (power_w[trip.second + 1 : trip.second + 40, :2] == 0).all() and (power_w[: trip.second, :2] > 0).all()
    assert summarize(cluster, LIMITS).trips == len(cluster.protection.trips)
    assert summarize(cluster, LIMITS, warmup_s=trip.second + 1).trips == len(cluster.protection.trips) - 1


def test_caps_below_the_rating_keep_the_breaker_closed() -> None:
    cluster = busy(TRIPPY)
    cluster.cap(400.0)
    cluster.advance(to_ps(300.0))
    assert cluster.protection.trips == [] and cluster.protection.heat("rack").max() < 0.1


def test_a_brake_halves_the_clock_whatever_is_set() -> None:
    cluster = busy(spec(power_limit_share=0.7))
    cluster.advance(to_ps(60.0))
    clock, power_w = cluster.history.column("clock_ratio"), cluster.history.column("energy_j")
    braked = clock[:, 0] <= 0.5
    assert 0.5 < braked.mean() < 1.0  # it is released, is above again, and so on
    assert power_w[braked, 0].max() < 0.7 * 700 < power_w[~braked, 0].max()
    assert summarize(cluster, LIMITS).braked_s == pytest.approx((clock <= 0.5).sum(), abs=8)
    cluster.lock_clock(0.3)
    cluster.advance(to_ps(90.0))
    assert (cluster.history.column("clock_ratio", 20) <= 0.3).all()


def test_both_engines_trip_alike() -> None:
    compiled, reference = busy(TRIPPY, seconds=45), busy(TRIPPY, "reference", seconds=45)
    for cluster in (compiled, reference):
        cluster.advance(to_ps(90.0))
    assert compiled.protection.trips == reference.protection.trips != []
    assert (compiled.history.column("energy") == reference.history.column("energy")).all()


@pytest.mark.parametrize("at_s", [20.0, 60.0])
def test_a_saved_run_trips_at_the_same_second(at_s: float) -> None:
    braking = spec(rack={"breaker": {"rating_share": 0.35, "reset_s": 40.0}}, power_limit_share=0.9)
    cluster, other = busy(braking), busy(braking)
    cluster.advance(to_ps(at_s))
    other.restore_state(Snapshot.from_bytes(cluster.save_state().to_bytes()))
    for one in (cluster, other):
        one.advance(to_ps(250.0))
    assert other.protection.save_state()["trips"] == cluster.protection.save_state()["trips"] != ()
    assert other.protection.braked == cluster.protection.braked != []
    assert (other.history.column("energy") == cluster.history.column("energy")).all()


def test_heat_that_throttles_is_counted_in_seconds() -> None:
    hot = ClusterSpec.model_validate(
        {"rows": [{"racks": [{"servers": [{"gpu": "H100-80GB", "gpus": 1, "model": MODEL, "inlet_c": 60.0}]}]}]}
    )
    cluster = busy(hot, seconds=200)
    cluster.advance(to_ps(200.0))
    summary, clock = summarize(cluster, LIMITS), cluster.history.column("clock_ratio")[:, 0]
    assert summary.throttle_events > 0
    assert summary.throttled_s == pytest.approx((clock < 0.6).sum(), abs=2 * summary.throttle_events)
    assert summarize(busy(spec(), seconds=2), LIMITS).throttled_s == 0


# -------------------------------------------------------------------------------------------------- in the environment


def overloaded(tiny: Callable[..., dict[str, Any]], **sections: Any) -> dict[str, Any]:
    servers = [{"gpu": "H100-80GB", "gpus": 1, "model": MODEL, "power_limit_share": 0.95}] * 2
    rack = {"servers": servers, "breaker": {"rating_share": 0.2, "reset_s": 20.0}}
    rows = [{"racks": [rack], "breaker": {"rating_share": 0.9}}]
    return tiny(rate_per_s=20.0, cluster={"rows": rows}, budget={}, horizon_s=120, **sections)


def test_trips_are_seen_counted_and_cost(tiny: Callable[..., dict[str, Any]]) -> None:
    env = LLMClusterEnv(overloaded(tiny))
    observation, _ = env.reset(seed=0)
    features = [f.name for f in env.observations.slot_features]
    assert features[-4:] == ["is_failed", "rack_breaker", "row_breaker", "is_braked"]
    open_all = env.codec.encode(env.codec.decode(env.codec.layout.sizes - 1))
    infos, heats, failed = [], [], []
    for _ in range(12):
        observation, _, _, _, info = env.step(open_all)
        seen = observation["slots"].reshape(2, -1)[:, -4:]
        infos.append(info)
        heats.append(seen[0, 1])
        failed.append(seen[0, 0])
    trips = [info["trips"] for info in infos]
    assert sum(trips) >= 1 and env.plant is not None
    first = trips.index(1)
    assert all(a <= b for a, b in pairwise(heats[:first])) and heats[0] > 0
    assert heats[first] > 0.9 and failed[first] == 1
    assert infos[first]["cost"] >= 1
    assert env.plant.summary().trips == sum(trips)


def test_a_site_that_sheds_does_so(tiny: Callable[..., dict[str, Any]]) -> None:
    servers = [{"gpu": "H100-80GB", "gpus": 1, "model": MODEL}] * 2
    budget = {"schedule": [[0, 1.0], [30, 1.0], [30, 0.42]], "shed": {"after_s": 3}}
    content = tiny(servers, rate_per_s=4.0, budget=budget)
    env = LLMClusterEnv(content)
    env.reset(seed=0)
    everything_on = env.codec.layout.sizes - 1
    everything_on[4:6] = 0
    infos = [env.step(everything_on)[4] for _ in range(6)]
    assert sum(info["sheds"] for info in infos) == 1
    assert env.telemetry.status.tolist() == [SERVING, FAILED]
    assert env.plant is not None and 33 <= env.plant.cluster.protection.sheds[0].second <= 45


def test_copies_side_by_side_trip_as_each_would_alone(tiny: Callable[..., dict[str, Any]]) -> None:
    content = overloaded(tiny)
    together, alone = LLMClusterVectorEnv(2, scenario=content), LLMClusterEnv(content)
    together.reset(seed=3)
    alone.reset(seed=4)
    action = together.single_action_space.nvec - 1  # type: ignore[attr-defined]
    action[4:6] = 0
    for _ in range(12):
        observations, *_, infos = together.step(np.stack([action, action]))
        observation, *_, info = alone.step(action)
        assert (observations["slots"][1] == observation["slots"]).all()
        assert infos["trips"][1] == info["trips"]
    assert alone.plant is not None and alone.plant.cluster.protection.trips


def test_a_row_brake_needs_a_limit_in_a_scenario_too(tiny: Callable[..., dict[str, Any]]) -> None:
    content = tiny()
    content["cluster"]["rows"][0]["brake"] = True
    with pytest.raises(InputError, match="give power_limit_share"):
        LLMClusterEnv(content)
