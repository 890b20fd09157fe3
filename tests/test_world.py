"""The world around the cluster: events, rows, weather and the grid, from the scenario to observation and reward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from llmcluster import InputError, LLMClusterEnv, load_scenario
from llmcluster.agents.base import Task, View
from llmcluster.agents.static import UniformCap
from llmcluster.envs.features import Feature
from llmcluster.envs.telemetry import LEAD_TIMES_S
from llmcluster.envs.world import World, draw_world
from llmcluster.simulator.blueprint import Blueprint
from llmcluster.simulator.snapshot import Snapshot

Tiny = Callable[..., dict[str, Any]]
MODEL = "Llama-3.1-8B"
KEEP = np.array([*[4] * 4, *[0] * 2, 1])
"""For the tiny scenario: full weights and caps, life cycles kept, least outstanding."""


def two_rows(tiny: Tiny, first: dict[str, Any], second: dict[str, Any], **sections: Any) -> dict[str, Any]:
    """One H100 in the first row, one A100 in the second."""
    row = [
        {"racks": [{"servers": [{"gpu": gpu, "gpus": 1, "model": MODEL}]}], **fields}
        for gpu, fields in (("H100-80GB", first), ("A100-80GB", second))
    ]
    return tiny(**{"cluster": {"rows": row}, "budget": {}, **sections})


def world(content: dict[str, Any], seed: int = 0) -> World:
    scenario = load_scenario(content)
    budget_rng, rng = np.random.default_rng(seed).spawn(2)
    return draw_world(scenario, Blueprint.of(scenario.cluster), budget_rng, rng)


def event(**fields: Any) -> dict[str, Any]:
    return {"kind": "power-feed-failure", "at_s": 20, "duration_s": 15, "severity": 0.25, **fields}


def run(env: LLMClusterEnv, action: np.ndarray[Any, Any] = KEEP, seed: int = 0) -> list[dict[str, Any]]:
    env.reset(seed=seed)
    return [env.step(action)[4] for _ in range(env.scenario.ticks)]


# ------------------------------------------------------------------------------------------------------ power and rows


def test_a_schedule_is_the_budget(tiny: Tiny) -> None:
    drawn = world(tiny(budget={"schedule": [[0, 1.0], [20, 1.0], [20, 0.5], [40, 0.8]]}))
    assert drawn.budget.at([0, 19, 20, 30, 40, 60]) == pytest.approx(1100 * np.array([1, 1, 0.5, 0.65, 0.8, 0.8]))


def test_a_power_feed_fails_without_a_word(tiny: Tiny) -> None:
    env = LLMClusterEnv(tiny(budget={}, events=[event()]))
    env.reset(seed=0)
    seen = [env.telemetry.budget_w.tolist()]
    for _ in range(4):
        env.step(KEEP)
        seen.append(env.telemetry.budget_w.tolist())
    assert seen == [[1100] * 3, [1100] * 3, [825] * 3, [825] * 3, [1100] * 3]


def test_demand_response_is_announced(tiny: Tiny) -> None:
    call = event(kind="demand-response", at_s=50, duration_s=20, notice_s=30)
    env = LLMClusterEnv(tiny(budget={}, events=[call]))
    env.reset(seed=0)
    seen = []
    for _ in range(6):
        env.step(KEEP)
        seen.append(env.telemetry.budget_w.tolist())
    assert seen[0] == [1100, 1100, 1100]  # it would be seen 60 s ahead, but has not been called yet
    assert seen[1:] == [[1100, 825, 1100], [1100, 825, 1100], [1100, 1100, 1100], [825, 1100, 1100], [825, 1100, 1100]]


def test_events_fall_within_their_windows_and_differ_from_run_to_run(tiny: Tiny) -> None:
    content = tiny(budget={}, events=[event(at_s=[10, 30], duration_s=[5, 20])], horizon_s=120)
    starts, lengths = [], []
    for seed in range(60):
        down = np.flatnonzero(world(content, seed).budget.at(np.arange(0, 120, 0.01)) < 1000) / 100
        starts.append(down[0])
        lengths.append(down[-1] - down[0])
    assert 10 <= min(starts) < 13 and 27 < max(starts) <= 30
    assert 5 <= min(lengths) + 0.02 < 7 and 18 < max(lengths) <= 20


def test_one_event_does_not_move_another(tiny: Tiny) -> None:
    events = [event(at_s=[10, 30]), event(kind="demand-response", at_s=[0, 60], notice_s=5)]
    both, first = world(tiny(events=events)), world(tiny(events=events[:1]))
    assert (both.budget.cuts[0].left.times_s == first.budget.cuts[0].left.times_s).all()


def test_a_row_is_counted_apart_from_the_site(tiny: Tiny) -> None:
    """The H100 idles at 121 W, the A100 at 82 W: the first row alone is above its limit of 70 W."""
    env = LLMClusterEnv(two_rows(tiny, {"power_limit_share": 0.1}, {"power_limit_share": 1.0}, workload=nothing()))
    infos = run(env)
    for info in infos:
        assert info["over_rows_j"] == pytest.approx([10 * (121 - 70), 0])
        assert info["over_budget_j"] == 0
        assert info["reward_terms"]["budget"] == pytest.approx(-5 * 510 / 11000)
        assert info["cost"] == pytest.approx(510 / 11000)
    summary = env.plant.summary(warmup_s=10)
    assert (summary.over_rows_s, summary.over_rows_j) == (50, pytest.approx(50 * 51))
    assert (summary.over_budget_s, summary.over_budget_j) == (0, 0)


def test_a_row_can_lose_its_feed(tiny: Tiny) -> None:
    limits = {"power_limit_share": 0.2}
    env = LLMClusterEnv(two_rows(tiny, limits, limits, workload=nothing(), events=[event(row=0, severity=0.5)]))
    infos = run(env)
    assert [round(info["over_rows_j"][0]) for info in infos] == [0, 0, 510, 255, 0, 0]
    assert [info["over_rows_j"][1] for info in infos] == [pytest.approx(20)] * 6  # 82 W of 80 W


def test_a_random_row_is_any_row(tiny: Tiny) -> None:
    limits = {"power_limit_share": 0.5}
    content = two_rows(tiny, limits, limits, events=[event(row="random")])
    power_w = np.array([[350.0, 200.0]])
    hit = {tuple(world(content, seed).rows.over_w(power_w, np.array([25]))[0] > 0) for seed in range(20)}
    assert hit == {(True, False), (False, True)}


def nothing() -> dict[str, Any]:
    """A workload whose first request comes after the run."""
    lengths = {"kind": "fixed", "prompt_tokens": 1, "output_tokens": 1}
    return {"requests": lengths, "arrivals": {"kind": "poisson", "rate_per_s": 1e-9}}


# ----------------------------------------------------------------------------------------------------------------- air


def test_a_cooling_failure_warms_its_row(tiny: Tiny) -> None:
    air = {"airflow_m3_per_s": 0.02}
    failure = event(kind="cooling-failure", severity=0.9, row=1, duration_s=600)
    sections: dict[str, Any] = {"workload": nothing(), "horizon_s": 600, "events": [failure]}
    env = LLMClusterEnv(two_rows(tiny, air, air, **sections))
    run(env)
    inlet_c = env.telemetry.inlet_c
    assert inlet_c[0] == pytest.approx(24 + 0.5 * 0.121)
    assert inlet_c[1] == pytest.approx(24 + 0.5 * 0.082 + 82 / (0.002 * 1.184 * 1006) - 12, abs=0.1)


def test_a_saved_world_is_the_same_world(tiny: Tiny) -> None:
    sections: dict[str, Any] = {
        "events": [
            event(kind="cooling-failure", row="random", at_s=[0, 30], duration_s=99, severity=0.8),
            event(at_s=[0, 60]),
        ],
        "outside_c": {"level": 20, "swing": 10, "noise": 3, "phase": "random"},
        "grid": {"price_per_kwh": {"level": 1, "noise": 0.1}},
        "horizon_s": 120,
    }
    content = two_rows(tiny, {"airflow_m3_per_s": 0.02}, {"airflow_m3_per_s": 0.02}, **sections)
    env, other = LLMClusterEnv(content), LLMClusterEnv(content)
    env.reset(seed=1)
    other.reset(seed=2)
    for _ in range(4):
        env.step(KEEP)
    state = env.save_state()
    other.restore_state(Snapshot.from_bytes(state.to_bytes()))
    for _ in range(8):
        for one in (env, other):
            one.step(KEEP)
        for name in ("inlet_c", "outside_c", "price_per_kwh", "budget_w", "temperature_c"):
            assert (getattr(env.telemetry, name) == getattr(other.telemetry, name)).all(), name
    assert env.telemetry.inlet_c.max() > 35


def test_what_breaks_is_seen(tiny: Tiny) -> None:
    env = LLMClusterEnv(tiny(faults=[{"kind": "scheduled", "at_s": 15, "server": 1, "repair_s": 20}]))
    env.reset(seed=0)
    seen = []
    for _ in range(4):
        seen.append(View(env.step(KEEP)[0], env.observations).slot("is_failed").tolist())
    assert seen == [[0, 0], [0, 1], [0, 1], [0, 0]]


# ----------------------------------------------------------------------------------------------------- money and carbon


def grid(**sections: Any) -> dict[str, Any]:
    return {
        "price_per_kwh": {"points": [[0, 0.1], [30, 0.1], [30, 0.3]]},
        "carbon_g_per_kwh": {"level": 400},
    } | sections


def test_energy_is_billed_by_the_second(tiny: Tiny) -> None:
    env = LLMClusterEnv(tiny(workload=nothing(), grid=grid(), reward={"cost": 2.0, "carbon": 3.0, "energy": 0.0}))
    infos = run(env)
    kwh = 10 * (121 + 82) / 3.6e6
    assert [info["energy_cost"] for info in infos] == pytest.approx([kwh * price for price in [0.1] * 3 + [0.3] * 3])
    assert [info["carbon_g"] for info in infos] == pytest.approx([kwh * 400] * 6)
    share = (121 + 82) / 1100
    assert infos[0]["reward_terms"]["cost"] == pytest.approx(-2 * share * 0.1 / 0.1)  # the mean is that before the step
    assert infos[5]["reward_terms"]["cost"] == pytest.approx(-2 * share * 0.3 / 0.1)
    assert infos[0]["reward_terms"]["carbon"] == pytest.approx(-3 * share)
    summary = env.plant.summary(warmup_s=20)
    assert summary.energy_cost == pytest.approx(kwh * (0.1 + 3 * 0.3))
    assert summary.carbon_g == pytest.approx(4 * kwh * 400)


def test_without_a_grid_results_alone_are_billed_at_averages(tiny: Tiny) -> None:
    env = LLMClusterEnv(tiny(reward={"cost": 2.0, "carbon": 3.0}))
    infos = run(env)
    for info in infos:
        assert (info["energy_cost"], info["carbon_g"]) == (0.0, 0.0)
        assert info["reward_terms"]["cost"] == info["reward_terms"]["carbon"] == 0
    summary, kwh = env.plant.summary(), sum(info["energy_j"] for info in infos) / 3.6e6
    assert (summary.energy_cost, summary.carbon_g) == pytest.approx((kwh * 0.0806, kwh * 390))


# -------------------------------------------------------------------------------------------------------- observations


def added(content: dict[str, Any], tiny: Tiny) -> tuple[list[str], list[str]]:
    """Names of the features that a scenario has beyond those of the tiny one."""
    plain, more = LLMClusterEnv(tiny()).observations, LLMClusterEnv(content).observations
    found = []
    for before, after in (
        (plain.slot_features, more.slot_features),
        (plain.cluster_features, more.cluster_features),
    ):
        assert [f.name for f in after[: len(before)]] == [f.name for f in before]
        found.append([f.name for f in after[len(before) :]])
    return found[0], found[1]


def test_features_appear_where_the_scenario_has_what_they_tell(tiny: Tiny) -> None:
    inlet, headroom = ["inlet"], [f"row_headroom_in_{lead}s" for lead in LEAD_TIMES_S]
    outside, price = ([f"{name}_in_{lead}s" for lead in LEAD_TIMES_S] for name in ("outside", "price"))
    hidden = {"price_per_kwh": {"level": 1.0, "announced": False}}
    assert added(tiny(), tiny) == ([], [])
    assert added(two_rows(tiny, {}, {}), tiny) == ([], [])
    assert added(two_rows(tiny, {"airflow_m3_per_s": 1.0}, {}), tiny) == (inlet, [])
    assert added(two_rows(tiny, {}, {"power_limit_share": 0.5}), tiny) == (headroom, [])
    assert added(tiny(outside_c={"level": 20}), tiny) == (inlet, outside)
    assert added(tiny(grid=hidden), tiny) == ([], price[:1])
    assert added(tiny(grid=grid()), tiny) == ([], [*price, *(f"carbon_in_{lead}s" for lead in LEAD_TIMES_S)])


def test_senses_are_readings_by_their_scale(tiny: Tiny) -> None:
    content = two_rows(
        tiny,
        {"power_limit_share": 0.5, "airflow_m3_per_s": 1.0},
        {},
        outside_c={"points": [[0, 10], [100, 60]]},
        grid=grid(carbon_g_per_kwh={"level": 300, "swing": 200, "period_s": 200}),
        horizon_s=60,
    )
    env = LLMClusterEnv(content)
    env.reset(seed=1)
    for _ in range(2):
        last = env.step(KEEP)[0]
    assert env.observation_space.contains(last)
    view = View(last, env.observations)
    times_s = 20 + np.array(LEAD_TIMES_S)
    metered_w = env.plant.cluster.history.column("metered_w")[-1]
    expected = {
        "outside": 10 + 0.5 * times_s - 30,
        "price": np.where(times_s < 30, 0.1, 0.3),
        "carbon": 300 - 200 * np.cos(2 * np.pi * times_s / 200),
    }
    for name, values in expected.items():
        seen = [view.cluster(f"{name}_in_{lead}s") for lead in LEAD_TIMES_S]
        assert seen == pytest.approx(values, rel=1e-5, abs=1e-5), name
    assert view.slot("inlet") == pytest.approx(env.plant.cluster.engine.slots["inlet_c"] - 30, rel=1e-5)
    for _ in range(4):
        env.step(KEEP)
    assert env.telemetry.inlet_c[0] > 24 + 1.5, "inlets follow the minute"
    for lead in LEAD_TIMES_S:
        assert view.slot(f"row_headroom_in_{lead}s") == pytest.approx([350, 400] - metered_w, rel=1e-5)
    scales = {f.name: f for f in env.observations.cluster_features}
    assert scales["price_in_30s"] == Feature("price_in_30s", "per kWh", pytest.approx(0.1))
    assert scales["carbon_in_0s"] == Feature("carbon_in_0s", "g/kWh", 300)


def test_head_room_does_not_tell_of_a_failure_to_come(tiny: Tiny) -> None:
    limits = {"power_limit_share": 1.0}
    content = two_rows(tiny, limits, limits, workload=nothing(), events=[event(row=0, severity=0.5)])
    env = LLMClusterEnv(content)
    env.reset(seed=0)
    seen = []
    for _ in range(4):
        env.step(KEEP)
        seen.append(env.telemetry.row_headroom_w[:, 0].tolist())
    assert seen == [[579] * 3, [229] * 3, [229] * 3, [579] * 3]


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("sections", "parts"),
    [
        ({"budget": {"levels": [0.9], "schedule": [[0, 1]]}}, ("budget", "levels or a schedule, not both")),
        ({"budget": {"schedule": [[0, 0.0]]}}, ("schedule [[0.0, 0.0]]", "positive")),
        ({"budget": {"schedule": [[9, 0.5], [0, 0.5]]}}, ("the times of schedule", "ascend")),
        ({"events": [event(kind="earthquake")]}, ("events[0].kind", "'cooling-failure'")),
        ({"events": [event(severity=1.0)]}, ("events[0].severity", "less than 1")),
        ({"events": [event(at_s=[30, 10])]}, ("at_s [30.0, 10.0]", "ascend")),
        ({"events": [event(duration_s=-1)]}, ("duration_s", "from 0 on")),
        ({"events": [event(row=7)]}, ("events[0].row", "no row 7", "0 to 0")),
        ({"events": [event(row=-1)]}, ("events[0].row", "no row -1")),
        ({"events": [event(row=0)]}, ("events[0]", "power_limit_share", "give it one")),
        ({"events": [event(row="random")]}, ("events[0]", "power_limit_share")),
        ({"events": [event(kind="cooling-failure")]}, ("events[0]", "airflow_m3_per_s", "give it one")),
        ({"events": [event(notice_s=5)]}, ("events[0]", "no notice")),
        ({"events": [event(kind="demand-response", row=0)]}, ("events[0]", "leave out row")),
        ({"outside_c": {"level": 1, "points": [[0, 1]]}}, ("outside_c", "level or points")),
        ({"grid": {"price": {"level": 1}}}, ("grid.price", "not a known key")),
    ],
    ids=str,
)
def test_bad_input_names_the_field_and_the_remedy(tiny: Tiny, sections: dict[str, Any], parts: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as caught:
        load_scenario(tiny(**sections))
    for part in parts:
        assert part in str(caught.value)


def test_the_lowest_limits_count_schedule_and_events(tiny: Tiny) -> None:
    schedule = {"schedule": [[0, 0.9], [10, 0.6]]}
    cuts = [event(), event(kind="demand-response", severity=0.5)]
    assert load_scenario(tiny(budget={"levels": [1.0, 0.7]})).lowest_limit() == 0.7
    assert load_scenario(tiny(budget=schedule)).lowest_limit() == 0.6
    assert load_scenario(tiny(budget=schedule, events=cuts)).lowest_limit() == pytest.approx(0.6 * 0.75 * 0.5)
    hits = [event(row=0), event(row="random", severity=0.5)]
    rows = load_scenario(two_rows(tiny, {"power_limit_share": 0.8}, {"power_limit_share": 1.0}, events=hits))
    assert [rows.lowest_limit(row) for row in (None, 0, 1)] == pytest.approx([1.0, 0.8 * 0.75 * 0.5, 0.5])
    assert load_scenario(two_rows(tiny, {}, {})).lowest_limit(1) == 1.0


def test_a_uniform_cap_holds_every_limit(tiny: Tiny) -> None:
    content = two_rows(tiny, {}, {"power_limit_share": 0.8}, events=[event(severity=0.5)])
    by_site, by_row = (
        UniformCap(Task.of(LLMClusterEnv(one))).action.cap_w.tolist() for one in (content, {**content, "events": []})
    )
    assert by_site == [325, 175], "500 of 550 W; the next level would draw 700 W"
    assert by_row == [450, 250], "250 of 320 W; the next level would draw 325 W"
