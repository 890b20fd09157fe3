"""The scenarios that ship: each can be served, and each has the lesson for which it is there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from llmcluster import LLMClusterEnv, Scenario, load_scenario, scenario_names
from llmcluster.agents.base import Heuristic, Task, View
from llmcluster.agents.static import Constant, highest_level, only
from llmcluster.envs.actions import ClusterAction
from llmcluster.experiments.results import Episode
from llmcluster.experiments.rollout import play
from llmcluster.simulator.metrics import met_slo

WARMUP_S = 60
Rule = Callable[[Task, View], ClusterAction]


class Ruled(Heuristic):
    """Does what a function says."""

    def __init__(self, task: Task, rule: Rule) -> None:
        super().__init__(task)
        self.decide = lambda view: rule(task, view)

    decide: Any = None


@cache
def environment(scenario: str) -> LLMClusterEnv:
    return LLMClusterEnv(scenario)


def started(task: Task) -> NDArray[np.bool_]:
    """Slots that hold a model at the start."""
    return np.array([slot.spec.model is not None for slot in task.blueprint.slots])


def capped(task: Task, share: ArrayLike, chosen: NDArray[np.bool_] | None = None) -> ClusterAction:
    """Least outstanding over the chosen slots (all that start with a model), capped at shares of their ranges."""
    fleet, on = task.fleet, started(task) if chosen is None else chosen
    action = only(task, on, 1.0, "least-outstanding")
    return replace(
        action, cap_w=fleet.cap_min_w + np.broadcast_to(share, len(fleet)) * (fleet.cap_max_w - fleet.cap_min_w)
    )


def constant(
    scenario: str | LLMClusterEnv, share: ArrayLike, slots: int | None = None, seed: int = 0, drain: bool = True
) -> Episode:
    """An episode with the same caps throughout, with only the first ``slots`` slots on."""
    env = environment(scenario) if isinstance(scenario, str) else scenario
    task = Task.of(env)
    on = started(task)
    if slots is not None:
        on[slots:] = False
    return play(env, Constant(task, capped(task, share, on)), "constant", seed, WARMUP_S, drain=drain)


def ruled(scenario: str, rule: Rule, seed: int = 0) -> Episode:
    env = environment(scenario)
    return play(env, Ruled(Task.of(env), rule), "rule", seed, WARMUP_S)


def without(scenario: str, **changes: Any) -> LLMClusterEnv:
    return LLMClusterEnv(load_scenario(scenario).model_copy(update=changes))


def history(scenario: str, name: str) -> NDArray[Any]:
    """A column of the last episode's record."""
    plant = environment(scenario).plant
    assert plant is not None
    return plant.cluster.history.column(name)[: environment(scenario).scenario.horizon_s]


def attainment(scenario: str, chosen: Callable[[NDArray[np.float64], NDArray[np.int16]], NDArray[np.bool_]]) -> float:
    """Share within SLO in the last episode, of the requests chosen by arrival time and SLO class."""
    plant = environment(scenario).plant
    assert plant is not None
    requests = plant.cluster.requests
    rows = np.flatnonzero(chosen(requests.arrival_ps / 1e12, requests.slo_class))
    return float(met_slo(plant.cluster, rows, plant.limits).mean())


# Caps of a sensible constant: without what befalls a scenario, it serves most and wastes little.
SENSIBLE = {
    "azure-chat": 0.25,
    "azure-code": 0.25,
    "carbon-price": 0.25,
    "cooling-failure": 0.5,
    "default": 0.25,
    "flash-crowd": 0.25,
    "heat-wave": 0.5,
    "mixed-fleet": 0.5,
    "oversubscribed-row": 0.5,
    "power-budget": 0.5,
    "power-feed-failure": 0.25,
    "small": 0.5,
}


def test_every_scenario_has_a_sensible_constant() -> None:
    assert {*SENSIBLE, "placement"} == set(scenario_names())  # that one starts with models nowhere in place


@pytest.mark.parametrize("name", SENSIBLE)
def test_a_sensible_constant_serves_most_requests(name: str) -> None:
    env = without(name, events=())
    served = [constant(env, SENSIBLE[name], seed=seed).summary for seed in (0, 1)]
    assert 0.8 <= np.mean([s.slo_attainment for s in served]) <= 1.0
    assert 0.25 < np.mean([s.mean_power_w for s in served]) / env.fleet.cap_max_w.sum() < 0.75


@pytest.mark.parametrize("name", SENSIBLE)
def test_to_serve_pays_and_decisions_matter(name: str) -> None:
    env = without(name, events=())
    rewards = {share: constant(env, share, drain=False).reward for share in (0.0, SENSIBLE[name], 1.0)}
    assert rewards[SENSIBLE[name]] == max(rewards.values()) > min(rewards.values()) + 10
    asleep = constant(env, 0.0, slots=0, drain=False).reward
    assert rewards[SENSIBLE[name]] > asleep + 10


# ------------------------------------------------------------------------------------------------------- what each has


