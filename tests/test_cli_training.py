"""Training and evaluation by the command line: runs that go on, are left alone, are compared, and survive a kill."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmcluster.tests.command_line import BAD_SCENARIO, ROWS, Trace, left_behind


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy after a single rollout."""
    folder = tmp_path_factory.mktemp("trained") / "ppo"
    command = [sys.executable, "-m", "llmcluster.experiments.cli", "train", "--scenario", "small", "--timesteps", "64"]
    subprocess.run([*command, "--algo", "maskable-ppo", "--out", str(folder)], check=True, capture_output=True)
    return folder


def test_training_writes_what_it_says(trained: Path) -> None:
    names = {p.name for p in trained.iterdir()}
    assert names == {"agent.json", "checkpoint.zip", "config.json", "policy.safetensors", "tensorboard"}
    assert list(trained.glob("tensorboard/*/events.out.tfevents.*"))
    about = json.loads((trained / "agent.json").read_text())
    assert about["algo"] == "maskable-ppo"
    assert about["timesteps"] >= 64
    assert about["scenario"]["name"] == "small"


@pytest.mark.parametrize("algo", ["ppo", "maskable-ppo"])
def test_training_goes_on_where_it_stopped(call: Callable[..., Any], algo: str) -> None:
    arguments = ("train", "--scenario", "small", "--algo", algo, "--out", "run", "--json", "-")
    first, again, more = (json.loads(call(*arguments, "--timesteps", steps)[1]) for steps in (64, 64, 2000))
    assert first["timesteps"] == first["timesteps_now"] >= 64
    assert (again["timesteps"], again["timesteps_now"]) == (first["timesteps"], 0)
    assert more["timesteps"] >= 2000
    assert more["timesteps_now"] == more["timesteps"] - first["timesteps"] > 0
    assert json.loads(Path("run/agent.json").read_text())["timesteps"] == more["timesteps"]


def test_a_damaged_checkpoint_is_named(call: Callable[..., Any], trained: Path) -> None:
    shutil.copytree(trained, "run")
    Path("run/checkpoint.zip").write_bytes(b"no zip")
    code, _, err = call("train", "--scenario", "small", "--algo", "maskable-ppo", "--timesteps", 2000, "--out", "run")
    assert code == 2
    assert "checkpoint.zip" in err
    assert "Remove it to start again" in err


def test_equal_seeds_train_equal_weights(call: Callable[..., Any]) -> None:
    for out, seed in (("one", 1), ("same", 1), ("other", 2)):
        assert call("train", "--scenario", "small", "--timesteps", 64, "--out", out, "--seed", seed)[0] == 0
    one, same, other = (Path(out, "policy.safetensors").read_bytes() for out in ("one", "same", "other"))
    assert one == same != other


def test_another_run_is_not_trained_over(call: Callable[..., Any], trained: Path, trace: Trace) -> None:
    before = {p: p.read_bytes() for p in trained.rglob("*") if p.is_file()}
    kept = ("--scenario", "small", "--algo", "maskable-ppo")
    for other, what in (
        (("--scenario", "placement", "--algo", "maskable-ppo"), "scenario"),
        (("--scenario", "small", "--algo", "ppo"), "algo"),
        ((*kept, "--seed", "9"), "seed"),
        ((*kept, "--workload", str(trace(ROWS))), "scenario"),
    ):
        code, _, err = call("train", *other, "--timesteps", 64, "--out", trained)
        assert code == 2
        assert f"holds a run with another {what}" in err
        assert "Choose another --out" in err
    assert {p: p.read_bytes() for p in trained.rglob("*") if p.is_file()} == before


def test_another_trace_of_the_same_name_is_another_run(call: Callable[..., Any], trace: Trace) -> None:
    arguments = ("train", "--scenario", "small", "--timesteps", 64, "--out", "run", "--workload")
    assert call(*arguments, trace(ROWS))[0] == 0
    assert call(*arguments, trace(ROWS))[0] == 0
    code, _, err = call(*arguments, trace([(t, p + 1, o) for t, p, o in ROWS]))
    assert code == 2
    assert "another scenario" in err


def test_a_folder_of_something_else_is_left_alone(call: Callable[..., Any]) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("precious")
    code, _, err = call("train", "--scenario", "small", "--timesteps", 64, "--out", "mine")
    assert code == 2
    assert "is not empty and holds no training run" in err
    assert left_behind() == ["mine", "mine/thesis.txt"]


