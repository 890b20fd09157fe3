"""TAPAS: its regressions, where it places, how it routes and reconfigures, and what its suite makes of it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.progress import Progress

from llmcluster import LLMClusterEnv, load_scenario
from llmcluster.agents.base import Task, View
from llmcluster.agents.registry import make_agent
from llmcluster.agents.tapas.allowance import Domain, domains, shared, within
from llmcluster.agents.tapas.controller import ForecastTapas, Tapas
from llmcluster.agents.tapas.history import History, profiled
from llmcluster.agents.tapas.outlook import Forecaster, Outlook
from llmcluster.agents.tapas.placement import best_slot
from llmcluster.agents.tapas.reconfiguration import CALM_S, LASTS_S, Variants, caps, in_flight
from llmcluster.agents.tapas.regression import DieRegression, InletRegression, smoothed
from llmcluster.agents.tapas.routing import level, weights
from llmcluster.envs.actions import KEEP
from llmcluster.experiments.rollout import play
from llmcluster.experiments.statistics import Interval
from llmcluster.experiments.suites import tapas as suite

MODEL = "Llama-3.1-8B"
WATTS = st.floats(0, 1000)


@pytest.fixture(scope="module")
def site() -> LLMClusterEnv:
    """The suite's site, on a hot day."""
    return LLMClusterEnv(suite.DAYS[suite.HOT])


@pytest.fixture(scope="module")
def forecaster(site: LLMClusterEnv) -> Forecaster:
    task = Task.of(site)
    return Forecaster(task, profiled(task))


@pytest.fixture
def outlook(site: LLMClusterEnv, forecaster: Forecaster) -> Outlook:
    """What lies ahead of the site a minute after its start."""
    observation, _ = site.reset(seed=1)
    agent = make_agent("least-outstanding", forecaster.task)
    for _ in range(12):
        observation, *_ = site.step(agent.predict(observation)[0])
    forecaster.forget(0)
    return forecaster.look(View(observation, site.observations))