def test_caps_are_cheap_for_chat_and_dear_for_code() -> None:
    chat, code = (
        [constant(name, share, slots=2).summary for share in (0.25, 1.0)] for name in ("azure-chat", "azure-code")
    )
    assert chat[0].slo_attainment > 0.98
    assert chat[0].energy_j < 0.7 * chat[1].energy_j
    assert code[0].slo_attainment < code[1].slo_attainment - 0.2
    assert code[0].ttft_s.p50 > 2 * code[1].ttft_s.p50


def test_the_mixed_fleet_has_slack_where_clients_are_patient() -> None:
    scenario = environment("mixed-fleet").scenario
    slots = Task.of(environment("mixed-fleet")).blueprint.slots
    assert {s.spec.gpu for s in slots} == {"A100-80GB", "H100-80GB", "H200"}
    assert {s.spec.model for s in slots} == {"Llama-3.1-8B", "Qwen3-30B-A3B", "Llama-3.1-70B"}
    assert list(scenario.slo) == ["chat", "completion", "summary"]
    constant("mixed-fleet", 0.25)
    chat, _, summary = (attainment("mixed-fleet", lambda _, slo, k=k: slo == k) for k in range(3))
    assert chat < 0.8 and summary > 0.95
    patient = np.array([s.spec.model == "Llama-3.1-70B" for s in slots])
    uniform, frugal = constant("mixed-fleet", 0.5), constant("mixed-fleet", np.where(patient, 0.25, 0.5))
    assert frugal.summary.energy_j < 0.95 * uniform.summary.energy_j
    assert frugal.reward > uniform.reward


def spend_the_budget(task: Task, view: View) -> ClusterAction:
    """All slots on, as high as the budget of the next half minute allows."""
    lowest_w = min(view.cluster(f"budget_in_{lead}s") for lead in (0, 30))
    return capped(task, min(highest_level(task, started(task), lowest_w), 0.75))


def test_no_constant_fits_a_budget_that_moves() -> None:
    full, lowest = constant("power-budget", 1.0).summary, constant("power-budget", 0.0).summary
    assert full.over_budget_s > 600 and full.slo_attainment > 0.95
    assert lowest.over_budget_s == 0 and lowest.slo_attainment < 0.2
    follows = ruled("power-budget", spend_the_budget)
    assert follows.summary.over_budget_s < 5 and follows.summary.slo_attainment > 0.85
    assert follows.reward > 10 + max(constant("power-budget", share).reward for share in np.linspace(0, 1, 5))


def test_demand_response_comes_on_top_of_the_schedule_and_with_notice() -> None:
    env = environment("power-budget")
    env.reset(seed=3)
    assert env.plant is not None
    budget, times_s = env.plant.budget, np.arange(1800)
    called = np.flatnonzero(budget.at(times_s) < budget.planned_w.at(times_s) * 0.99)
    assert 120 <= len(called) <= 240 and (np.diff(called) == 1).all()
    assert budget.foreseen(called[0] - 60.0, (90,)) < budget.planned_w.at(called[0] + 30)


def test_the_row_binds_though_the_site_does_not() -> None:
    even = constant("oversubscribed-row", 0.5).summary
    assert even.over_rows_s > 1000 and even.over_budget_s == 0
    first = np.array([s.row == 0 for s in Task.of(environment("oversubscribed-row")).blueprint.slots])
    share = np.where(first, 0.25, 1.0)
    shifted = constant("oversubscribed-row", share)
    assert shifted.summary.over_rows_s == 0
    assert shifted.summary.slo_attainment > 0.9
    assert shifted.reward > constant("oversubscribed-row", 0.5).reward


def spare_the_hot_row(task: Task, view: View) -> ClusterAction:
    """Three quarters everywhere; where a row's inlets are hot, half there and all elsewhere."""
    hot = view.slot("inlet") + 30 > 40
    action = capped(task, np.where(hot, 0.5, 1.0) if hot.any() else 0.75)
    return replace(action, route_weight=np.where(hot, 0.75, 1.0))


def test_full_power_throttles_when_the_air_fails_unless_load_is_moved() -> None:
    failed, sound = constant("cooling-failure", 1.0), constant(without("cooling-failure", events=()), 1.0)
    assert failed.summary.throttle_events > 50 and sound.summary.throttle_events == 0
    assert failed.summary.slo_attainment < 0.85 and sound.summary.slo_attainment > 0.95
    moved = ruled("cooling-failure", spare_the_hot_row)
    assert moved.summary.throttle_events < failed.summary.throttle_events / 20
    assert moved.summary.slo_attainment > 0.95
    assert moved.reward > max(constant("cooling-failure", share).reward for share in (0.25, 0.5, 0.75, 1.0))


