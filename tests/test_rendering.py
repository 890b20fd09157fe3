"""Pictures and text tables of real episodes, from the reset on and for fleets of any size."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from llmcluster.envs.cluster_env import LLMClusterEnv
from llmcluster.envs.rendering import STATUS_COLOURS, draw_rgb

MODEL = "Llama-3.1-8B"


def scenario(slots: int) -> dict[str, Any]:
    sizes = [min(16, slots - first) for first in range(0, slots, 16)]
    servers = [{"gpu": "A100-80GB", "gpus": gpus, "model": MODEL} for gpus in sizes]
    return {
        "name": "tiny",
        "horizon_s": 60,
        "cluster": {"rows": [{"racks": [{"servers": servers}]}]},
        "workload": {
            "requests": {"kind": "azure-2023-conv"},
            "arrivals": {"kind": "azure-2023-conv", "rate_per_s": 2.0 * slots},
        },
        "budget": {"levels": [1.0, 0.5], "mean_hold_s": 40.0, "ramp_s": 10.0},
    }


def played(slots: int, ticks: int, render_mode: str = "rgb_array") -> LLMClusterEnv:
    env = LLMClusterEnv(scenario(slots), render_mode=render_mode)
    env.reset(seed=3)
    env.action_space.seed(3)
    for _ in range(ticks):
        env.step(env.action_space.sample())
    return env


@pytest.mark.parametrize("slots", [1, 2, 8, 17, 64])
@pytest.mark.parametrize("ticks", [0, 3])
def test_every_fleet_has_a_picture(slots: int, ticks: int) -> None:
    frame = played(slots, ticks).render()
    assert frame.shape == (540, 960, 3)
    assert frame.dtype == np.uint8
    assert len(np.unique(frame.reshape(-1, 3), axis=0)) > 50


def test_equal_runs_have_equal_pictures_and_a_picture_changes_nothing() -> None:
    first, second = played(2, 3), played(2, 3)
    frame = first.render()
    assert (frame == first.render()).all()
    assert (frame == second.render()).all()


def test_axes_stay_put_while_the_picture_moves() -> None:
    """Between frames, nothing outside the tiles, the headline and the curves may change."""
    early, late = played(2, 1).render(), played(2, 5).render()
    tick_labels = np.s_[60:, 540:572]
    assert (early[tick_labels] == late[tick_labels]).all()
    assert (early != late).any()


def test_states_have_their_colours() -> None:
    env = played(2, 1)
    assert env.plant is not None
    for status, colour in enumerate(STATUS_COLOURS):
        telemetry = replace(env.telemetry, status=np.full(2, status), ready_in_s=np.full(2, 12.0))
        tiles = draw_rgb(env.fleet, telemetry, env.plant)[50:490, 20:500]
        expected = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (tiles == expected).all(axis=-1).sum() > 500


@pytest.mark.parametrize("ticks", [0, 4])
def test_text_says_what_the_telemetry_says(ticks: int) -> None:
    env = played(2, ticks, "ansi")
    text, now = env.render(), env.telemetry
    lines = text.splitlines()
    assert text.endswith("\n")
    assert lines[0].startswith(f"00:{10 * ticks:02d}")
    assert f"{now.arrivals_per_s:.1f} requests/s" in lines[0]
    assert f"{now.budget_w[0]:.0f} W now" in lines[1]
    for r, line in enumerate(lines[3:]):
        assert env.fleet.slots[r] in line
        assert f"{now.power_w.mean(axis=0)[r]:.0f} / {now.cap_w[r]:4.0f}" in line
    assert len(lines) == 3 + len(env.fleet)


def test_text_counts_down_to_ready() -> None:
    env = played(2, 1, "ansi")
    env.telemetry = replace(env.telemetry, status=np.array([1, 0]), ready_in_s=np.array([12.4, 0.0]))
    loading, empty = env.render().splitlines()[3:]
    assert "loading 12 s" in loading
    assert "empty" in empty
    assert MODEL not in empty


def test_importing_the_environments_does_not_load_matplotlib() -> None:
    code = "import sys, llmcluster.envs.rendering; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_failure_to_come_is_not_in_the_picture(tiny: Callable[..., dict[str, Any]]) -> None:
    pictures = []
    for events in ([], [{"kind": "power-feed-failure", "at_s": 40, "duration_s": 20, "severity": 0.5}]):
        env = LLMClusterEnv(tiny(events=events), render_mode="rgb_array")
        env.reset(seed=0)
        for _ in range(3):
            env.step(np.array([*[4] * 4, 0, 0, 1]))
            pictures.append(env.render())
    assert (pictures[2] == pictures[5]).all()
