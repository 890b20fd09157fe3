"""Saved states of environments and plants: the same observations, rewards and infos from any tick, anywhere."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcluster import InputError, LLMClusterEnv
from llmcluster.envs.plant import SimulatedPlant
from llmcluster.simulator.snapshot import Snapshot

SERVERS = [
    {"gpu": "H100-80GB", "gpus": 2, "tp": 2, "model": "Qwen3-32B"},
    {"gpu": "A100-40GB", "gpus": 1, "model": "Llama-3.1-8B"},
    {"gpu": "A100-80GB", "gpus": 1, "initial": "empty"},
]
SCENARIO: dict[str, Any] = {
    "name": "everything",
    "horizon_s": 120,
    "cluster": {"rows": [{"racks": [{"servers": SERVERS}]}]},
    "workload": {
        "requests": {"kind": "azure-2023-conv"},
        "arrivals": {"kind": "azure-2023-conv", "rate_per_s": 3.0},
        "timeout_s": 15.0,
    },
    "instances": [{"model": name, "mean_interval_s": 15.0} for name in ("Llama-3.1-8B", "Qwen3-32B")],
    "budget": {"levels": [0.6, 0.2], "mean_hold_s": 20.0, "ramp_s": 5.0},
    "actions": {"groups": ["route", "cap", "clock", "lifecycle", "place"], "levels": 4},
}
TICKS = 12
Step = tuple[Any, ...]


def step(env: LLMClusterEnv, rng: np.random.Generator) -> Step:
    """A random open action, and everything that comes of it."""
    parts = np.split(env.action_masks(), np.cumsum(env.codec.layout.sizes)[:-1])
    observation, reward, _, truncated, info = env.step([rng.choice(np.flatnonzero(part)) for part in parts])
    plain = {key: value for key, value in info.items() if key != "action_mask"}
    seen = {key: value.tobytes() for key, value in observation.items()}
    return seen, np.float64(reward).tobytes(), truncated, plain, info["action_mask"].tobytes(), env.render()


def steps(env: LLMClusterEnv, seed: int, ticks: int) -> list[Step]:
    rng = np.random.default_rng(seed)
    return [step(env, rng) for _ in range(ticks)]


def started(seed: int, ticks: int, **arguments: Any) -> LLMClusterEnv:
    env = LLMClusterEnv(SCENARIO, render_mode="ansi", **arguments)
    env.reset(seed=seed)
    steps(env, seed, ticks)
    return env


@pytest.mark.parametrize("forecaster", ["none", "persistence", "oracle"])
@settings(max_examples=15)
@given(st.integers(0, 2**32), st.integers(0, TICKS), st.integers(0, TICKS))
def test_from_any_tick_the_future_is_the_same(forecaster: str, seed: int, tick: int, aside: int) -> None:
    env = started(seed, tick, forecaster=forecaster)
    snapshot = env.save_state()
    content, mask = snapshot.to_bytes(), env.action_masks()
    expected = steps(env, 1, TICKS - tick)
    after = env.save_state().to_bytes()

    env.restore_state(snapshot)
    assert env.save_state().to_bytes() == content and (env.action_masks() == mask).all()
    steps(env, 2, min(aside, TICKS - tick))
    env.restore_state(snapshot)
    assert steps(env, 1, TICKS - tick) == expected and env.save_state().to_bytes() == after

    fresh = LLMClusterEnv(SCENARIO, render_mode="ansi", forecaster=forecaster)
    elsewhere = started(seed + 1, 3, forecaster=forecaster)
    for other in (fresh, elsewhere):
        other.restore_state(Snapshot.from_bytes(content))
        assert steps(other, 1, TICKS - tick) == expected and other.save_state().to_bytes() == after


def test_later_episodes_are_the_same_too() -> None:
    env = started(3, 5)
    other = LLMClusterEnv(SCENARIO)
    other.restore_state(env.save_state())
    for _ in range(2):
        (one, _), (two, _) = env.reset(), other.reset()
        assert all((one[key] == two[key]).all() for key in one)
        assert env.plant.cluster.requests.arrival_ps.tobytes() == other.plant.cluster.requests.arrival_ps.tobytes()


def test_instances_that_wait_come_back() -> None:
    env = started(1, 0)
    keep = np.array([3] * 9 + [0] * 3 + [0, 0])
    while len(env.plant.pending) < 2:
        env.step(keep)
    snapshot, waiting = env.save_state(), list(env.plant.pending)
    env.reset(seed=2)
    assert list(env.plant.pending) == []
    env.restore_state(snapshot)
    assert list(env.plant.pending) == waiting


@pytest.mark.parametrize("ticks", [0, 4])
def test_an_environment_can_be_copied_and_pickled(ticks: int) -> None:
    env = started(4, ticks)
    others = [copy.deepcopy(env), pickle.loads(pickle.dumps(env))]
    expected = steps(env, 1, TICKS - ticks)
    assert [steps(other, 1, TICKS - ticks) for other in others] == [expected] * 2


def in_another_process(source: str, target: str) -> None:
    env = LLMClusterEnv(SCENARIO, render_mode="ansi")
    env.restore_state(Snapshot.from_bytes(Path(source).read_bytes()))
    steps(env, 9, 6)
    Path(target).write_bytes(env.save_state().to_bytes())


def test_an_episode_goes_on_in_another_process(tmp_path: Path) -> None:
    env = started(6, 5)
    source, target = tmp_path / "saved", tmp_path / "later"
    source.write_bytes(env.save_state().to_bytes())
    code = f"from llmcluster.tests.test_env_state import in_another_process as go; go({str(source)!r}, {str(target)!r})"
    subprocess.run([sys.executable, "-c", code], check=True)
    steps(env, 9, 6)
    assert target.read_bytes() == env.save_state().to_bytes()


def test_a_plant_can_be_saved_by_itself() -> None:
    env, other = started(7, 4), started(7, 0)
    assert isinstance(env.plant, SimulatedPlant) and other.plant is not None
    assert env.telemetry.slo_attainment < 1 and env.telemetry.arrivals_per_s > 0
    other.plant.restore_state(Snapshot.from_bytes(env.plant.save_state().to_bytes()))
    for _ in range(3):
        one, two = env.plant.read(), other.plant.read()
        for field in fields(one):
            assert np.array_equal(getattr(one, field.name), getattr(two, field.name)), field.name
        assert env.plant.advance() == other.plant.advance()
    assert env.plant.save_state().to_bytes() == other.plant.save_state().to_bytes()


def test_a_state_of_something_else_is_refused() -> None:
    snapshot = started(0, 1).save_state()
    others = (LLMClusterEnv(SCENARIO | {"tick_s": 20}), LLMClusterEnv(SCENARIO, forecaster="none"))
    for other in others:
        other.reset(seed=0)
        with pytest.raises(InputError, match="taken of something else"):
            other.restore_state(snapshot)
    assert others[0].plant is not None
    with pytest.raises(InputError, match="taken of something else"):
        others[0].plant.restore_state(snapshot.state["plant"])


def test_there_is_nothing_to_save_before_a_reset() -> None:
    with pytest.raises(gym.error.ResetNeeded, match=r"env\.reset\(\) before env\.save_state"):
        LLMClusterEnv(SCENARIO).save_state()
