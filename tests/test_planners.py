"""Agents that plan with sweeps: what traffic they expect, which slots they choose, and what their programs come to."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from llmcluster import LLMClusterEnv
from llmcluster.agents.base import Task, View
from llmcluster.agents.greedy_energy import GreedyEnergy, thriftiest_point
from llmcluster.agents.kinds import cap_shares, kinds_of, serve, usable
from llmcluster.agents.offline_optimal.agent import TURNED_AWAY, OfflineOptimal
from llmcluster.agents.registry import make_agent
from llmcluster.agents.sweep import steady_state
from llmcluster.agents.traffic import LEAST, Demand, Traffic, expected_streams
from llmcluster.envs.actions import KEEP, SERVE, SLEEP
from llmcluster.experiments.rollout import play
from llmcluster.simulator.workload.table import ANY_MODEL

Tiny = Callable[..., dict[str, Any]]


def task_of(scenario: Any, **options: Any) -> tuple[LLMClusterEnv, Task]:
    env = LLMClusterEnv(scenario, **options)
    return env, Task.of(env)


def seen(env: LLMClusterEnv, seconds: int, seed: int = 0) -> View:
    """What is seen after some time in which nothing is done."""
    observation, _ = env.reset(seed=seed)
    agent = make_agent("least-outstanding", Task.of(env))
    for _ in range(seconds // env.scenario.tick_s):
        observation, *_ = env.step(agent.predict(observation)[0])
    return View(observation, env.observations)


def test_streams_are_those_of_the_scenario() -> None:
    env, task = task_of("mixed-fleet")
    streams = {task.fleet.models[s.model]: s for s in expected_streams(task)}
    assert streams["Llama-3.1-8B"].requests_per_s == pytest.approx(7.0, rel=0.3)
    assert streams["Llama-3.1-8B"].output_tokens == pytest.approx(211, rel=0.1)
    assert streams["Qwen3-30B-A3B"].output_tokens == pytest.approx(28, rel=0.2)
    assert streams["Llama-3.1-70B"].slo == env.scenario.slo["summary"]
    (one,) = expected_streams(task_of("default")[1])
    assert one.model == ANY_MODEL


def test_of_a_trace_only_the_references_of_the_reward_are_known(trace: Callable[..., Any]) -> None:
    path = trace([(i / 4, 100, 50) for i in range(400)])
    _, task = task_of("small", workload=path)
    (stream,) = expected_streams(task)
    assert stream.requests_per_s == pytest.approx(4.0, rel=0.05)
    assert stream.output_tokens == 50
    assert stream.prompt_tokens == pytest.approx(1155)


def test_demand_follows_the_meters_and_keeps_the_peak() -> None:
    env, task = task_of("mixed-fleet")
    traffic = Traffic(task, patience=2)
    observation, _ = env.reset(seed=3)
    agent = make_agent("least-outstanding", task)
    demands, truth = [], []
    requests = env.plant.cluster.requests
    for tick in range(60):
        demands.append(traffic.demand(View(observation, env.observations)))
        if tick:
            came = (requests.arrival_ps >= (tick - 1) * 10**13) & (requests.arrival_ps < tick * 10**13)
            truth.append(np.bincount(requests.model[came], minlength=3) / 10)
        observation, *_ = env.step(agent.predict(observation)[0])
    rates = np.array([d.requests_per_s for d in demands])
    usual = [s.requests_per_s for s in traffic.streams]
    assert rates[0] == pytest.approx(usual), "nothing is seen yet"
    peaks = np.max([truth[i : i + len(truth) - 2] for i in range(3)], axis=0)
    assert rates[3:].mean(axis=0) == pytest.approx(peaks.mean(axis=0), rel=0.35)
    assert (rates[3:].mean(axis=0) > np.mean(truth, axis=0)).all()
    true_output = [requests.output_tokens[requests.model == m].mean() for m in range(3)]
    assert demands[-1].output_tokens == pytest.approx(true_output, rel=0.25)


def test_demand_learns_longer_prompts_and_never_ends(tiny: Tiny) -> None:
    _, task = task_of(tiny())
    env, _ = task_of(
        tiny(
            workload={
                "requests": {"kind": "fixed", "prompt_tokens": 4000, "output_tokens": 400},
                "arrivals": {"kind": "poisson", "rate_per_s": 4.0},
            },
            horizon_s=600,
        )
    )
    traffic = Traffic(task, patience=0)
    observation, _ = env.reset(seed=0)
    agent = make_agent("least-outstanding", task)
    for _ in range(60):
        demand = traffic.demand(View(observation, env.observations))
        observation, *_ = env.step(agent.predict(observation)[0])
    assert demand.prompt_tokens == pytest.approx([4000], rel=0.15)
    assert demand.output_tokens == pytest.approx([400], rel=0.2)
    quiet, _ = task_of(tiny(rate_per_s=1e-9))
    idle = Traffic(task, patience=0)
    view = seen(quiet, 10)
    for _ in range(3):
        last = idle.demand(view)
    assert last.requests_per_s >= LEAST * traffic.streams[0].requests_per_s * 0.99
    idle.forget()
    assert idle.demand(view).requests_per_s == pytest.approx([traffic.streams[0].requests_per_s])


def test_kinds_hold_every_slot_once_but_those_to_be_placed(everything: dict[str, Any]) -> None:
    for scenario in ("mixed-fleet", "default", "saas-iaas"):
        _, task = task_of(scenario)
        members = [r for kind in kinds_of(task) for r in kind.members]
        placed = [
            r for r, s in enumerate(task.blueprint.slots) if s.spec.model is None and "place" in task.codec.groups
        ]
        assert sorted(members + placed) == list(range(len(task.fleet)))
    _, task = task_of(everything)
    kinds = kinds_of(task)
    assert [kind.members for kind in kinds] == [(0,), (1,)]
    assert cap_shares(task, 5) == pytest.approx((0, 1 / 3, 2 / 3, 1))
    without = everything | {"actions": {"groups": ["route"], "levels": 4}}
    assert cap_shares(task_of(without)[1], 5) == (1.0,)


def test_slots_that_serve_come_first_and_failed_ones_never() -> None:
    env, task = task_of("default")
    (h100, _) = kinds_of(task)
    view = seen(env, 10)
    assert usable(view, h100) == list(h100.members)
    slots = [f.name for f in env.observations.slot_features]
    observation, _ = env.reset(seed=0)
    table = observation["slots"].reshape(len(env.fleet), -1)
    first = h100.members[0]
    table[first, slots.index("is_serving")], table[first, slots.index("is_sleeping")] = 0, 1
    assert usable(View(observation, env.observations), h100) == [*h100.members[1:], first]
    table[first, slots.index("is_sleeping")] = 0
    assert first not in usable(View(observation, env.observations), h100)


def test_the_action_shares_traffic_by_rate_and_keeps_the_budget(everything: dict[str, Any]) -> None:
    env, task = task_of("default")
    kinds = kinds_of(task)
    view = seen(env, 10)
    chosen = [list(kinds[0].members[:1]), list(kinds[1].members)]
    action = serve(task, view, chosen, kinds, np.array([8.0, 2.0]), np.array([0.5, 1.0]))
    on = np.zeros(len(env.fleet), bool)
    on[[*chosen[0], *chosen[1]]] = True
    assert (action.lifecycle == np.where(on, SERVE, SLEEP)).all()
    assert action.route_weight[chosen[0][0]] == 1
    assert action.route_weight[chosen[1]] == pytest.approx(0.25)
    assert (action.route_weight[~on] == 0).all()
    assert action.cap_w[on].sum() <= min(view.cluster(f"budget_in_{s}s") for s in (0, 30, 60)) + 1
    half = env.fleet.cap_min_w + 0.5 * (env.fleet.cap_max_w - env.fleet.cap_min_w)
    assert action.cap_w[chosen[0][0]] <= half[chosen[0][0]] + 1e-6
    env, task = task_of(everything)
    kinds = kinds_of(task)
    action = serve(task, seen(env, 10), [[], []], kinds, np.zeros(2), np.ones(2))
    assert action.lifecycle.tolist() == [SLEEP, SLEEP, KEEP], "the slot to be placed is left alone"


def test_greedy_runs_where_a_token_costs_least_within_the_slo() -> None:
    _, task = task_of("default")
    (stream,) = expected_streams(task)
    engine = task.blueprint.spec.engine
    for kind in kinds_of(task):
        point = thriftiest_point(task, kind, stream, margin=0.8)
        lengths = round(stream.prompt_tokens), round(stream.output_tokens)
        steady = steady_state(kind.slot, engine, *lengths, point.in_flight, point.cap_share)
        assert steady.residence_s / stream.output_tokens <= 0.8 * stream.slo.tpot_s * 1.01
        whole = steady_state(kind.slot, engine, *lengths, point.in_flight, 1.0)
        alone = steady_state(kind.slot, engine, *lengths, 4, point.cap_share)
        for other in (whole, alone):
            marginal = (other.gpu_w + other.cpu_w - other.idle_w) / other.requests_per_s / lengths[1]
            assert point.j_per_token <= marginal + 1e-9
    strict = stream.slo.model_copy(update={"tpot_s": 1e-4})
    hasty = thriftiest_point(task, kind, type(stream)(-1, 1.0, 1155, 211, strict), margin=0.8)
    assert hasty.in_flight == 4, "where no batch keeps the SLO, the quickest"


def test_greedy_fills_the_cheapest_kind_first() -> None:
    env, task = task_of("default")
    view = seen(env, 10)
    agent = GreedyEnergy(task)
    on = agent.decide(view).lifecycle >= SERVE
    cheap, dear = sorted(
        kinds_of(task), key=lambda k: thriftiest_point(task, k, expected_streams(task)[0], 0.8).j_per_token
    )
    assert on[list(cheap.members)].any()
    assert not on[list(dear.members)].any() or on[list(cheap.members)].all()


def test_programs_serve_all_and_price_what_is_scarce() -> None:
    _, task = task_of("default")
    agent = OfflineOptimal(task, load=0.8)
    there = np.array([len(kind.members) for kind in agent.kinds])
    rates = (0.5, 4.0, 12.0, 30.0, 1000.0)
    plans = [agent.plan(Demand(*(np.array([x]) for x in (rate, 1155.0, 211.0))), there) for rate in rates]
    for rate, plan in zip(rates[:-1], plans[:-1], strict=True):
        assert (plan.slots * plan.rate).sum() == pytest.approx(rate)
    slots = np.array([plan.slots.sum() for plan in plans])
    assert slots[0] == 1
    assert (np.diff(slots) >= 0).all()
    assert plans[0].price.tolist() == [0, 0], "with slots to spare, their time is worth nothing"
    cheap = int((plans[0].slots > 0).argmax())
    assert plans[3].slots[cheap] == there[cheap]
    assert plans[3].price[cheap] > 0, "the cheaper kind is used up"
    assert (plans[-1].slots == there).all()
    assert (plans[-1].price > 0).all()
    assert (plans[-1].slots * plans[-1].rate).sum() < 1000
    assert (plans[-1].cap_share >= plans[0].cap_share).all(), "dear time is worth more power"
    assert plans[-1].cap_share.max() > plans[0].cap_share.min()
    assert TURNED_AWAY > 1
    none = agent.plan(Demand(*(np.array([x]) for x in (4.0, 1155.0, 211.0))), np.zeros(2, np.int64))
    assert none.slots.tolist() == [0, 0]


def test_each_model_is_served_by_slots_that_hold_it() -> None:
    _, task = task_of("mixed-fleet")
    agent = OfflineOptimal(task)
    there = np.array([len(kind.members) for kind in agent.kinds])
    demand = np.zeros(3)
    for k, kind in enumerate(agent.kinds):
        demand[:] = 1e-3
        demand[[s.model for s in expected_streams(task)].index(kind.model)] = 3.0
        plan = agent.plan(Demand(demand, np.full(3, 800.0), np.full(3, 80.0)), there)
        assert plan.slots.argmax() == k or plan.rate.argmax() == k
        assert plan.rate[k] * plan.slots[k] == pytest.approx(3.0)


@pytest.mark.parametrize("name", ["greedy-energy", "offline-optimal"])
def test_planners_save_energy_on_the_default_traffic(name: str) -> None:
    env, task = task_of("default")
    mine, all_on = (play(env, make_agent(agent, task), agent, seed=7) for agent in (name, "least-outstanding"))
    assert mine.summary.energy_per_output_token_j < 0.8 * all_on.summary.energy_per_output_token_j
    assert mine.reward > all_on.reward
    assert mine.summary.goodput_tokens_per_s > 0.7 * all_on.summary.goodput_tokens_per_s
    again = play(env, make_agent(name, task), name, seed=7)
    assert again.reward == mine.reward


@pytest.mark.parametrize("name", ["greedy-energy", "offline-optimal"])
def test_rows_of_a_batch_have_memories_of_their_own(name: str) -> None:
    env, task = task_of("default")
    observation, _ = env.reset(seed=0)
    quiet, busy = ({**observation, "cluster": observation["cluster"].copy()} for _ in range(2))
    quiet["cluster"][0], busy["cluster"][0] = 0.01, 2.0
    agent = make_agent(name, task)
    both = {key: np.stack([busy[key], quiet[key]]) for key in observation}
    agent.predict(both)
    batched, _ = agent.predict(both)
    for row, one in enumerate((busy, quiet)):
        alone = make_agent(name, task)
        alone.predict(one)
        assert (batched[row] == alone.predict(one)[0]).all()
    assert (batched[0] != batched[1]).any()
    fresh = make_agent(name, task).predict(quiet)[0]
    remembers = agent.predict({k: np.stack([quiet[k]] * 2) for k in quiet}, episode_start=np.array([True, False]))[0]
    assert (remembers[0] == fresh).all()


@pytest.mark.parametrize("encoding", ["discrete", "box"])
@pytest.mark.parametrize("name", ["greedy-energy", "offline-optimal"])
def test_planners_do_with_what_groups_there_are(name: str, encoding: str, everything: dict[str, Any]) -> None:
    groups = (["route"], ["lifecycle"], ["route", "cap", "clock", "lifecycle", "concurrency", "place"])
    faults = [{"kind": "random", "unit": "gpu", "mtbf_s": 60.0, "repair": "exponential", "repair_s": 20.0}]
    for some in groups:
        scenario = everything | {"actions": {"groups": some, "levels": 4}, "faults": faults}
        env, task = task_of(scenario, encoding=encoding)
        agent = make_agent(name, task)
        observation, info = env.reset(seed=2)
        for _ in range(env.scenario.ticks):
            action, _ = agent.predict(observation, action_masks=info["action_mask"])
            assert env.action_space.contains(action)
            observation, reward, *_, info = env.step(action)
            assert np.isfinite(reward)
