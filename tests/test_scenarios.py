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
from llmcluster.envs.actions import NOWHERE, ClusterAction
from llmcluster.experiments.results import Episode
from llmcluster.experiments.rollout import play
from llmcluster.simulator.kernels.state import TENANT
from llmcluster.simulator.metrics import met_slo
from llmcluster.simulator.snapshot import Snapshot

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


def capped(task: Task, share: ArrayLike, chosen: NDArray[np.bool_] | None = None) -> ClusterAction:
    """Least outstanding over the chosen slots (all by default), capped at shares of their ranges."""
    fleet = task.fleet
    action = only(task, np.ones(len(fleet), bool) if chosen is None else chosen, 1.0, "least-outstanding")
    return replace(
        action, cap_w=fleet.cap_min_w + np.broadcast_to(share, len(fleet)) * (fleet.cap_max_w - fleet.cap_min_w)
    )


def constant(
    scenario: str | LLMClusterEnv, share: ArrayLike, slots: int | None = None, seed: int = 0, drain: bool = True
) -> Episode:
    """An episode with the same caps throughout, with only the first ``slots`` slots on."""
    env = environment(scenario) if isinstance(scenario, str) else scenario
    task = Task.of(env)
    on = np.arange(len(env.fleet)) < (len(env.fleet) if slots is None else slots)
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
    "azure-code": 0.5,
    "carbon-price": 0.25,
    "cooling-failure": 0.75,
    "default": 0.25,
    "emergency": 0.5,
    "flash-crowd": 0.25,
    "heat-wave": 0.75,
    "mixed-fleet": 0.5,
    "oversubscribed-row": 0.5,
    "power-budget": 0.5,
    "power-feed-failure": 0.5,
    "saas-iaas": 0.5,
    "small": 0.5,
}


def test_every_scenario_has_a_sensible_constant() -> None:
    assert {*SENSIBLE, "placement"} == set(scenario_names())  # that one starts with models nowhere in place


@pytest.mark.parametrize("name", SENSIBLE)
def test_a_sensible_constant_serves_most_requests(name: str) -> None:
    env = without(name, events=())
    served = [constant(env, SENSIBLE[name], seed=seed).summary for seed in (0, 1)]
    assert 0.8 <= np.mean([s.slo_attainment for s in served]) <= 1.0
    assert 0.25 < np.mean([s.mean_power_w for s in served]) / env.fleet.cap_max_w.sum() < 0.82


@pytest.mark.parametrize("name", SENSIBLE)
def test_neither_the_least_nor_the_most_power_is_best(name: str) -> None:
    env = without(name, events=())
    rewards = {share: constant(env, share, drain=False).reward for share in (0.0, SENSIBLE[name], 1.0)}
    assert rewards[SENSIBLE[name]] == max(rewards.values()) > min(rewards.values()) + 10


@pytest.mark.parametrize("name", SENSIBLE)
def test_doing_nothing_does_not_pay(name: str) -> None:
    env = without(name, events=(), horizon_s=300)
    assert constant(env, SENSIBLE[name]).reward > constant(env, 0.0, slots=0, drain=False).reward + 3


@pytest.mark.parametrize("name", scenario_names())
def test_a_saved_run_goes_on_the_same(name: str) -> None:
    env, other = LLMClusterEnv(name), LLMClusterEnv(name)

    def steps(env: LLMClusterEnv, seed: int) -> list[tuple[bytes, ...]]:
        rng = np.random.default_rng(seed)
        seen = []
        for _ in range(15):
            parts = np.split(env.action_masks(), np.cumsum(env.codec.layout.sizes)[:-1])
            obs, reward, _, _, _ = env.step([rng.choice(np.flatnonzero(part)) for part in parts])
            seen.append((*(value.tobytes() for value in obs.values()), np.float64(reward).tobytes()))
        return seen

    env.reset(seed=3)
    other.reset(seed=4)
    steps(env, 0)
    saved = env.save_state().to_bytes()
    expected = steps(env, 1)
    other.restore_state(Snapshot.from_bytes(saved))
    assert steps(other, 1) == expected
    assert other.plant.summary().energy_j == env.plant.summary().energy_j


# ------------------------------------------------------------------------------------------------------- what each has


def test_caps_are_cheap_for_chat_and_dear_for_code() -> None:
    chat, code = (
        [constant(name, share, slots=3).summary for share in (0.25, 1.0)] for name in ("azure-chat", "azure-code")
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
    return capped(task, min(highest_level(task, np.ones(len(task.fleet), bool), lowest_w), 0.75))


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


def by_head_room(task: Task, view: View) -> ClusterAction:
    """Half the power where the row has some to spare, a quarter elsewhere; whoever asks goes where there is most."""
    room_w = view.slot("row_headroom_in_0s")
    free = view.slot("is_empty") + view.slot("is_sleeping") > 0
    asks = view.cluster("pending_instances") > 0 and free.any()
    place = int(np.where(free, room_w, -np.inf).argmax()) if asks else NOWHERE
    return replace(capped(task, np.where(room_w > 500, 0.5, 0.25)), place=place)


def test_tenants_hold_slots_and_draw_what_nobody_can_cap() -> None:
    constant("saas-iaas", 0.0)
    let = history("saas-iaas", "status") == TENANT
    lowest_w = environment("saas-iaas").fleet.cap_min_w
    assert 1 < let.sum(axis=1).mean() < 6
    assert (let.sum(axis=0) > 0).sum() >= 3 and not let[:, :4].any()
    assert (history("saas-iaas", "energy_j")[let] > 1.2 * lowest_w[0]).mean() > 0.9
    assert history("saas-iaas", "output_tokens")[let].sum() == 0


def test_tenants_are_better_placed_by_head_room_than_as_they_come() -> None:
    first_fit = [constant("saas-iaas", 0.5, seed=seed) for seed in range(3)]
    placed = [ruled("saas-iaas", by_head_room, seed=seed) for seed in range(3)]
    for one, other in zip(first_fit, placed, strict=True):
        assert other.summary.over_rows_j < 0.5 * one.summary.over_rows_j
    low = [constant("saas-iaas", 0.25, seed=seed) for seed in range(3)]
    rewards = [np.mean([episode.reward for episode in episodes]) for episodes in (placed, first_fit, low)]
    assert rewards[0] > max(rewards[1:])


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