def test_a_workload_that_fails_later_leaves_no_run_behind(call: Callable[..., Any]) -> None:
    text = BAD_SCENARIO.format(extra="").split("[workload]")[0] + '[workload]\nfile = "gone.csv"\n'
    Path("late.toml").write_text(text)
    code, _, err = call("train", "--scenario", "late.toml", "--timesteps", 64, "--out", "run")
    assert code == 2
    assert "gone.csv" in err
    assert left_behind() == ["late.toml"]


@pytest.mark.parametrize("traced", [False, True])
def test_evaluate_compares_trained_and_heuristic_agents(
    call: Callable[..., Any], trained: Path, trace: Trace, traced: bool
) -> None:
    more = ("--workload", trace(ROWS)) if traced else ()
    names = f"round-robin,follow-load,clairvoyant,{trained}" if not traced else f"round-robin,{trained}"
    results = []
    for out in ("one", "two"):
        arguments = ("--scenario", "small", "--agents", names, "--episodes", 2, "--seed", 5, "--out", out)
        code, stdout, err = call("evaluate", *arguments, "--json", "-", *more)
        assert code == 0
        assert "report.html" in err
        page = Path(out, "report.html").read_text()
        assert page.lstrip().lower().startswith("<!doctype html>")
        assert "ppo" in page
        result = json.loads(stdout)
        assert result.pop("wall_s") > 0
        results.append(result)
    assert results[0] == results[1]
    assert list(results[0]["agents"]) == ["round-robin", *([] if traced else ["follow-load", "clairvoyant"]), "ppo"]
    assert results[0]["clairvoyant"] == ([] if traced else ["clairvoyant"])
    assert len(set(results[0]["seeds"])) == 2
    assert all(np.isfinite(agent["reward"]["mean"]) for agent in results[0]["agents"].values())
    assert results[0]["workload"] == ("trace.csv" if traced else "the scenario's own")
    parts = sorted(p.name for p in Path("one").rglob("*.parquet"))
    assert parts == (["held_out.parquet", "training.parquet", "validation.parquet"] if traced else [])


def test_simulate_plays_a_trained_agent(call: Callable[..., Any], trained: Path, trace: Trace) -> None:
    code, out, _ = call("simulate", "--scenario", "small", "--agent", trained, "--workload", trace(ROWS), "--json", "-")
    assert code == 0
    assert json.loads(out)["requests_completed"] == len(ROWS)


def test_a_trained_agent_is_refused_where_it_does_not_fit(call: Callable[..., Any], trained: Path) -> None:
    code, _, err = call("evaluate", "--scenario", "placement", "--agents", f"random,{trained}", "--out", "o")
    assert code == 2
    assert "was trained for" in err
    assert left_behind() == []


def test_best_constant_is_tuned_and_named(call: Callable[..., Any]) -> None:
    scenario = BAD_SCENARIO.replace("gpus = 4", "gpus = 1").format(extra="")
    Path("one.toml").write_text(scenario)
    code, out, _ = call(
        "evaluate", "--scenario", "one.toml", "--agents", "best-constant", "--episodes", 1, "--json", "-"
    )
    assert code == 0
    assert json.loads(out)["notes"]["best-constant"].startswith("1 A100-80GB, caps at ")


def _killed_at(folder: Path, signs: Callable[[], bool], steps: int) -> None:
    """Starts a training and kills it, without a chance to tidy up, as soon as it shows signs."""
    command = [sys.executable, "-m", "llmcluster.experiments.cli", "train", "--scenario", "small"]
    with subprocess.Popen(
        [*command, "--timesteps", str(steps), "--out", str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        while process.poll() is None and not signs():
            time.sleep(0.02)
        assert process.poll() is None, "it ended by itself"
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not (folder / "agent.json").exists()


def test_a_training_killed_before_its_first_checkpoint_starts_again(call: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    _killed_at(folder, lambda: any(folder.glob("tensorboard/*/events*")), 10**9)
    assert not (folder / "checkpoint.zip").exists()
    code, out, err = call("train", "--scenario", "small", "--timesteps", 64, "--out", folder, "--json", "-")
    assert code == 0, err
    assert json.loads(out)["timesteps"] == json.loads(out)["timesteps_now"]


@pytest.mark.slow
def test_a_killed_training_goes_on_from_its_checkpoint(call: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    _killed_at(folder, lambda: (folder / "checkpoint.zip").exists(), 10**9)
    code, out, _ = call("train", "--scenario", "small", "--timesteps", 30_000, "--out", folder, "--json", "-")
    result = json.loads(out)
    assert code == 0
    assert result["timesteps"] >= 30_000
    assert result["timesteps_now"] <= 30_000 - 15_000
    names = {p.name for p in folder.iterdir()}
    assert names == {"agent.json", "checkpoint.zip", "config.json", "policy.safetensors", "tensorboard"}
