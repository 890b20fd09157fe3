"""The command line, from arguments to files: help, simulations, exit codes and messages."""

import csv
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from llmcluster.envs import scenarios
from llmcluster.simulator.workload.table import RequestTable
from llmcluster.tests.command_line import BAD_SCENARIO, ROWS, Trace, left_behind

VERBS = ("simulate", "train", "evaluate")
LATENCY = {"p50", "p90", "p99", "mean"}


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
