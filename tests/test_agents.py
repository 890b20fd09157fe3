"""Agents: one contract for all, what each heuristic promises, and the learned policy's distribution and files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy import stats
from stable_baselines3.common.distributions import MultiCategoricalDistribution
from torch.distributions import Categorical

from llmcluster import InputError, LLMClusterEnv, Scenario, load_scenario, scenario_names
from llmcluster.agents import best_constant
from llmcluster.agents.base import Heuristic, Task, View
from llmcluster.agents.heads import HeadsDistribution
from llmcluster.agents.learned import DESCRIPTION, WEIGHTS, LearnedAgent, network_spec, save_agent
from llmcluster.agents.network import Actor
from llmcluster.agents.registry import AGENTS, CANDIDATES, make_agent
from llmcluster.agents.static import Constant, all_on, only
from llmcluster.experiments.rollout import mean_reward, play
from llmcluster.experiments.tune import ROUNDS, best_of, tuning_episodes

Tiny = Callable[..., dict[str, Any]]
MODEL = "Llama-3.1-8B"
SMALL_ENGINE = {"max_num_seqs": 8, "max_num_batched_tokens": 32}


def short(name: str, horizon_s: int = 60) -> Scenario:
    return load_scenario(name).model_copy(update={"horizon_s": horizon_s})


def batch_of(observations: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {key: np.stack([one[key] for one in observations]) for key in observations[0]}


def started(env: LLMClusterEnv, name: str, seed: int = 0) -> tuple[Any, dict[str, np.ndarray], dict[str, Any]]:
    agent = make_agent(name, Task.of(env))
    observation, info = env.reset(seed=seed)
    if isinstance(agent, Heuristic):
        agent.watch(env)
    return agent, observation, info


@pytest.fixture
def fresh(tmp_path: Path) -> Callable[[LLMClusterEnv], Path]:
    """Saves an untrained policy for an environment."""

    def make(env: LLMClusterEnv, name: str = "fresh", width: int = 16) -> Path:
        torch.manual_seed(0)
        actor = Actor(network_spec(env, width))
        with torch.no_grad():  # a fresh policy is nearly constant; a trained one is not
            for weights in actor.parameters():
                weights.add_(0.5 * torch.randn_like(weights))
        save_agent(tmp_path / name, actor, {"algo": "none"})
        return tmp_path / name

    return make


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


@pytest.mark.parametrize("scenario", [*scenario_names(), "everything"])
def test_learned_agents_keep_the_contract(
    scenario: str, fresh: Callable[..., Path], everything: dict[str, Any]
) -> None:
    env = LLMClusterEnv(everything if scenario == "everything" else short(scenario))
    agent, observation, info = started(env, str(fresh(env)))
    assert isinstance(agent, LearnedAgent)
    observations, masks = [], []
    for _ in range(env.scenario.ticks):
        observations.append(observation)
        masks.append(info["action_mask"])
        action, state = agent.predict(observation, None, None, action_masks=info["action_mask"])
        assert state is None
        assert env.action_space.contains(action)
        offset = np.concatenate([[0], np.cumsum(env.codec.layout.sizes)[:-1]])
        assert info["action_mask"][offset + action].all()
        observation, reward, _, _, info = env.step(action)
        assert np.isfinite(reward)
    single = [agent.predict(o, action_masks=m)[0] for o, m in zip(observations, masks, strict=True)]
    batched, _ = agent.predict(batch_of(observations), action_masks=np.stack(masks))
    assert (batched == np.stack(single)).all()
    anything = batch_of([env.observation_space.sample() for _ in range(20)])
    assert len(np.unique(agent.predict(anything)[0], axis=0)) > 1
    drawn, _ = agent.predict(batch_of(observations), deterministic=False, action_masks=np.stack(masks))
    assert all(env.action_space.contains(row) for row in drawn)


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


# --- the distribution ---------------------------------------------------------------------------------------------

SIZES = [5, 5, 3, 2, 4]


def heads_of(batch: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(batch, sum(SIZES), generator=generator)
    actions = torch.stack([torch.randint(0, n, (batch,), generator=generator) for n in SIZES], dim=1)
    return logits, actions


@pytest.mark.parametrize("batch", [1, 7])
def test_distribution_equals_torchs_categoricals(batch: int) -> None:
    logits, actions = heads_of(batch)
    heads = HeadsDistribution(SIZES).proba_distribution(logits)
    singles = [Categorical(logits=part) for part in torch.split(logits, SIZES, dim=1)]
    expected = sum(d.log_prob(a) for d, a in zip(singles, actions.T, strict=True))
    torch.testing.assert_close(heads.log_prob(actions), expected)
    torch.testing.assert_close(heads.entropy(), sum(d.entropy() for d in singles))
    assert (heads.mode() == torch.stack([d.probs.argmax(-1) for d in singles], dim=1)).all()


def test_distribution_equals_stable_baselines3s() -> None:
    logits, actions = heads_of(9, seed=1)
    ours, theirs = (d(SIZES).proba_distribution(logits) for d in (HeadsDistribution, MultiCategoricalDistribution))
    torch.testing.assert_close(ours.log_prob(actions), theirs.log_prob(actions))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    assert (ours.mode() == theirs.mode()).all()
    assert ours.sample().shape == theirs.sample().shape


def test_distribution_has_the_same_gradients() -> None:
    logits, actions = heads_of(6, seed=2)
    gradients = []
    for kind in (HeadsDistribution, MultiCategoricalDistribution):
        leaf = logits.clone().requires_grad_()
        made = kind(SIZES).proba_distribution(leaf)
        (made.log_prob(actions).sum() + 0.1 * made.entropy().sum()).backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)


def test_masks_close_options() -> None:
    logits, _ = heads_of(4, seed=3)
    mask = torch.rand(4, sum(SIZES), generator=torch.Generator().manual_seed(3)) > 0.5
    for first in np.cumsum([0, *SIZES[:-1]]):
        mask[:, first] = True
    heads = HeadsDistribution(SIZES).proba_distribution(logits)
    heads.apply_masking(mask.numpy())
    parts = zip(torch.split(logits, SIZES, dim=1), torch.split(mask, SIZES, dim=1), strict=True)
    singles = [Categorical(logits=part.masked_fill(~opened, -torch.inf)) for part, opened in parts]
    probabilities = [d.probs for d in singles]
    torch.testing.assert_close(heads.entropy(), sum(-torch.special.xlogy(p, p).sum(-1) for p in probabilities))
    mode = heads.mode()
    torch.testing.assert_close(heads.log_prob(mode), sum(d.log_prob(a) for d, a in zip(singles, mode.T, strict=True)))
    torch.manual_seed(3)
    for _ in range(200):
        drawn = heads.sample()
        for head, (column, opened) in enumerate(zip(drawn.T, torch.split(mask, SIZES, dim=1), strict=True)):
            assert opened[torch.arange(4), column].all(), head
    heads.apply_masking(None)
    torch.testing.assert_close(heads.mode(), mode)


def test_samples_are_as_frequent_as_they_are_probable() -> None:
    logits, _ = heads_of(1, seed=4)
    heads = HeadsDistribution(SIZES).proba_distribution(logits.expand(20_000, -1))
    torch.manual_seed(4)
    drawn = heads.sample()
    for column, part in zip(drawn.T, torch.split(logits, SIZES, dim=1), strict=True):
        expected = 20_000 * torch.softmax(part[0].double(), -1).numpy()
        counts = np.bincount(column.numpy(), minlength=len(expected))
        assert stats.chisquare(counts, expected).pvalue > 1e-6
    independent = stats.chi2_contingency(stats.contingency.crosstab(drawn[:, 0].numpy(), drawn[:, 1].numpy()).count)
    assert independent.pvalue > 1e-6


# --- the network --------------------------------------------------------------------------------------------------


def test_the_network_does_not_care_for_the_order_of_slots(everything: dict[str, Any]) -> None:
    env = LLMClusterEnv(everything)
    torch.manual_seed(1)
    actor = Actor(network_spec(env, width=16))
    for weights in actor.parameters():
        torch.nn.init.normal_(weights, std=0.3)
    size, groups = len(env.fleet), len(env.codec.layout.slot_groups)
    observation = {k: torch.as_tensor(v)[None] for k, v in env.observation_space.sample().items()}
    order = torch.tensor([2, 0, 1])
    forecast = observation["forecast"].view(1, size + 1, -1)
    shuffled = {
        "slots": observation["slots"].view(1, size, -1)[:, order].flatten(1),
        "cluster": observation["cluster"],
        "forecast": torch.cat([forecast[:, order], forecast[:, -1:]], dim=1).flatten(1),
    }
    with torch.no_grad():
        plain, permuted = actor(observation)[0], actor(shuffled)[0]
    split = groups * size * env.codec.layout.levels
    per_slot = plain[:split].view(groups, size, -1)
    torch.testing.assert_close(permuted[:split].view(groups, size, -1), per_slot[:, order])
    assert (per_slot[:, 0] - per_slot[:, 1]).abs().max() > 0.01
    router, nowhere, places = plain[split : split + 2], plain[split + 2], plain[split + 3 :]
    torch.testing.assert_close(permuted[split : split + 3], torch.cat([router, nowhere[None]]))
    torch.testing.assert_close(permuted[split + 3 :], places[order])
    assert len(plain) == env.codec.layout.sizes.sum()


def test_a_fresh_policy_leaves_everything_on(tiny: Tiny) -> None:
    env = LLMClusterEnv(tiny(actions={"groups": ["route", "cap", "clock", "lifecycle"], "levels": 4}))
    torch.manual_seed(0)
    actor = Actor(network_spec(env))
    with torch.no_grad():
        logits = actor({k: torch.as_tensor(v)[None] for k, v in env.reset(seed=0)[0].items()})
    heads = HeadsDistribution(env.codec.layout.sizes.tolist()).proba_distribution(logits)
    action = env.codec.decode(heads.mode()[0].numpy())
    assert (action.route_weight == 1).all()
    assert action.cap_w == pytest.approx(env.fleet.cap_max_w)
    assert (action.clock_ratio == 1).all()
    assert (action.lifecycle == 3).all()


# --- files --------------------------------------------------------------------------------------------------------


def test_saved_weights_act_alike(tiny: Tiny, fresh: Callable[..., Path]) -> None:
    env = LLMClusterEnv(tiny())
    folder = fresh(env)
    torch.manual_seed(0)
    actor = Actor(network_spec(env, 16))
    actor.load_state_dict(load_file(folder / WEIGHTS))
    observation, _ = env.reset(seed=0)
    with torch.no_grad():
        logits = actor({k: torch.as_tensor(v)[None] for k, v in observation.items()})[0]
    expected = [part.argmax().item() for part in torch.split(logits, env.codec.layout.sizes.tolist())]
    assert LearnedAgent(Task.of(env), folder).predict(observation)[0].tolist() == expected
    assert json.loads((folder / DESCRIPTION).read_text())["algo"] == "none"
    assert sorted(p.name for p in folder.iterdir()) == [DESCRIPTION, WEIGHTS]


def test_weights_act_on_clusters_of_other_sizes(tiny: Tiny, fresh: Callable[..., Path]) -> None:
    folder = fresh(LLMClusterEnv(tiny()))
    for gpus in (1, 5, 16):
        other = LLMClusterEnv(tiny([{"gpu": "A100-80GB", "gpus": gpus, "model": MODEL}]))
        agent = LearnedAgent(Task.of(other), folder)
        episode = play(other, agent, "moved", seed=0)
        assert np.isfinite(episode.reward)
        assert len(other.fleet) == gpus


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"levels": 9}, "levels 5 instead of 9"),
        ({"groups": ["route", "cap"]}, "slot_groups"),
        ({"groups": ["cap", "lifecycle"]}, "slot_groups"),
        ({"groups": ["route", "cap", "lifecycle", "place"]}, "cluster_heads"),
    ],
)
def test_agents_for_other_actions_are_refused(
    tiny: Tiny, fresh: Callable[..., Path], change: dict[str, Any], match: str
) -> None:
    folder = fresh(LLMClusterEnv(tiny()))
    with pytest.raises(InputError, match=f"was trained for .*{match}.*Train an agent on this scenario"):
        LearnedAgent(Task.of(LLMClusterEnv(tiny(actions=change))), folder)


def test_learned_agents_need_discrete_actions(tiny: Tiny, fresh: Callable[..., Path]) -> None:
    folder = fresh(LLMClusterEnv(tiny()))
    with pytest.raises(InputError, match="encoding='discrete'"):
        LearnedAgent(Task.of(LLMClusterEnv(tiny(), encoding="box")), folder)


def _describe(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    about = json.loads((folder / DESCRIPTION).read_text())
    (folder / DESCRIPTION).write_text(json.dumps(change(about)))


def _cut(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])


def _flip(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"\xff" * 4096)


def _foreign(folder: Path) -> None:
    save_file({"someone.else": torch.zeros(3)}, folder / WEIGHTS)


def _nan(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    save_file({name: torch.full_like(tensor, torch.nan) for name, tensor in weights.items()}, folder / WEIGHTS)


def _oversized(folder: Path) -> None:
    with (folder / WEIGHTS).open("r+b") as file:
        file.truncate(65 * 2**20)


def _network(**change: Any) -> Callable[[Path], None]:
    return lambda folder: _describe(folder, lambda about: {**about, "network": {**about["network"], **change}})


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "cut weights": _cut,
    "noise": _flip,
    "foreign weights": _foreign,
    "not a number": _nan,
    "oversized": _oversized,
    "no weights": lambda folder: (folder / WEIGHTS).unlink(),
    "empty weights": lambda folder: (folder / WEIGHTS).write_bytes(b""),
    "no description": lambda folder: (folder / DESCRIPTION).unlink(),
    "cut description": lambda folder: (folder / DESCRIPTION).write_text('{"format": 1,'),
    "binary description": lambda folder: (folder / DESCRIPTION).write_bytes(b"\xff\xfe\x00"),
    "a list": lambda folder: (folder / DESCRIPTION).write_text("[1, 2]"),
    "another format": lambda folder: _describe(folder, lambda about: {**about, "format": 99}),
    "no network": lambda folder: _describe(folder, lambda about: {"format": about["format"]}),
    "a number for a network": lambda folder: _describe(folder, lambda about: {**about, "network": 5}),
    "a number for a list": _network(slot_groups=5),
    "a field too many": _network(depth=3),
    "endless width": _network(width=10**9),
    "negative width": _network(width=-1),
    "width in words": _network(width="wide"),
    "another width": _network(width=32),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_agents_are_refused(tiny: Tiny, fresh: Callable[..., Path], damage: str) -> None:
    env = LLMClusterEnv(tiny())
    folder = fresh(env)
    LearnedAgent(Task.of(env), folder)
    DAMAGES[damage](folder)
    with pytest.raises(InputError) as caught:
        LearnedAgent(Task.of(env), folder)
    assert str(folder) in caught.value.where
    assert caught.value.remedy


def test_heuristics_encode_what_they_decide() -> None:
    env = LLMClusterEnv("default")
    task = Task.of(env)
    action = all_on(task, "round-robin")
    decoded = env.codec.decode(Constant(task, action).predict(env.reset(seed=0)[0])[0])
    assert decoded.router == action.router
    assert decoded.cap_w == pytest.approx(action.cap_w)
