"""Learned agents: their contract, and the policy's distribution, network and files."""

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

from llmcluster import InputError, LLMClusterEnv, scenario_names
from llmcluster.agents.base import Task
from llmcluster.agents.heads import HeadsDistribution
from llmcluster.agents.learned import DESCRIPTION, WEIGHTS, LearnedAgent, network_spec, save_agent
from llmcluster.agents.network import Actor
from llmcluster.experiments.rollout import play
from llmcluster.tests.acting import batch_of, short, started

Tiny = Callable[..., dict[str, Any]]
MODEL = "Llama-3.1-8B"


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
