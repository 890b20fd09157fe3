"""The command line, from arguments to files: results, exit codes, messages, and training that survives a kill."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from llmcluster.envs import scenarios
from llmcluster.simulator.workload.table import RequestTable

Rows = list[tuple[float, int, int]]
Trace = Callable[..., Path]
ROWS: Rows = [(0.5 * i, 50 + i, 5 + i % 40) for i in range(240)]
VERBS = ("simulate", "train", "evaluate")
LATENCY = {"p50", "p90", "p99", "mean"}
BAD_SCENARIO = """
horizon_s = 60
[[cluster.rows]]
[[cluster.rows.racks]]
[[cluster.rows.racks.servers]]
gpu = "A100-80GB"
gpus = 4
model = "Llama-3.1-8B"
{extra}
[workload]
requests = {{ kind = "azure-2023-conv" }}
arrivals = {{ kind = "azure-2023-conv", rate_per_s = 1.0 }}
"""


def left_behind() -> list[str]:
    """Everything that a call has left in its folder."""
    return sorted(str(p) for p in Path().rglob("*"))


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_an_example(call: Callable[..., Any], verb: str) -> None:
    code, out, _ = call(verb, "--help")
    assert code == 0
    assert f"Example: llmcluster {verb} " in out
    assert "--scenario" in out


def test_help_lists_the_verbs(call: Callable[..., Any]) -> None:
    code, out, _ = call("--help")
    assert code == 0
    assert all(verb in out for verb in (*VERBS, "data", "bench"))
    assert call()[0] == 2


def test_version(call: Callable[..., Any]) -> None:
    import llmcluster

    assert call("--version") == (0, f"{llmcluster.__version__}\n", "")


def test_the_installed_command_is_quick_to_help() -> None:
    code = "import sys; from llmcluster.experiments import cli; print('torch' in sys.modules, 'numba' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False False\n"
    done = subprocess.run([Path(sys.executable).with_name("llmcluster"), "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "simulate" in done.stdout


def test_simulate_gives_pure_json_and_tables_that_conserve_tokens(call: Callable[..., Any], trace: Trace) -> None:
    code, out, err = call("simulate", "--scenario", "small", "--workload", trace(ROWS), "--json", "-", "--out", "o/p")
    assert code == 0
    result = json.loads(out)
    assert result["requests"] == result["requests_completed"] == len(ROWS)
    assert result["output_tokens"] == sum(row[2] for row in ROWS)
    assert result["prompt_tokens"] == sum(row[1] for row in ROWS)
    assert result["agent"] == "least-outstanding"
    assert result["scenario"] == "small"
    assert set(result["ttft_s"]) == set(result["tpot_s"]) == set(result["e2e_s"]) == LATENCY
    assert 0 < result["ttft_s"]["p50"] <= result["ttft_s"]["p99"] < result["e2e_s"]["p99"]
    assert result["simulated_s"] >= ROWS[-1][0]
    assert result["wall_s"] > 0
    assert "240 of 240 requests completed" in err

    requests, seconds = (pq.read_table(f"o/p/{name}.parquet").to_pydict() for name in ("requests", "seconds"))
    assert requests["output_tokens"] == [row[2] for row in ROWS]
    assert requests["arrival_ps"] == [round(row[0] * 10**12) for row in ROWS]
    assert set(requests["status"]) == {"finished"}
    assert sum(seconds["output_tokens"]) == result["output_tokens"]
    assert sum(seconds["prompt_tokens"]) == result["prompt_tokens"]
    assert sum(seconds["energy_j"]) == pytest.approx(result["energy_j"])
    assert len(seconds["second"]) == 2 * result["simulated_s"]
    ttft_s = (np.array(requests["first_token_ps"]) - requests["arrival_ps"]) / 1e12
    assert np.percentile(ttft_s, 90) == pytest.approx(result["ttft_s"]["p90"])
    assert sorted(p.name for p in Path("o/p").iterdir()) == ["requests.parquet", "seconds.parquet"]


def test_simulate_without_json_speaks_to_people(call: Callable[..., Any]) -> None:
    code, out, _ = call("simulate", "--scenario", "small", "--agent", "follow-load", "--json", "r.json")
    assert code == 0
    assert "requests completed" in out
    assert "follow-load" in out
    assert json.loads(Path("r.json").read_text())["requests_completed"] > 100
    assert left_behind() == ["r.json"]


def test_equal_seeds_give_equal_json(call: Callable[..., Any]) -> None:
    results = []
    for seed in (3, 3, 4):
        result = json.loads(
            call("simulate", "--scenario", "small", "--seed", seed, "--agent", "random", "--json", "-")[1]
        )
        assert result.pop("wall_s") > 0
        results.append({k: v for k, v in result.items() if k != "seed"})
    assert results[0] == results[1] != results[2]


def test_requests_beyond_the_cache_are_rejected_and_reported(call: Callable[..., Any], trace: Trace) -> None:
    path = trace([(0.0, 100, 10), (1.0, 131_000, 200_000), (2.0, 100, 20)])
    code, out, err = call("simulate", "--scenario", "small", "--workload", path, "--json", "-", "--out", "o")
    result = json.loads(out)
    assert code == 0
    assert (result["requests_completed"], result["requests_rejected"], result["requests_unfinished"]) == (2, 1, 0)
    assert result["output_tokens"] == 30
    assert result["slo_attainment"] == pytest.approx(2 / 3)
    assert "2 of 3 requests completed; 1 rejected" in err
    assert pq.read_table("o/requests.parquet")["status"].to_pylist() == ["finished", "rejected", "finished"]


def test_requests_that_fail_with_a_slot_are_reported(call: Callable[..., Any]) -> None:
    small = (Path(scenarios.__file__).parent / "small.toml").read_text()
    fault = '[[faults]]\nkind = "scheduled"\nat_s = 100\nserver = 0\nrepair_s = 30\n'
    Path("broken.toml").write_text(f'{small}\n[cluster.gateway]\non_failure = "fail"\n{fault}')
    code, out, err = call("simulate", "--scenario", "broken.toml", "--json", "-", "--out", "o")
    result = json.loads(out)
    assert code == 0 and f"{result['requests_failed']} failed" in err
    statuses = Counter(pq.read_table("o/requests.parquet")["status"].to_pylist())
    assert statuses["failed"] == result["requests_failed"] > 0
    outcomes = ("completed", "rejected", "timed_out", "failed", "unfinished")
    assert result["requests"] == sum(result[f"requests_{name}"] for name in outcomes) == statuses.total()


def test_model_names_of_a_trace_do_not_matter_where_the_cluster_lacks_them(call: Callable[..., Any]) -> None:
    header = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    Path("burst.csv").write_text(header + "".join(f"{i},GPT-4,9,7,16,API log\n" for i in range(60)))
    code, out, _ = call("simulate", "--scenario", "small", "--workload", "burst.csv", "--json", "-")
    assert code == 0
    assert json.loads(out)["output_tokens"] == 420


def test_slo_classes_of_a_trace_count_where_the_scenario_has_them(call: Callable[..., Any]) -> None:
    classes = {"slo_class": [0, 1, 2], "slo_classes": ("lenient", "code", "default")}
    RequestTable.from_columns([0, 10, 20], [10, 10, 10], [5, 5, 5], **classes).to_parquet(Path("three.parquet"))
    call("simulate", "--scenario", "placement", "--workload", "three.parquet", "--out", "o")
    assert pq.read_table("o/requests.parquet")["slo_class"].to_pylist() == ["default", "code", "default"]


@pytest.mark.data
@pytest.mark.parametrize("agent", ["least-outstanding", "follow-load"])
def test_the_azure_conversations_complete(call: Callable[..., Any], azure_conv: Path, agent: str) -> None:
    with azure_conv.open(newline="") as file:
        tokens = [int(row["GeneratedTokens"]) for row in csv.DictReader(file)]
    code, out, _ = call("simulate", "--workload", azure_conv, "--agent", agent, "--json", "-")
    result = json.loads(out)
    assert code == 0
    assert result["requests_completed"] == result["requests"] == len(tokens) == 19_366
    assert result["output_tokens"] == sum(tokens)
    assert result["requests_rejected"] == result["requests_timed_out"] == 0


HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
FIRST = "2023-11-16 18:15:46.6805900,374,44\n"
BAD_TRACES = {
    "missing column": ("TIMESTAMP,ContextTokens\n2023-11-16 18:15:46,374\n", (":1", "GeneratedTokens")),
    "negative": (HEAD + FIRST + "2023-11-16 18:15:50.9951690,-5,109\n", (":3", "ContextTokens", "-5", "at least 1")),
    "unsorted": (HEAD + FIRST + "2023-11-16 18:15:40.9951690,5,109\n", (":3", "TIMESTAMP", "Sort the lines")),
    "no time": (HEAD + FIRST + "yesterday,5,109\n", (":3", "TIMESTAMP", "'yesterday'", "Correct or remove")),
    "no number": (HEAD + FIRST + "2023-11-16 18:15:50,5,many\n", (":3", "GeneratedTokens", "'many'")),
    "cut": (HEAD + FIRST + "2023-11-16 18:1", (":3", "1 fields", "download it again")),
    "unknown": ("when,what\n1,2\n", (":1", "'when,what'", "Name the format")),
    "empty": ("", ("the file is empty",)),
    "header only": (HEAD, ("no request",)),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("fault", BAD_TRACES)
def test_bad_traces_are_refused_and_nothing_is_written(call: Callable[..., Any], verb: str, fault: str) -> None:
    content, parts = BAD_TRACES[fault]
    Path("bad.csv").write_text(content)
    code, out, err = call(verb, "--workload", "bad.csv", "--out", "o", "--json", "r.json")
    assert code == 2
    assert out == ""
    assert err.strip().splitlines()[-1].startswith("error: ")
    for part in ("bad.csv", *parts):
        assert part in err
    assert "Traceback" not in err
    assert left_behind() == ["bad.csv"]


BAD_CALLS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "missing trace": (("--workload", "gone.csv"), ("gone.csv", "no such file", "Check the path")),
    "folder as trace": (("--workload", "."), ("is a folder", "Give a file")),
    "unknown scenario": (("--scenario", "defualt"), ("'defualt'", "azure-chat, azure-code")),
    "missing scenario": (("--scenario", "gone.toml"), ("gone.toml", "cannot be read", "Check the path")),
    "unknown option": (("--scenarios", "default"), ("--scenarios", "llmcluster --help")),
    "negative seed": (("--seed", "-1"), ("'--seed'", "greater than or equal to 0")),
    "seed in words": (("--seed", "one"), ("'--seed'", "integer")),
    "unknown key": (("--scenario", "unknown.toml"), ("unknown.toml", "servers[0].fans", "Remove it")),
    "tp misfit": (("--scenario", "tp.toml"), ("tp.toml", "servers[0]", "tp 8", "4 GPUs", "1, 2, 4")),
    "too large": (("--scenario", "large.toml"), ("Qwen3-32B on A100-40GB", "GB", "Use tp=")),
    "no TOML": (("--scenario", "broken.toml"), ("broken.toml", "line 2", "Mend the syntax")),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("fault", BAD_CALLS)
def test_bad_arguments_are_refused_and_nothing_is_written(call: Callable[..., Any], verb: str, fault: str) -> None:
    arguments, parts = BAD_CALLS[fault]
    written = {
        "unknown.toml": BAD_SCENARIO.format(extra="fans = 3"),
        "tp.toml": BAD_SCENARIO.format(extra="tp = 8"),
        "large.toml": BAD_SCENARIO.replace("Llama-3.1-8B", "Qwen3-32B").replace("80GB", "40GB").format(extra=""),
        "broken.toml": "horizon_s = 60\n[cluster\n",
    }
    for name, content in written.items():
        Path(name).write_text(content)
    code, out, err = call(verb, *arguments, "--out", "o", "--json", "r.json")
    assert code == 2
    assert out == ""
    for part in ("error: ", *parts):
        assert part in err
    assert "Traceback" not in err
    assert left_behind() == sorted(written)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("simulate", "--agent", "robin"), ("agent 'robin'", "round-robin")),
        (("simulate", "--agent", "best-constant"), ("llmcluster evaluate",)),
        (("simulate", "--agent", "."), ("agent.json", "llmcluster train")),
        (("evaluate", "--agents", "round-robin,robin"), ("agent 'robin'", "round-robin")),
        (("evaluate", "--agents", "round-robin,round-robin"), ("agents", "each once")),
        (("evaluate", "--agents", ","), ("agents", "at least one")),
        (("evaluate", "--agents", "random", "--reference", "robin"), ("reference", "robin", "random")),
        (("evaluate", "--episodes", "0"), ("--episodes",)),
        (("train", "--algo", "dqn"), ("'dqn'", "ppo, maskable-ppo")),
        (("train", "--timesteps", "0"), ("--timesteps",)),
        (("fly",), ("fly",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else str(value),
)
@pytest.mark.parametrize("traced", [False, True])
def test_bad_agents_are_refused_and_nothing_is_written(
    call: Callable[..., Any], trace: Trace, arguments: tuple[str, ...], parts: tuple[str, ...], traced: bool
) -> None:
    more = ("--workload", trace(ROWS)) if traced and arguments[0] != "fly" else ()
    code, out, err = call(*arguments, *more, *(("--out", "o") if arguments[0] != "fly" else ()))
    assert code == 2
    assert out == ""
    for part in ("error: ", *parts):
        assert part in err
    assert left_behind() == []


def test_paths_that_cannot_be_written_are_no_traceback(call: Callable[..., Any]) -> None:
    Path("file").write_text("")
    Path("folder").mkdir()
    for arguments in (
        ("simulate", "--scenario", "small", "--out", "file"),
        ("simulate", "--scenario", "small", "--json", "nowhere/r.json"),
        ("simulate", "--scenario", "small", "--json", "folder"),
        ("evaluate", "--scenario", "small", "--agents", "random", "--out", "file"),
        ("train", "--scenario", "small", "--timesteps", "1", "--out", "file"),
    ):
        code, _, err = call(*arguments)
        assert code == 2, arguments
        assert err.strip().splitlines()[-1].startswith("error: ")
    assert left_behind() == ["file", "folder"]


def test_traces_too_short_or_patchy_to_cut_are_refused(call: Callable[..., Any], trace: Trace) -> None:
    short, patchy = trace(ROWS[:40], "short.csv"), trace([*ROWS, (1000.0, 5, 5)], "patchy.csv")
    for path, parts in ((short, ("covers only 20 s", "at least 50 s")), (patchy, ("too few requests between 600 s",))):
        for verb in ("evaluate", "train"):
            code, _, err = call(verb, "--workload", path, "--out", "o")
            assert code == 2
            assert all(part in err for part in (path.name, *parts))
            assert left_behind() == []


def test_a_streamed_trace_fares_as_one_that_is_read_whole(call: Callable[..., Any], trace: Trace) -> None:
    file = trace(ROWS)
    common = ("simulate", "--scenario", "small", "--workload", file, "--json", "-")
    code, out, err = call(*common, "--agent", "least-outstanding", "--stream", "--out", "streamed")
    assert code == 0, err
    streamed = json.loads(out)
    code, out, _ = call(*common, "--agent", "least-outstanding", "--out", "whole")
    whole = json.loads(out)
    assert streamed["requests"] == whole["requests"] == len(ROWS)
    assert streamed["output_tokens"] == whole["output_tokens"] == sum(row[2] for row in ROWS)
    one, other = (pq.read_table(f"{folder}/requests.parquet") for folder in ("streamed", "whole"))
    assert sorted(one["finish_ps"].to_pylist()) == sorted(other["finish_ps"].to_pylist())
    assert sum(one["met_slo"].to_pylist()) == streamed["requests_met_slo"]


def test_the_reference_engine_gives_the_same_and_a_trace_for_perfetto(call: Callable[..., Any], trace: Trace) -> None:
    common = ("simulate", "--scenario", "small", "--workload", trace(ROWS), "--json", "-")
    code, out, err = call(*common, "--engine", "reference", "--trace", "run.json")
    assert code == 0, err
    reference = json.loads(out)
    compiled = json.loads(call(*common)[1])
    assert {**reference, "wall_s": 0} == {**compiled, "wall_s": 0}
    events = json.loads(Path("run.json").read_text())
    assert sum(e["name"] == "first token" for e in events) == len(ROWS)


def test_a_trace_needs_the_reference_engine(call: Callable[..., Any]) -> None:
    code, _, err = call("simulate", "--scenario", "small", "--trace", "run.json")
    assert code == 2 and 'engine="reference"' in err and not left_behind()
    code, _, err = call("simulate", "--scenario", "small", "--engine", "fast")
    assert code == 2 and "compiled, reference" in err


def test_a_stream_needs_a_trace_a_folder_and_a_router(call: Callable[..., Any], trace: Trace) -> None:
    code, _, err = call("simulate", "--stream")
    assert code == 2 and "--workload FILE and --out FOLDER" in err
    code, _, err = call("simulate", "--stream", "--workload", trace(ROWS), "--out", "o", "--agent", "best-constant")
    assert code == 2 and "power-of-two" in err and not Path("o").exists()


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