def known(task: Task, rng: np.random.Generator, ticks: int = 300) -> tuple[History, np.ndarray]:
    """A history in which dies are 0.04 K/W and a place's offset above inlets, and these follow weather and load."""
    size, row = len(task.fleet), np.array([s.row for s in task.blueprint.slots])
    power_w = np.repeat(rng.uniform(100, 700, (ticks // 20, size)), 20, axis=0)
    outside_c = rng.uniform(10, 40, ticks)
    rows = (row[:, None] == row) / np.bincount(row)[row]
    mean_w = smoothed(power_w, np.arange(ticks) == 0, 5, 60.0) @ rows
    inlet_c = 20 + 0.5 * (outside_c[:, None] - 20).clip(min=0) + 0.01 * mean_w
    temperature_c = inlet_c + 0.04 * power_w + np.arange(size) + rng.normal(0, 0.2, power_w.shape)
    on = np.ones(power_w.shape, bool)
    return History(5, np.arange(ticks) == 0, power_w, temperature_c, inlet_c, outside_c, on, ~on), mean_w


def test_regressions_recover_a_known_relation_on_held_out_seconds(site: LLMClusterEnv) -> None:
    task, rng = Task.of(site), np.random.default_rng(0)
    history, _ = known(task, rng)
    held_out, _ = known(task, rng)
    dies, inlets = DieRegression.fitted(task, history), InletRegression.fitted(task, history)
    assert inlets is not None
    mean_w = smoothed(held_out.power_w, held_out.first, 5, dies.tau_s)
    error_k = dies.predict(held_out.inlet_c, held_out.power_w, mean_w) - held_out.temperature_c
    assert np.abs(error_k).mean() < 0.25
    assert dies.per_w + dies.per_mean_w == pytest.approx(np.full(len(task.fleet), 0.04), rel=0.02)
    assert inlets.tau_s == 60.0
    explained_c = inlets.predict(smoothed(held_out.power_w, held_out.first, 5, 60.0), held_out.outside_c)
    constant_c = history.inlet_c.mean(axis=0)
    error_k = np.abs(explained_c - held_out.inlet_c).mean()
    assert error_k < 0.6
    assert error_k < 0.25 * np.abs(constant_c - held_out.inlet_c).mean()


def test_regressions_of_a_profiling_run_hold_on_other_traffic() -> None:
    task = Task.of(LLMClusterEnv("heat-wave"))
    history, held_out = profiled(task, episodes=1), profiled(task, episodes=1, seed=5)
    dies, inlets = DieRegression.fitted(task, history), InletRegression.fitted(task, history)
    assert inlets is not None
    mean_w = smoothed(held_out.power_w, held_out.first, held_out.tick_s, dies.tau_s)
    predicted_c = dies.predict(held_out.inlet_c, held_out.power_w, mean_w)
    assert np.abs(predicted_c - held_out.temperature_c).mean() < 1.5
    power_w = smoothed(held_out.power_w, held_out.first, held_out.tick_s, inlets.tau_s)
    error_k = np.abs(inlets.predict(power_w, held_out.outside_c) - held_out.inlet_c).mean()
    assert error_k < 0.3 * np.abs(history.inlet_c.mean(axis=0) - held_out.inlet_c).mean()


def test_a_kelvin_at_the_inlet_is_one_on_the_die_where_history_knows_no_other(site: LLMClusterEnv) -> None:
    task = Task.of(site)
    history, _ = known(task, np.random.default_rng(0))
    still = replace(history, inlet_c=np.full_like(history.inlet_c, 25.0))
    assert DieRegression.fitted(task, still).per_k == pytest.approx(np.ones(len(task.fleet)))
    assert InletRegression.fitted(task, replace(history, inlet_c=np.full_like(history.inlet_c, np.nan))) is None


def test_the_power_that_a_die_bears_is_where_its_prediction_meets_the_limit(forecaster: Forecaster) -> None:
    inlet_c, size = np.full(24, 50.0), 24
    power_w = forecaster.dies.highest_w(inlet_c, forecaster.limit_c)
    assert forecaster.dies.predict(inlet_c, power_w, power_w) == pytest.approx(forecaster.limit_c)
    warmer_w = forecaster.dies.highest_w(inlet_c, forecaster.limit_c, np.full(size, 0.02))
    risen_c = inlet_c + 0.02 * warmer_w
    assert forecaster.dies.predict(risen_c, warmer_w, warmer_w) == pytest.approx(forecaster.limit_c)


def test_tenants_go_to_the_row_with_power_and_to_the_place_that_is_cool(
    forecaster: Forecaster, outlook: Outlook
) -> None:
    row, size = forecaster.row, len(forecaster.row)
    nobody = np.zeros(size, bool)
    quiet = replace(outlook, mean_w=np.full(size, 100.0), reading=replace(outlook.reading, tenant=nobody))
    everywhere = np.arange(size)
    full = replace(quiet, mean_w=np.where(row == 1, 100.0, 480.0), inlet_c=np.full(size, 20.0))
    assert row[best_slot(forecaster, full, everywhere, tenant=True)] == 1
    hot = replace(quiet, inlet_c=np.where(row == 2, 30.0, 55.0))
    assert row[best_slot(forecaster, hot, everywhere, tenant=True)] == 2
    places_c = np.array([slot.spec.inlet_c for slot in forecaster.task.blueprint.slots])
    told = replace(quiet, inlet_c=places_c)
    assert places_c[best_slot(forecaster, told, everywhere, tenant=True)] == suite.COOL_C
    assert places_c[best_slot(forecaster, told, everywhere, tenant=False)] == suite.WARM_C


def test_tenants_are_spread_over_rows(forecaster: Forecaster, outlook: Outlook) -> None:
    row, free = forecaster.row, outlook.reading.free
    held = (row == 0) & free
    crowded = replace(outlook, reading=replace(outlook.reading, tenant=held, free=free & ~held))
    candidates = np.flatnonzero(free & ~held)
    assert len(candidates)
    assert row[best_slot(forecaster, crowded, candidates, tenant=True)] != 0


def test_routing_sheds_a_hot_server_and_only_as_much_as_it_must() -> None:
    need_w, idle_w, serving = np.full(4, 400.0), np.full(4, 100.0), np.ones(4, bool)
    room_w, last = np.array([200.0, 700.0, 700.0, 700.0]), np.ones(4)
    for _ in range(20):
        last = weights(need_w, room_w, idle_w, serving, last)
    # 1200 W above idle: 100 W on the hot one, a third of the rest on each other.
    assert last == pytest.approx([100 / (1100 / 3), 1, 1, 1], rel=1e-3)
    assert weights(need_w, np.full(4, 700.0), idle_w, serving, np.ones(4)) == pytest.approx(np.ones(4))
    assert weights(need_w, np.zeros(4), idle_w, serving, np.ones(4)) == pytest.approx(np.ones(4))


@given(st.lists(WATTS, min_size=1, max_size=8), st.floats(0, 1))
def test_levelled_load_fits_and_is_all_of_it(rooms: list[float], share: float) -> None:
    room_w = np.array(rooms)
    load_w = share * room_w.sum()
    assert np.minimum(room_w, level(room_w, load_w)).sum() == pytest.approx(load_w, abs=1e-6)


@given(st.lists(st.tuples(WATTS, WATTS), min_size=1, max_size=8), WATTS)
def test_shares_of_an_allowance_hold_it_where_it_can_be_held(
    slots: list[tuple[float, float]], allowance: float
) -> None:
    need_w, high_w = np.array(slots).T
    low_w = np.full(len(slots), 100.0)
    given_w = shared(need_w, low_w, high_w, allowance)
    asked_w, least_w = np.minimum(need_w, given_w).sum(), np.minimum(need_w, low_w).sum()
    assert asked_w <= max(allowance, least_w) + 1e-6
    assert (given_w >= low_w).all()
    assert (given_w <= np.maximum(high_w, low_w)).all()
    if asked_w < np.minimum(need_w, np.maximum(high_w, low_w)).sum() - 1e-2:
        assert asked_w > min(allowance, np.minimum(need_w, given_w + 1e-2).sum()) - 0.1


def test_inner_and_outer_limits_hold_at_once() -> None:
    row = np.array([True, True, False])
    limits = [Domain(row, 500.0), Domain(np.ones(3, bool), 800.0)]
    given_w = within(np.full(3, 400.0), np.full(3, 50.0), np.full(3, 700.0), limits)
    assert given_w[row].sum() <= 500.0 + 1e-3
    assert np.minimum(given_w, 400.0).sum() == pytest.approx(800.0, abs=1e-2)


def test_limits_that_nobody_can_pass_are_no_limits(forecaster: Forecaster, outlook: Outlook) -> None:
    task, row, steered = forecaster.task, forecaster.row, outlook.reading.serving
    found = domains(task, outlook, steered, 1.0, air=False)
    assert len(found) == 3  # the rows; the site's budget is all TDPs
    assert found[1].members.tolist() == ((row == 1) & steered).tolist()
    others_w = outlook.need_w[(row == 1) & ~steered].sum()
    assert found[1].allowance_w == pytest.approx(8 * 700 / 1.4 - others_w)


def test_nothing_is_capped_without_need_and_just_enough_with_it(forecaster: Forecaster) -> None:
    task, size = forecaster.task, len(forecaster.row)
    steered, cool_w = np.ones(size, bool), np.full(size, 1000.0)
    site = [Domain(steered, 600.0 * size)]
    assert caps(task, np.full(size, 500.0), cool_w, site, steered) == pytest.approx(task.fleet.cap_max_w)
    need_w = np.full(size, 650.0)
    capped_w = caps(task, need_w, cool_w, site, steered)
    assert 600.0 * size - 25.0 < capped_w.sum() <= 600.0 * size
    thermal_w = np.where(np.arange(size) == 3, 480.0, 1000.0)
    capped_w = caps(task, need_w, thermal_w, [], steered)
    assert capped_w[3] == pytest.approx(475.0)
    assert np.delete(capped_w, 3) == pytest.approx(700.0)
    assert caps(task, need_w, thermal_w, [], np.zeros(size, bool)) == pytest.approx(700.0)


def test_requests_are_held_back_only_where_the_lowest_cap_is_too_high(forecaster: Forecaster, outlook: Outlook) -> None:
    size, serving = len(forecaster.row), outlook.reading.serving
    idle_w, power_w = np.full(size, 100.0), np.full(size, 300.0)
    busy = replace(outlook, reading=replace(outlook.reading, power_w=power_w, running=np.full(size, 40.0)))
    most = forecaster.task.fleet.max_num_seqs
    assert (in_flight(forecaster.task, busy, np.full(size, 200.0), idle_w) == most).all()
    few = in_flight(forecaster.task, busy, np.full(size, 150.0), idle_w)
    assert (few[serving] == 10).all()
    assert (few[~serving] == most).all()
    assert (in_flight(forecaster.task, busy, np.zeros(size), idle_w)[serving] == 1).all()


@pytest.fixture
def choosy() -> LLMClusterEnv:
    """Two slots that may serve a 14B model, or an 8B one in its place, which is worse and thriftier."""
    server = {"gpu": "H100-80GB", "gpus": 2, "model": "Qwen3-14B"}
    return LLMClusterEnv(
        {
            "tick_s": 10,
            "horizon_s": 60,
            "cluster": {
                "rows": [{"racks": [{"servers": [server]}]}],
                "variants": [{"serves": "Qwen3-14B", "model": "Qwen3-8B"}],
            },
            "workload": {
                "requests": {"kind": "azure-2023-conv"},
                "arrivals": {"kind": "azure-2023-conv", "rate_per_s": 3.0},
            },
            "actions": {"groups": ["route", "cap", "lifecycle", "concurrency", "reconfigure"]},
        }
    )


def test_answers_get_worse_last_and_better_again(choosy: LLMClusterEnv) -> None:
    task = Task.of(choosy)
    observation, _ = choosy.reset(seed=0)
    forecaster = Forecaster(task, profiled(task, episodes=1))
    outlook = forecaster.look(View(observation, choosy.observations))
    assert outlook.reading.variant.tolist() == [1, 1]
    variants = Variants(task, np.full(2, 100.0))
    need = replace(outlook, need_w=np.full(2, 600.0))
    plenty_w, scarce_w = np.full(2, 700.0), np.full(2, 400.0)
    for _ in range(10):
        assert variants.choose(need, plenty_w).tolist() == [KEEP, KEEP]
    for _ in range(LASTS_S // 10 - 1):
        assert variants.choose(need, scarce_w).tolist() == [KEEP, KEEP]
    assert variants.choose(need, scarce_w).tolist() == [2, KEEP]
    moving = replace(need, reading=replace(need.reading, moving=np.array([True, False])))
    assert variants.choose(moving, scarce_w).tolist() == [KEEP, KEEP]
    small = replace(need, need_w=np.full(2, 200.0), reading=replace(need.reading, variant=np.array([2, 1])))
    for _ in range(CALM_S // 10 - 1):
        assert variants.choose(small, plenty_w).tolist() == [KEEP, KEEP]
    assert variants.choose(small, plenty_w).tolist() == [1, KEEP]


def test_unannounced_heat_is_told_from_weather_and_load(site: LLMClusterEnv, forecaster: Forecaster) -> None:
    def ten_minutes_of(scenario: dict[str, Any]) -> list[Outlook]:
        env = LLMClusterEnv(scenario)
        agent = make_agent("least-outstanding", Task.of(env))
        observation, _ = env.reset(seed=3)
        forecaster.forget(0)
        seen = []
        for _ in range(120):
            observation, *_ = env.step(agent.predict(observation)[0])
            seen.append(forecaster.look(View(observation, env.observations)))
        return seen

    fails = {**suite.COOLING, "at_s": 300, "duration_s": 600, "row": 0}
    quiet, failing = ten_minutes_of(suite.site(41.0)), ten_minutes_of(suite.site(41.0, fails))
    first = [i for i, one in enumerate(failing) if one.emergency]
    assert not any(one.emergency for one in quiet)
    assert 60 <= first[0] <= 60 + 2 * 60 / 5
    befallen = forecaster.row == 0
    worst = failing[first[0] + 12].thermal_w
    assert worst[befallen].max() < quiet[-1].thermal_w[befallen].min()


def test_it_reads_nothing_of_the_physics() -> None:
    """Given its history it decides the same in a cluster whose heat obeys other figures: it cannot have looked."""
    site = LLMClusterEnv(suite.site(52.0))
    task = Task.of(site)
    history = profiled(task, episodes=1)
    others = tuple(
        replace(d, power=d.power._replace(thermal_r_k_per_w=np.ones(2), thermal_tau_s=np.ones(2)))
        for d in task.blueprint.deployments
    )
    air = task.scenario.cluster.air.model_copy(update={"tau_s": 1.0, "outside_rise_k": ((0.0, 0.0), (1.0, 50.0))})
    cluster = task.scenario.cluster.model_copy(update={"air": air})
    elsewhere = replace(
        task,
        blueprint=replace(task.blueprint, deployments=others),
        scenario=task.scenario.model_copy(update={"cluster": cluster}),
    )
    here, there = Tapas(task, history), Tapas(elsewhere, history)
    observation, _ = site.reset(seed=2)
    for _ in range(60):
        action, _ = here.predict(observation)
        assert (action == there.predict(observation)[0]).all()
        observation, *_ = site.step(action)
    assert (task.codec.decode(action).route_weight < 1).any()


def test_the_same_episode_gets_the_same_actions_in_any_row_of_a_batch(site: LLMClusterEnv) -> None:
    task = Task.of(site)
    history = profiled(task, episodes=1)
    alone, batched = Tapas(task, history), Tapas(task, history)
    observation, _ = site.reset(seed=2)
    idle = {key: np.zeros_like(value) for key, value in observation.items()}
    for _ in range(10):
        action, _ = alone.predict(observation)
        both = {key: np.stack([idle[key], value]) for key, value in observation.items()}
        assert (batched.predict(both)[0][1] == action).all()
        observation, *_ = site.step(action)
    fresh, _ = Tapas(task, history).predict(observation)
    assert (alone.predict(observation, episode_start=np.ones(1, bool))[0] == fresh).all()


def test_it_keeps_to_caches_where_the_gateway_can(site: LLMClusterEnv) -> None:
    scenario = suite.site(30.0)
    scenario["actions"]["routers"] = ["round-robin", "least-outstanding", "prefix-affinity"]
    for env, router in ((site, "least-outstanding"), (LLMClusterEnv(scenario), "prefix-affinity")):
        task = Task.of(env)
        still, _ = known(task, np.random.default_rng(0))
        observation, _ = env.reset(seed=0)
        assert task.codec.decode(Tapas(task, still).predict(observation)[0]).router == router


def test_the_proactive_version_acts_on_the_forecast(site: LLMClusterEnv) -> None:
    task = Task.of(site)
    history = profiled(task, episodes=1)
    observation, _ = site.reset(seed=2)
    for _ in range(12):
        observation, *_ = site.step(make_agent("least-outstanding", task).predict(observation)[0])
    rising = {**observation, "forecast": np.full_like(observation["forecast"], 0.95)}
    calm = {**observation, "forecast": np.full_like(observation["forecast"], 0.3)}
    assert (Tapas(task, history).predict(rising)[0] == Tapas(task, history).predict(calm)[0]).all()
    cap_w = {
        name: task.codec.decode(ForecastTapas(task, history).predict(seen)[0]).cap_w
        for name, seen in (("rising", rising), ("calm", calm))
    }
    assert cap_w["rising"].sum() < cap_w["calm"].sum()


def test_parts_that_are_left_out_are_done_obliviously(site: LLMClusterEnv) -> None:
    task = Task.of(site)
    agent = Tapas(task, profiled(task, episodes=1), parts=("route",))
    observation, _ = site.reset(seed=2)
    for _ in range(20):
        action = agent.decide(View(observation, site.observations))
        assert action.cap_w == pytest.approx(task.fleet.cap_max_w)
        observation, *_ = site.step(task.codec.encode(action))


def test_heat_throttles_seldom_under_it_and_requests_are_no_slower() -> None:
    env = LLMClusterEnv("heat-wave")
    task = Task.of(env)
    plain = play(env, make_agent("least-outstanding", task), "plain", 1, 120).summary
    aware = play(env, make_agent("tapas", task), "aware", 1, 120).summary
    assert plain.throttle_events > 100
    assert aware.throttle_events < 0.1 * plain.throttle_events
    assert aware.slo_attainment >= plain.slo_attainment


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Lets the suite play short days."""

    def shorten() -> None:
        short = {"horizon_s": 180}
        days = {day: load_scenario(one).model_copy(update=short) for day, one in suite.DAYS.items()}
        monkeypatch.setattr(suite, "DAYS", days)

    return shorten


def test_the_suite_tells_its_claims_by_what_it_measured(short: Callable[[], None]) -> None:
    short()
    with Progress(disable=True) as progress:
        result = suite.run(2, 0, progress)
    assert result.suite == "tapas"
    assert len(result.claims) == 9
    assert [len(rows) for rows in result.tables.values()] == [6, 3, 3, 3, 3]
    for rows in result.tables.values():
        assert rows[0]["agent"] == suite.OBLIVIOUS
        assert all(float(row["TTFT p99, s"]) > 0 for row in rows)
    power = result.claims[1]
    mild = next(iter(result.tables.values()))
    seconds = {row["agent"]: float(row["s above a row's limit"]) for row in mild}
    if seconds[suite.OBLIVIOUS]:
        assert power.measured.mean == pytest.approx(100 * (1 - seconds[suite.TAPAS] / seconds[suite.OBLIVIOUS]))
    else:
        assert np.isnan(power.measured.mean)
        assert power.verdict == "not reproduced"


def test_a_cut_is_of_sums_and_its_interval_of_pairs() -> None:
    rng = np.random.default_rng(0)
    cut = suite.cut_interval(np.array([1.0, 0.0, 2.0]), np.array([10.0, 0.0, 20.0]), rng)
    assert cut == pytest.approx((90.0, 90.0, 90.0))
    assert np.isnan(suite.cut_interval(np.zeros(3), np.zeros(3), rng)).all()
    wide = suite.cut_interval(np.array([0.0, 10.0]), np.array([10.0, 10.0]), rng)
    assert wide == pytest.approx((50.0, 0.0, 100.0))


def test_verdicts_ask_the_whole_interval() -> None:
    nan = float("nan")
    assert suite.is_cut(Interval(95, 91, 99)) == "reproduced"
    assert suite.is_cut(Interval(95, 80, 99)) == "partly"
    assert suite.is_cut(Interval(30, 20, 99)) == "not reproduced"
    assert suite.is_cut(Interval(nan, nan, nan)) == "not reproduced"
    assert suite.is_as_fast(Interval(1, -2, 4)) == "reproduced"
    assert suite.is_as_fast(Interval(4, 1, 7)) == "partly"
    assert suite.is_as_fast(Interval(6, 4, 7)) == "not reproduced"
