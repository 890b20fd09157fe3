"""The verb `bench` on tiny inputs: what it says adds up, whatever the machine's speed."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from llmcluster.envs.cluster_env import LLMClusterEnv
from llmcluster.envs.scenario import load_scenario
from llmcluster.experiments.bench import engine, environment, scaling, setup
from llmcluster.experiments.bench.compilation import cold_compile_s, compile_s
from llmcluster.experiments.bench.day import Day, simulate_day, simulate_server
from llmcluster.experiments.bench.setup import Setup
from llmcluster.experiments.bench.verbs import app
from llmcluster.simulator.errors import InputError
from llmcluster.simulator.kernels.state import REQUEST
from llmcluster.simulator.workload.table import RequestTable

Trace = Callable[..., Path]
ROWS = [(0.5 * i, 50 + i, 5 + i % 40) for i in range(240)]
TOKENS = sum(row[2] for row in ROWS)


def bench(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "300"})


def told(*arguments: object) -> dict[str, Any]:
    result = bench(*arguments, "--json", "-")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def nothing() -> None:
    pass


def test_the_engine_is_timed_on_the_whole_workload(trace: Trace) -> None:
    result = told(
        "engine", "--workload", trace(ROWS), "--repeat", 3, "--rate-factor", 2, "--rounds", 2, "--replicas", 3
    )
    assert result["requests"] == result["requests_completed"] == 3 * len(ROWS)
    assert result["output_tokens"] == 3 * TOKENS
    assert (result["replicas"], result["router"], result["engine"]) == (3, "round-robin", "compiled")
    assert result["wall_s"] == min(result["wall_s_rounds"]) > 0
    assert len(result["wall_s_rounds"]) == result["rounds"] == 2
    assert result["requests_per_s"] == pytest.approx(result["requests"] / result["wall_s"])
    assert result["events_per_s"] == pytest.approx(result["events"] / result["wall_s"])
    assert result["events"] > result["requests"]  # they come one by one, each with a prefill and decodes
    assert result["simulated_s_per_s"] == pytest.approx(result["simulated_s"] / result["wall_s"])
    assert 3 * 119.5 / 2 < result["simulated_s"] < 3 * 120 / 2 + 30
    assert 0 < result["busy_slot_s"] <= 3 * result["simulated_s"]
    assert result["energy_j"] > 3 * 60 * result["simulated_s"]  # three idle GPUs draw more than that
    assert min(result[key] for key in ("load_s", "repeat_s", "cpu_s")) > 0
    assert result["compile_s"] >= 0


def test_people_see_a_table(trace: Trace) -> None:
    shown = bench("engine", "--workload", trace(ROWS), "--rounds", 1, "--scaling", "--profile").output
    for part in ("240 of 240 requests completed", "requests per second", "us per request", "x8", "kernels/cluster.py"):
        assert part in shown


def test_the_memory_per_request_does_not_depend_on_their_number() -> None:
    def table(n: int) -> RequestTable:
        return RequestTable.from_columns(np.arange(n) * 10**10, np.full(n, 5), np.full(n, 5))

    few, many = (engine.bytes_per_request(Setup(), table(n)) for n in (20_000, 80_000))
    assert many == pytest.approx(few, rel=0.02)
    assert REQUEST.itemsize + table(1000).nbytes / 1000 < many < 1000


def test_routers_change_the_outcome(trace: Trace) -> None:
    path = trace([(0.01 * i, 2000 if i % 2 else 20, 200 if i % 2 else 2) for i in range(200)])
    energies = {
        router: told("engine", "--workload", path, "--rounds", 1, "--replicas", 2, "--router", router)["energy_j"]
        for router in ("round-robin", "least-outstanding")
    }
    assert len(set(energies.values())) == 2


def test_scaling_runs_what_it_says() -> None:
    n = 400
    table = RequestTable.from_columns(np.arange(n) * 10**11, np.full(n, 100), np.full(n, 20))
    rounds = []
    found = scaling.scaling(Setup(replicas=2), table, 2, lambda: rounds.append(1))
    assert len(rounds) == 16
    runs = {(run["series"], run["run"]): run for run in found["runs"]}
    assert [run["requests"] for run in found["runs"]] == [50, 100, 200, 400, 50, 50, 50, 50]
    assert [run["output_tokens"] for run in found["runs"][4:]] == [1000, 2000, 4000, 8000]
    assert all(run["requests_completed"] == run["requests"] for run in found["runs"])
    slow, base = runs["outputs", "x8"], runs["requests", "1/8"]
    assert slow["simulated_s"] == pytest.approx(8 * base["simulated_s"], abs=8)
    assert found["per_request"]["slope_s"] > 0
    assert set(found["per_slot_second"]) == {"request_s", "busy_slot_s", "idle_slot_s", "residual"}


def test_lines_are_fitted_exactly_where_there_is_one() -> None:
    x, one = np.array([1.0, 2.0, 4.0, 8.0]), np.ones(4)
    assert scaling._fit(3 * x + 5, x, one) == pytest.approx((3, 5, 0), abs=1e-9)
    slope, intercept, residual = scaling._fit(np.array([1.1, 0.9, 1.1, 0.9]), x, one)
    assert residual == pytest.approx(0.09, abs=0.02)
    assert abs(slope) < 0.03 and intercept == pytest.approx(1, abs=0.1)


def test_costs_are_not_negative() -> None:
    n, busy = np.array([1.0, 2.0, 4.0, 8.0]), np.array([3.0, 1.0, 4.0, 1.0])
    assert scaling._fit_costs(2 * n + 3 * busy, n, busy) == pytest.approx((2, 3, 0), abs=1e-9)
    *costs, residual = scaling._fit_costs(2 * n - 0.1 * busy, n, busy)
    assert costs[1] == 0 and costs[0] == pytest.approx(2, rel=0.1) and residual > 0.01


def test_the_profile_accounts_for_the_time() -> None:
    n = 3000
    table = RequestTable.from_columns(np.arange(n) * 10**11, np.full(n, 100), np.full(n, 20))
    found = engine.profile(Setup(), table)
    shares = [row["share"] for row in found["functions"]]
    assert 0.9 < sum(shares) <= 1
    assert shares == sorted(shares, reverse=True)
    assert any("kernels/cluster.py" in row["function"] for row in found["functions"])
    assert found["idle_s"] > 0


def test_compiling_is_counted_once() -> None:
    compile_s()
    assert compile_s() == 0.0


@pytest.mark.slow
def test_a_cold_compile_is_measured() -> None:
    assert cold_compile_s() > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--gpu", "H9000"), "H9000"),
        (("--model", "Qwen3-32B", "--gpu", "A100-40GB"), "Use tp="),
        (("--router", "dice"), "'dice' is unknown"),
        (("--rate-factor", "0"), "rate_factor"),
    ],
)
def test_what_cannot_be_timed_is_refused(trace: Trace, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        raise bench("engine", "--workload", trace(ROWS), *arguments).exception or AssertionError
    with pytest.raises(InputError, match="holds no requests"):
        engine.measure(Setup(), RequestTable.from_columns([], [], []), 1, nothing)


def test_a_cluster_that_falls_behind_is_not_called_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "DRAIN_S", 1.0)
    table = RequestTable.from_columns([0, 1], [100, 100], [5, 50_000])
    with pytest.raises(InputError, match=r"1 requests are still there .* add replicas"):
        engine.measure(Setup(), table, 1, nothing)


@pytest.mark.parametrize(("replicas", "tp", "servers"), [(8, 1, [8]), (11, 1, [8, 3]), (3, 1, [3]), (9, 2, [4, 4, 1])])
def test_replicas_fill_servers(replicas: int, tp: int, servers: list[int]) -> None:
    slots = Setup(replicas=replicas, tp=tp).blueprint().slots
    assert np.bincount([slot.server for slot in slots]).tolist() == servers


def test_the_environment_is_timed_alone_and_in_copies() -> None:
    result = told("env", "--scenario", "small", "--copies", 2, "--rounds", 3, "--seed", 5)
    vector = result.pop("vector")
    assert (result["scenario"], result["slots"], result["ticks"], result["tick_s"]) == ("small", 2, 30, 10)
    assert (result["rounds"], result["seed"], vector["copies"]) == (3, 5, 2)
    for figures in (result, vector):
        assert 0 < figures["reset_ms"] <= figures["reset_ms_median"]
        assert 0 < figures["step_ms"] <= figures["step_ms_median"]
        assert figures["step_cpu_ms"] > 0
    assert result["steps_per_s"] == pytest.approx(1000 / result["step_ms"])
    assert vector["steps_per_s"] == pytest.approx(2 * 1000 / vector["step_ms"])
    assert vector["gain"] == pytest.approx(vector["steps_per_s"] / result["steps_per_s"])
    assert result["simulated_s_per_s"] == pytest.approx(10 * result["steps_per_s"])
    envs = [LLMClusterEnv("small") for _ in range(2)]
    for seed, env in enumerate(envs, 5):
        env.reset(seed=seed)
    arrivals = [len(env.plant.cluster.requests) for env in envs if env.plant]
    assert (result["requests"], vector["requests"]) == (arrivals[0], sum(arrivals))
    assert min(result[key] for key in ("make_s", "first_reset_s")) > 0 <= result["compile_s"]


def test_every_round_plays_whole_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    step = LLMClusterEnv.finish
    monkeypatch.setattr(LLMClusterEnv, "finish", lambda env, outcome: steps.append(step(env, outcome)) or steps[-1])
    rounds = []
    environment.measure_env(load_scenario("small"), 3, 2, 0, lambda: rounds.append(1))
    assert len(rounds) == 4 and len(steps) == 2 * 30 + 2 * 3 * 30
    assert sum(truncated for *_, truncated, _ in steps) == 2 + 2 * 3
    assert all(info["energy_j"] > 0 for *_, info in steps)


def test_people_see_what_copies_gain() -> None:
    shown = bench("env", "--scenario", "small", "--copies", 2, "--rounds", 1).output
    for part in ("small, 2 slots, 30 steps of 10 s", "2 copies", "steps per second", "times as fast"):
        assert part in shown


DAY = ("--servers", 3, "--gpus", 2, "--requests", 900, "--length-s", 700, "--every-s", 10, "--seed", 4)


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("day") / "one"
    return out, told("day", *DAY, "--workers", 1, "--out", out)


def test_a_day_adds_up(day: tuple[Path, dict[str, Any]]) -> None:
    out, result = day
    requests, seconds = (pq.read_table(out / name).to_pydict() for name in ("requests", "seconds"))
    assert 900 <= result["requests"] == result["requests_completed"] == len(requests["id"]) < 1200
    assert set(requests["status"]) == {"finished"}
    assert sum(requests["output_tokens"]) == result["output_tokens"] == sum(seconds["output_tokens"])
    assert sum(requests["prompt_tokens"]) == result["prompt_tokens"]
    assert sum(seconds["energy_j"]) == pytest.approx(result["energy_j"])
    assert result["gpus"] == 6 == len(set(seconds["slot"])) == len(set(requests["slot"]))
    assert max(requests["arrival_ps"]) < 700 * 10**12
    assert max(requests["finish_ps"]) <= 10**12 * result["slot_s"] / 2
    assert set(seconds["second"]) >= set(range(0, 700, 10))
    assert result["simulated_s"] == 700
    assert sorted(p.name for p in (out / "requests").iterdir()) == [f"server{n:04}.parquet" for n in range(3)]
    assert set(result["phases"]) == {"generation_s", "preparation_s", "engine_s", "writing_s"}
    assert result["peak_memory_bytes"] > 10**7
    assert result["result_bytes"] == sum(p.stat().st_size for p in out.rglob("*.parquet"))


def test_requests_go_round_the_gpus_of_a_server(day: tuple[Path, dict[str, Any]]) -> None:
    table = pq.read_table(day[0] / "requests" / "server0001.parquet").sort_by("id")
    assert table["slot"].to_pylist()[:4] == [f"row0/rack0/server1/slot{n}" for n in (0, 1, 0, 1)]


def test_results_do_not_depend_on_the_processes(day: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    result = told("day", *DAY, "--workers", 2, "--out", tmp_path)
    counted = ("requests", "output_tokens", "slot_s", "result_bytes")
    assert [result[key] for key in counted] == [day[1][key] for key in counted]
    for file in day[0].rglob("*.parquet"):
        assert pq.read_table(tmp_path / file.relative_to(day[0])).equals(pq.read_table(file))
    assert result["workers"] == 2


def test_servers_draw_their_own_traffic(tmp_path: Path) -> None:
    one, other = (Day(2, 1, 200, tmp_path, seed).traffic(0).table() for seed in (0, 1))
    same, next_door = (Day(2, 1, 200, tmp_path, 0).traffic(server).table() for server in (0, 1))
    assert same.arrival_ps.tolist() == one.arrival_ps.tolist()
    assert len({table.arrival_ps.tobytes() for table in (one, other, next_door)}) == 3


def test_a_folder_with_results_is_not_mixed(day: tuple[Path, dict[str, Any]]) -> None:
    with pytest.raises(InputError, match="holds the results of another run"):
        simulate_day(Day(1, 1, 10, day[0]), 1, nothing)


def test_a_server_that_fails_stops_the_day(tmp_path: Path) -> None:
    (tmp_path / "seconds").write_text("in the way")
    with pytest.raises(OSError, match="seconds"):
        simulate_server(Day(1, 1, 10, tmp_path, length_s=60), 0)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["seconds"]
    with pytest.raises(InputError, match="H9000"):
        simulate_day(Day(1, 1, 10, tmp_path / "b", gpu="H9000"), 1, nothing)


def test_faults_pass_from_the_processes(tmp_path: Path) -> None:
    fault = pickle.loads(pickle.dumps(InputError("here", "is wrong", "Mend it")))
    assert (str(fault), fault.where, fault.remedy) == ("here: is wrong. Mend it", "here", "Mend it")
    with pytest.raises(InputError, match="0 is not positive"):
        simulate_day(Day(2, 1, 10, tmp_path / "out", every_s=0, length_s=60), 2, nothing)


def test_forecasts_are_timed() -> None:
    result = told("forecast", "--forecaster", "persistence", "--rounds", 3)
    assert result["forecaster"] == "persistence" and set(result["update_us"]) == {"8", "64"}
    assert all(set(row) == {"1", "10"} and min(row.values()) > 0 for row in result["update_us"].values())
    assert set(result["perception_us"]) == {"8", "64"} and min(result["perception_us"].values()) > 0
    text = bench("forecast", "--rounds", 2).output
    assert text.count(" µs") == 6 and "64 slots, 10 s of samples" in text
    assert bench("forecast", "--forecaster", "tarot").exit_code != 0


@pytest.mark.parametrize("command", ["engine", "env", "forecast", "gateway", "day"])
def test_help_has_an_example(command: str) -> None:
    result = bench(command, "--help")
    assert result.exit_code == 0 and f"Example: llmcluster bench {command}" in result.stdout
