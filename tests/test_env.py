"""The environment: Gymnasium's and Stable-Baselines3's contracts, determinism, the episode, and what it refuses."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import llmcluster
from llmcluster import InputError, LLMClusterEnv
from llmcluster.simulator.units import PS_PER_S
from llmcluster.simulator.workload.table import RequestTable

IDS = sorted(name for name in gym.registry if name.startswith("LLMCluster"))
ENCODINGS = ("discrete", "box")
SCENARIOS = llmcluster.scenario_names()
Action = np.ndarray[Any, Any]

TRAJECTORY = """
import hashlib, json, sys
import numpy as np
from llmcluster import LLMClusterEnv
env = LLMClusterEnv(json.loads(sys.argv[1]))
digest = hashlib.sha256()
rng = np.random.default_rng(5)
obs, info = env.reset(seed=11)
truncated = False
while not truncated:
    for key, value in sorted(obs.items()):
        digest.update(key.encode() + value.tobytes())
    obs, reward, _, truncated, info = env.step(rng.integers(0, env.action_space.nvec))
    plain = {k: v for k, v in info.items() if k != "action_mask"}
    digest.update(np.float64(reward).tobytes() + info["action_mask"].tobytes() + json.dumps(plain).encode())
print(digest.hexdigest())
"""


def masked_action(env: LLMClusterEnv, mask: np.ndarray, rng: np.random.Generator) -> Action:
    """Any open option of every head."""
    parts = np.split(mask, np.cumsum(env.codec.layout.sizes)[:-1])
    return np.array([rng.choice(np.flatnonzero(part)) for part in parts])


def random_episode(env: LLMClusterEnv, seed: int) -> Iterator[tuple[dict[str, Any], float, bool, dict[str, Any]]]:
    rng = np.random.default_rng(seed)
    obs, info = env.reset(seed=seed)
    assert env.observation_space.contains(obs)
    truncated = False
    while not truncated:
        if env.codec.encoding == "discrete":
            action = masked_action(env, info["action_mask"], rng)
        else:
            action = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
        assert env.action_space.contains(action)
        obs, reward, terminated, truncated, info = env.step(action)
        assert not terminated
        yield obs, reward, truncated, info


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_gymnasium_contract(encoding: str, scenario: str) -> None:
    env = gym.make(IDS[0], scenario=scenario, encoding=encoding, render_mode="ansi")
    check_env(env.unwrapped)
    env.close()


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_stable_baselines3_contract(encoding: str, scenario: str) -> None:
    sb3_check_env(gym.make(IDS[0], scenario=scenario, encoding=encoding).unwrapped, warn=True)


@pytest.mark.parametrize("env_id", IDS)
def test_registered_ids_hold_both_contracts(env_id: str) -> None:
    check_env(gym.make(env_id, render_mode="ansi").unwrapped)
    sb3_check_env(gym.make(env_id).unwrapped, warn=True)


@pytest.mark.parametrize("render_mode", ["ansi", "rgb_array"])
@pytest.mark.parametrize("env_id", IDS)
def test_registered_ids_render_in_every_mode(env_id: str, render_mode: str) -> None:
    env = gym.make(env_id, render_mode=render_mode)
    with pytest.raises(gym.error.ResetNeeded):
        env.render()
    env.reset(seed=0)
    env.step(env.action_space.sample())
    picture = env.render()
    if render_mode == "ansi":
        assert isinstance(picture, str)
        assert all(name in picture for name in env.unwrapped.fleet.slots)
    else:
        assert picture.dtype == np.uint8
        assert picture.ndim == 3
    env.close()


def test_ids_take_their_scenarios_and_plain_arguments(tiny: Callable[..., dict[str, Any]]) -> None:
    names = {env_id: gym.make(env_id).unwrapped.scenario.name for env_id in IDS}
    assert names == {"LLMCluster-v0": "default", "LLMClusterSmall-v0": "small"}
    env = gym.make(IDS[0], scenario=tiny(), encoding="box", forecaster="none", workload=None)
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    first, second = env.reset(seed=4)[0], again.reset(seed=4)[0]
    assert json.loads(json.dumps(env.spec.kwargs)) == env.spec.kwargs
    assert all((first[key] == second[key]).all() for key in first)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_observations_stay_in_the_space_and_rewards_add_up(everything: dict[str, Any], encoding: str) -> None:
    env = LLMClusterEnv(everything, encoding=encoding)
    changed = set()
    for seed in range(4):
        ticks = 0
        for obs, reward, truncated, info in random_episode(env, seed):
            ticks += 1
            assert env.observation_space.contains(obs)
            assert all(np.isfinite(value).all() for value in obs.values())
            assert type(reward) is float
            assert all(type(value) is float for value in info["reward_terms"].values())
            assert reward == pytest.approx(sum(info["reward_terms"].values()), abs=1e-12)
            assert info["cost"] >= 0
            assert info["time_s"] == ticks * 10.0
            assert truncated == (ticks == 12)
            changed |= {name for name, value in info["reward_terms"].items() if value}
        assert ticks == env.scenario.ticks == 12
    assert changed == {"energy", "tokens", "slo", "budget", "pending"}


def test_reward_terms_bear_their_weights(tiny: Callable[..., dict[str, Any]]) -> None:
    weights = {"energy": 0.0, "tokens": 3.0, "slo": 0.0, "budget": 0.0, "pending": 0.0}
    plain, weighted = (LLMClusterEnv(tiny(rate_per_s=2.0, reward=r)) for r in ({}, weights))
    pairs = list(zip(random_episode(plain, 1), random_episode(weighted, 1), strict=True))
    for (_, _, _, one), (_, reward, _, other) in pairs:
        assert other["reward_terms"]["tokens"] == pytest.approx(3 * one["reward_terms"]["tokens"])
        assert reward == other["reward_terms"]["tokens"]
        assert one["reward_terms"]["energy"] < 0
    assert sum(other["good_tokens"] for _, (_, _, _, other) in pairs) > 0


def digest(env: LLMClusterEnv, seed: int) -> str:
    found = hashlib.sha256()
    for obs, reward, _, info in random_episode(env, seed):
        found.update(b"".join(obs[key].tobytes() for key in sorted(obs)) + np.float64(reward).tobytes())
        found.update(info["action_mask"].tobytes())
        found.update(json.dumps({k: v for k, v in info.items() if k != "action_mask"}).encode())
    return found.hexdigest()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_equal_seeds_give_equal_bytes(everything: dict[str, Any], encoding: str) -> None:
    env, other = LLMClusterEnv(everything, encoding=encoding), LLMClusterEnv(everything, encoding=encoding)
    first = digest(env, 7)
    assert digest(env, 8) != first  # a run in between leaves no trace
    assert digest(env, 7) == first
    assert digest(other, 7) == first


def test_equal_seeds_give_equal_bytes_in_another_process(everything: dict[str, Any]) -> None:
    outputs = set()
    for hash_seed in ("0", "4242"):
        command = [sys.executable, "-W", "error", "-c", TRAJECTORY, json.dumps(everything)]
        env = {"PATH": "", "PYTHONHASHSEED": hash_seed, "HOME": str(Path.home())}
        outputs.add(subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout)
    assert len(outputs) == 1
    assert len(outputs.pop().strip()) == 64


def test_seeds_and_episodes_differ(tiny: Callable[..., dict[str, Any]]) -> None:
    env = LLMClusterEnv(tiny())

    def arrivals(seed: int | None) -> bytes:
        env.reset(seed=seed)
        return env.plant.cluster.requests.arrival_ps.tobytes()

    drawn = [arrivals(seed) for seed in (1, None, None, 2)]
    assert len(set(drawn)) == 4
    assert [arrivals(seed) for seed in (1, None, None, 2)] == drawn


def test_global_generators_are_left_alone(tiny: Callable[..., dict[str, Any]]) -> None:
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    LLMClusterEnv(tiny()).reset(seed=3)
    assert (np.random.get_state()[1] == before).all()


def test_given_requests_are_played(tiny: Callable[..., dict[str, Any]]) -> None:
    env = LLMClusterEnv(tiny())
    table = RequestTable.from_columns(np.array([1, 12, 23]) * PS_PER_S, [100, 200, 300], [5, 6, 7])
    env.reset(seed=0, options={"requests": table})
    keep = np.array([*[4] * 4, *[0] * 2, 1])  # weights 1, caps at the TDP, life cycles kept, least outstanding
    infos = [env.step(keep)[4] for _ in range(6)]
    assert [info["good_tokens"] for info in infos] == [5, 6, 7, 0, 0, 0]
    assert sum(info["slo_misses"] for info in infos) == 0
    assert env.plant.summary().requests_completed == 3


def test_steps_need_a_reset(tiny: Callable[..., dict[str, Any]]) -> None:
    env = LLMClusterEnv(tiny())
    with pytest.raises(gym.error.ResetNeeded, match=r"env\.reset\(\)"):
        env.step(env.action_space.sample())
    with pytest.raises(gym.error.ResetNeeded, match=r"env\.reset\(\)"):
        env.action_masks()
    assert env.render() is None


def test_wrong_actions_are_refused_and_leave_no_trace(tiny: Callable[..., dict[str, Any]]) -> None:
    env, other = LLMClusterEnv(tiny()), LLMClusterEnv(tiny())
    env.reset(seed=0)
    other.reset(seed=0)
    for wrong in (np.zeros(3, int), np.zeros((1, 7), int), 0):
        with pytest.raises(ValueError, match=r"\(7,\), not .*env\.action_space"):
            env.step(wrong)
    good = np.full(7, 1)
    first, second = env.step(good)[0], other.step(good)[0]
    assert all((first[key] == second[key]).all() for key in first)


@pytest.mark.parametrize(
    ("given", "where"),
    [
        ({"encoding": "sphere"}, "encoding"),
        ({"forecaster": "crystal-ball"}, "forecaster"),
        ({"forecaster": "oracle", "engine": "reference"}, "forecaster"),
        ({"forecaster": "gone.safetensors"}, "gone.safetensors"),
        ({"render_mode": "human"}, "render_mode"),
        ({"scenario": "defualt"}, "scenario 'defualt'"),
        ({"scenario": 7}, "scenario"),
        ({"scenario": None}, "scenario"),
        ({"scenario": {}}, "scenario"),
        ({"workload": 7}, "workload"),
        ({"workload": {"fil": "a.csv"}}, "scenario"),
        ({"workload": {"file": "a.csv", "rate_factor": -1}}, "scenario"),
    ],
)
def test_bad_arguments_are_refused_with_a_remedy(given: dict[str, Any], where: str) -> None:
    with pytest.raises(InputError) as caught:
        LLMClusterEnv(**{"scenario": "small", **given})
    assert caught.value.where == where
    assert caught.value.problem
    assert caught.value.remedy[0].isupper()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"requests": [1, 2]}, "Give a RequestTable"),
        ({"requests": RequestTable.from_columns([0], [1], [1], slo_class=[3])}, "SLO classes that the scenario lacks"),
        ({"requests": RequestTable.from_columns([0], [1], [1], models=("GPT-4",), model=[0])}, "model 'GPT-4'"),
    ],
)
def test_bad_requests_are_refused(tiny: Callable[..., dict[str, Any]], options: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        LLMClusterEnv(tiny()).reset(seed=0, options=options)


def test_a_trace_takes_the_place_of_the_workload(
    tiny: Callable[..., dict[str, Any]], trace: Callable[..., Path]
) -> None:
    path = trace([(float(s), 50 + s, 10 + s) for s in range(200)])
    whole = LLMClusterEnv(tiny(), workload={"file": str(path)})
    whole.reset(seed=0)
    assert whole.plant.cluster.requests.prompt_tokens.tolist() == list(range(50, 110))
    cut = LLMClusterEnv(tiny(), workload=str(path))
    starts = set()
    for seed in range(8):
        cut.reset(seed=seed)
        table = cut.plant.cluster.requests
        assert len(table) in (59, 60, 61)
        assert (table.output_tokens - table.prompt_tokens == -40).all()
        starts.add(int(table.prompt_tokens[0]))
    assert len(starts) > 3
    cut.step(cut.action_space.sample())


def test_a_missing_trace_is_named(tiny: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(InputError, match=r"nowhere\.csv: no such file"):
        LLMClusterEnv(tiny(), workload="/nowhere.csv").reset(seed=0)


def test_no_request_at_all_is_a_quiet_episode(tiny: Callable[..., dict[str, Any]]) -> None:
    env = LLMClusterEnv(tiny())
    env.reset(seed=0, options={"requests": RequestTable.from_columns([], [], [])})
    for _ in range(6):
        obs, _, _, _, info = env.step(np.array([*[4] * 4, 0, 0, 1]))
        assert env.observation_space.contains(obs)
        assert info["reward_terms"]["tokens"] == info["reward_terms"]["slo"] == 0
        assert info["energy_j"] > 0