def test_only_the_row_without_air_gets_hot() -> None:
    constant("cooling-failure", 1.0)
    temperature_c = history("cooling-failure", "temperature_c").max(axis=0)
    hot = temperature_c > 80
    assert hot.sum() == 4 and len({slot // 4 for slot in np.flatnonzero(hot)}) == 1
    assert temperature_c[~hot].max() < 70


def test_a_power_feed_fails_unforeseen_and_head_room_is_worth_its_price() -> None:
    env = environment("power-feed-failure")
    env.reset(seed=2)
    seen = [env.telemetry.budget_w.copy()]
    keep = env.codec.encode(capped(Task.of(env), 0.5))
    for _ in range(env.scenario.ticks):
        env.step(keep)
        seen.append(env.telemetry.budget_w.copy())
    now, ahead = np.array(seen)[:, 0], np.array(seen)[:, 1:]
    assert sorted(set(now / env.fleet.cap_max_w.sum())) == pytest.approx([0.525, 0.7])
    assert (ahead == now[:, None]).all(), "the forecast says what is now, never what is to come"
    usual, sound = constant("power-feed-failure", 0.5), constant(without("power-feed-failure", events=()), 0.5)
    assert sound.summary.over_budget_s == 0 < 150 < usual.summary.over_budget_s
    assert ruled("power-feed-failure", spend_the_budget).summary.over_budget_s < 10


def spare_the_warm_place(task: Task, view: View) -> ClusterAction:
    """Half the power everywhere; on the way to the heat, all of it where it is cool."""
    warm = np.array([slot.spec.inlet_c > 20 for slot in task.blueprint.slots])
    hot = view.cluster("outside_in_60s") + 30 > 40
    return replace(capped(task, np.where(warm, 0.5, 1.0) if hot else 0.5), route_weight=np.where(warm & hot, 0.75, 1.0))


def test_inlets_and_throttling_follow_the_weather() -> None:
    full = constant("heat-wave", 1.0)
    env = environment("heat-wave")
    assert env.plant is not None and env.plant.world.outside_c is not None
    outside_c = env.plant.world.outside_c.at(np.arange(1800))
    temperature_c, clock = history("heat-wave", "temperature_c"), history("heat-wave", "clock_ratio")
    slow = (clock < 0.5).any(axis=1)
    assert full.summary.throttle_events > 100 and slow.sum() > 150
    assert outside_c[slow].min() > 40 > 30 > outside_c.min()
    warm, cool = temperature_c[:, 4:].mean(axis=1), temperature_c[:, :4].mean(axis=1)
    mild = ~slow
    assert np.corrcoef(outside_c[mild], warm[mild])[0, 1] > 0.9
    assert (warm - cool)[mild].mean() > 4
    spared = ruled("heat-wave", spare_the_warm_place)
    assert spared.summary.throttle_events < full.summary.throttle_events / 10
    assert spared.reward > max(constant("heat-wave", share).reward for share in (0.5, 0.75, 1.0))


def batch_when(cheap: bool) -> Rule:
    """Chat all the time; the model that can wait serves only while the price is below its mean, or above."""

    def rule(task: Task, view: View) -> ClusterAction:
        chat = np.array([slot.spec.model == "Llama-3.1-8B" for slot in task.blueprint.slots])
        go = (view.cluster("price_in_0s") < 0.095) == cheap
        return capped(task, np.where(chat, 0.25, 0.5), chat | go)

    return rule


def test_the_same_energy_costs_less_in_cheap_hours() -> None:
    (cheap, dear) = (ruled("carbon-price", batch_when(choice)) for choice in (True, False))
    assert cheap.summary.energy_j == pytest.approx(dear.summary.energy_j, rel=0.05)
    assert cheap.summary.slo_attainment == pytest.approx(dear.summary.slo_attainment, abs=0.1)
    assert cheap.summary.slo_attainment > 0.9
    assert cheap.summary.energy_cost < 0.75 * dear.summary.energy_cost
    assert cheap.summary.carbon_g < 0.8 * dear.summary.carbon_g
    assert cheap.reward > dear.reward + 20
    assert cheap.terms["cost"] > dear.terms["cost"] and cheap.terms["energy"] == dear.terms["energy"] == 0


def test_what_is_best_before_the_crowd_misses_in_it() -> None:
    quiet = without("flash-crowd", workload=calm(load_scenario("flash-crowd")))
    best = max((1, 2, 4, 8), key=lambda slots: constant(quiet, 0.5, slots).reward)
    assert best <= 2
    before = constant(quiet, 0.5, best).summary.slo_attainment
    assert before > 0.95
    assert constant("flash-crowd", 0.5, best).summary.slo_attainment < 0.7
    assert constant("flash-crowd", 0.5).summary.slo_attainment > 0.97
    assert constant("flash-crowd", 0.5).summary.energy_j > 2 * constant("flash-crowd", 0.5, best).summary.energy_j


def calm(scenario: Scenario) -> Any:
    return scenario.workload.model_copy(update={"modulation": None})


def test_crowds_come_once_and_at_any_time() -> None:
    env, peaks = environment("flash-crowd"), []
    for seed in range(8):
        env.reset(seed=seed)
        assert env.plant is not None
        arrivals_s = env.plant.cluster.requests.arrival_ps / 1e12
        counts = np.bincount((arrivals_s // 50).astype(int), minlength=36)
        assert 3 <= (counts > 3 * np.median(counts)).sum() <= 5
        peaks.append(int(counts.argmax()))
    assert len(set(peaks)) > 4
