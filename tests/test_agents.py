"""Heuristic agents: the contract of all, what each one promises, and tuning among constant ones."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from llmcluster import InputError, LLMClusterEnv, scenario_names
from llmcluster.agents import best_constant
from llmcluster.agents.base import Task, View
from llmcluster.agents.registry import AGENTS, CANDIDATES, make_agent
from llmcluster.agents.static import Constant, all_on, only
from llmcluster.experiments.rollout import mean_reward, play
from llmcluster.experiments.tune import ROUNDS, best_of, tuning_episodes
from llmcluster.tests.acting import batch_of, short, started

Tiny = Callable[..., dict[str, Any]]
SMALL_ENGINE = {"max_num_seqs": 8, "max_num_batched_tokens": 32}


@pytest.mark.parametrize("encoding", ["discrete", "box"])
@pytest.mark.parametrize("scenario", ["default", "placement"])
@pytest.mark.parametrize("name", AGENTS)
def test_heuristics_keep_the_contract(name: str, scenario: str, encoding: str) -> None:
    env = LLMClusterEnv(short(scenario), encoding=encoding)
    agent, observation, info = started(env, name)
    state = (np.arange(3),)
    for tick in range(env.scenario.ticks):
        start = np.array([tick == 0])
        action, kept = agent.predict(observation, state, start, action_masks=info["action_mask"])
        assert kept is state
        assert env.action_space.contains(action)
        observation, reward, _, truncated, info = env.step(action)
        assert np.isfinite(reward)
    assert truncated
    actions, _ = agent.predict(batch_of([observation] * 3), episode_start=np.ones(3, bool))
    assert actions.shape == (3, *action.shape)
    assert all(env.action_space.contains(row) for row in actions)
    episode = play(env, agent, name, seed=1)
    assert np.isfinite(episode.reward)
    assert episode.reward == pytest.approx(sum(episode.terms.values()))


@pytest.mark.parametrize("name", ["follow-load", "round-robin"])
def test_rows_of_a_batch_do_not_meet(name: str) -> None:
    """A busy cluster in the first row must not wake the slots of a quiet one in the second."""
    env = LLMClusterEnv(short("default"))
    agent, observation, _ = started(env, name)
    quiet, busy = ({**observation, "cluster": observation["cluster"].copy()} for _ in range(2))
    quiet["cluster"][0], busy["cluster"][0] = 0.01, 2.0
    agent.predict(batch_of([busy, quiet]))
    batched, _ = agent.predict(batch_of([busy, quiet]))
    for row, one in enumerate((busy, quiet)):
        agent, *_ = started(env, name)
        assert (batched[row] == agent.predict(one)[0]).all()


def test_an_episode_start_wipes_the_memory_of_its_row() -> None:
    env = LLMClusterEnv(short("default"))
    agent, observation, _ = started(env, "follow-load")
    quiet, busy = ({**observation, "cluster": observation["cluster"].copy()} for _ in range(2))
    quiet["cluster"][0], busy["cluster"][0] = 0.01, 2.0
    remembers = agent.predict(batch_of([busy, busy]))[0]
    later, _ = agent.predict(batch_of([quiet, quiet]), episode_start=np.array([True, False]))
    fresh_one, _ = started(env, "follow-load")[0].predict(quiet)
    assert (later[0] == fresh_one).all()
    assert (later[1] == remembers[1]).all()
    assert (later[0] != later[1]).any()


def test_round_robin_and_least_outstanding_turn_everything_on() -> None:
    env = LLMClusterEnv("default")
    for name in ("round-robin", "least-outstanding"):
        agent, observation, _ = started(env, name)
        action = env.codec.decode(agent.predict(observation)[0])
        assert action.router == name
        assert action.cap_w == pytest.approx(env.fleet.cap_max_w)
        assert (action.route_weight == 1).all()
        assert (action.lifecycle == 3).all()


@pytest.mark.parametrize("levels", [2, 3, 5, 11])
@pytest.mark.parametrize("budget", [[1.0], [1.0, 0.6], [0.9, 0.55, 0.37], [0.45, 0.8]])
def test_uniform_cap_never_exceeds_the_budget(tiny: Tiny, budget: list[float], levels: int) -> None:
    """Also by the caps that the encoding leaves of it, which the nearest level would exceed."""
    env = LLMClusterEnv(tiny(budget={"levels": budget, "mean_hold_s": 9.0, "ramp_s": 3.0}, actions={"levels": levels}))
    agent, observation, _ = started(env, "uniform-cap")
    action = env.codec.decode(agent.predict(observation)[0])
    total_w, lowest_w = env.fleet.cap_max_w.sum(), env.fleet.cap_min_w.sum()
    assert action.cap_w.sum() <= max(min(budget) * total_w, lowest_w) + 0.05
    next_w = action.cap_w + (env.fleet.cap_max_w - env.fleet.cap_min_w) / (levels - 1)
    assert budget == [1.0] or next_w.sum() > min(budget) * total_w, "caps are needlessly low"


def test_uniform_cap_keeps_the_budget_in_a_run(tiny: Tiny) -> None:
    env = LLMClusterEnv(tiny(rate_per_s=20.0, budget={"levels": [1.0, 0.5], "mean_hold_s": 9.0, "ramp_s": 3.0}))
    capped, free = (play(env, make_agent(n, Task.of(env)), n, seed=2) for n in ("uniform-cap", "least-outstanding"))
    assert free.summary.over_budget_j > 0
    assert capped.summary.over_budget_j < 0.02 * free.summary.over_budget_j


def test_follow_load_uses_few_slots_when_traffic_is_low_and_all_when_it_is_high() -> None:
    env = LLMClusterEnv("default")
    agent, observation, _ = started(env, "follow-load")

    def serving(arrivals: float, calls: int = 10) -> int:
        observation["cluster"][0] = arrivals / env.scenario.reward.requests_per_s
        for _ in range(calls):
            action, _ = agent.predict(observation)
        return int((env.codec.decode(action).lifecycle >= 3).sum())

    counts = [serving(rate) for rate in (0.0, 1.0, 10.0, 20.0, 200.0)]
    assert counts[0] == 1
    assert counts[-1] == len(env.fleet)
    assert counts == sorted(counts)
    assert len(set(counts)) > 2
    assert serving(0.0, calls=1) == len(env.fleet), "patience"
    assert serving(0.0) == 1


def test_follow_load_caps_within_the_announced_budget() -> None:
    env = LLMClusterEnv("default")
    agent, observation, _ = started(env, "follow-load")
    names = [f.name for f in env.observations.cluster_features]
    observation["cluster"][0] = 10.0
    for share in (1.0, 0.75, 0.5):
        observation["cluster"][names.index("budget_in_60s")] = share
        caps_w = env.codec.decode(agent.predict(observation)[0]).cap_w
        assert caps_w.sum() <= share * env.fleet.cap_max_w.sum() + 0.05


def test_only_the_clairvoyant_is_flagged_and_it_looks_ahead() -> None:
    task = Task.of(LLMClusterEnv("small"))
    assert [name for name in AGENTS if getattr(make_agent(name, task), "clairvoyant", False)] == ["clairvoyant"]
    env = LLMClusterEnv("small")
    agent, observation, _ = started(env, "clairvoyant", seed=5)
    view = View(observation, env.observations)
    arrivals_s = env.plant.cluster.requests.arrival_ps / 1e12
    busiest = max(((arrivals_s >= t) & (arrivals_s < t + 10)).sum() for t in (0, 10, 20)) / 10
    assert agent.expected_requests_per_s(view) == busiest > view.cluster("arrivals") == 0


def test_agents_that_use_capacity_take_a_small_engine(tiny: Tiny) -> None:
    scenario = tiny()
    scenario["cluster"]["engine"] = SMALL_ENGINE
    env = LLMClusterEnv(scenario)
    agent, observation, _ = started(env, "follow-load")
    assert env.action_space.contains(agent.predict(observation)[0])
    assert best_constant.candidates(Task.of(env))


def test_random_draws_open_options_evenly(tiny: Tiny) -> None:
    env = LLMClusterEnv(tiny())
    agent, observation, info = started(env, "random")
    draws = np.stack([agent.predict(observation)[0] for _ in range(2000)])
    heads = np.split(info["action_mask"], np.cumsum(env.codec.layout.sizes)[:-1])
    for column, head in zip(draws.T, heads, strict=True):
        counts = np.bincount(column, minlength=len(head))
        assert (counts[~head] == 0).all()
        assert stats.chisquare(counts[head]).pvalue > 1e-6


@pytest.mark.parametrize("name", CANDIDATES)
@pytest.mark.parametrize("scenario", scenario_names())
def test_candidates_are_valid_under_names_of_their_own(scenario: str, name: str) -> None:
    env = LLMClusterEnv(scenario)
    found = CANDIDATES[name](Task.of(env))
    assert 0 < len(found) <= best_constant.MAX_CANDIDATES
    observation, _ = env.reset(seed=0)
    for agent in found.values():
        agent.watch(env)
        assert env.action_space.contains(agent.predict(observation)[0])


@pytest.mark.parametrize("scenario", scenario_names())
def test_best_constant_tries_every_number_of_slots_of_each_kind(scenario: str) -> None:
    env = LLMClusterEnv(scenario)
    found = best_constant.candidates(Task.of(env))
    actions = {tuple(agent.predict(env.reset(seed=0)[0])[0]) for agent in found.values()}
    open_to_place = "place" in env.codec.groups
    kinds = {
        (s.spec.gpu, s.spec.tp, s.spec.model)
        for s in env.blueprint.slots
        if s.spec.model is not None or not open_to_place
    }
    serving = {tuple(np.array(a)[2 * len(env.fleet) : 3 * len(env.fleet)] >= 3) for a in actions}
    assert len(serving) >= 2 ** len(kinds) - 1, "a combination of kinds is missing"
    if scenario == "default":
        assert len(serving) == 3 * 5 - 1, "with few slots the grid leaves no number of them out"
    assert len(found) % len(best_constant.CAP_SHARES) == 0


def test_best_constant_tells_kinds_with_the_same_gpu_apart() -> None:
    task = Task.of(LLMClusterEnv("placement"))
    names = list(best_constant.candidates(task))
    assert any("(Qwen3-8B)" in name and "(Llama-3.1-8B)" not in name for name in names)
    assert any("(Llama-3.1-8B)" in name and "(Qwen3-8B)" not in name for name in names)


def test_tuning_picks_the_planted_best(tiny: Tiny) -> None:
    env = LLMClusterEnv(tiny(rate_per_s=6.0))
    task = Task.of(env)
    none = np.zeros(2, bool)
    bad = {f"off {i}": Constant(task, only(task, none, i / 20, "round-robin")) for i in range(18)}
    planted = {"one": Constant(task, only(task, np.array([True, False]), 1.0, "least-outstanding"))}
    agents = {**bad, **planted}
    seeds = range(100, 100 + sum(ROUNDS))
    ticks: list[int] = []
    name, score = best_of(env, agents, seeds, lambda: ticks.append(1))
    assert name == "one"
    assert len(ticks) == tuning_episodes(len(agents))
    assert score == pytest.approx(mean_reward(env, planted["one"], seeds[-ROUNDS[-1] :]))
    assert score > mean_reward(env, bad["off 0"], seeds[-ROUNDS[-1] :])


def test_tuned_agents_are_no_names_of_single_agents() -> None:
    with pytest.raises(InputError, match=r"found by tuning.*llmcluster evaluate"):
        make_agent("best-constant", Task.of(LLMClusterEnv("small")))


def test_heuristics_encode_what_they_decide() -> None:
    env = LLMClusterEnv("default")
    task = Task.of(env)
    action = all_on(task, "round-robin")
    decoded = env.codec.decode(Constant(task, action).predict(env.reset(seed=0)[0])[0])
    assert decoded.router == action.router
    assert decoded.cap_w == pytest.approx(action.cap_w)
