"""Backtests: blocks and intervals, folds that keep the future out, figures by hand, and the verb."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmcluster.experiments.forecast import spread
from llmcluster.experiments.forecast_backtest import backtest, folds_of
from llmcluster.forecaster import TARGETS, shipped
from llmcluster.forecaster.bootstrap import interval, resampled_sums
from llmcluster.forecaster.models import NAIVE, make_model
from llmcluster.forecaster.telemetry import Telemetry
from llmcluster.simulator.errors import InputError

DATA = Path(os.environ.get("LLMCLUSTER_DATA", Path(__file__).parents[1] / "../shared/data")) / "vllm_serving"
measured = pytest.mark.skipif(not DATA.is_dir(), reason="the published telemetry is not under LLMCLUSTER_DATA")
SHIPPED = Path(shipped.__file__).with_name("gru.safetensors")
FIGURES = {"mae_w", "rmse_w", "pinball_w", "coverage_80", "skill", "pinball_skill"}


def series(power_w: Any, source: str) -> Telemetry:
    return Telemetry(np.array(power_w, float)[:, None], ("gpu0",), source=source)


def wave(seconds: int, source: str, first_s: int = 0) -> Telemetry:
    rng = np.random.default_rng(first_s)
    power = 200 + 60 * np.sin(2 * np.pi * (first_s + np.arange(seconds)) / 97) + rng.normal(0, 3, seconds)
    return series(power, source)


# The bootstrap


def test_intervals_of_independent_values_are_the_usual_ones() -> None:
    values = np.random.default_rng(0).normal(5, 2, (4000, 1))
    sums = resampled_sums(values, 1, 4000, np.random.default_rng(1)) / 4000
    low, high = interval(sums)
    assert [low[0], high[0]] == pytest.approx(values.mean() + np.array([-1.96, 1.96]) * 2 / 4000**0.5, abs=0.006)


def test_blocks_widen_the_intervals_of_dependent_values() -> None:
    values = np.random.default_rng(2).normal(size=(200, 1)).repeat(50, axis=0)
    widths = []
    for block_s in (1, 200):
        low, high = interval(resampled_sums(values, block_s, 2000, np.random.default_rng(3)) / len(values))
        widths.append(high[0] - low[0])
    assert widths[1] == pytest.approx(2 * 1.96 / 200**0.5, rel=0.2)
    assert widths[1] > 5 * widths[0]


def test_columns_are_resampled_alike_and_blocks_go_round() -> None:
    values = np.stack([np.arange(100.0), 3 * np.arange(100.0), np.ones(100)], axis=1)
    sums = resampled_sums(values, 30, 500, np.random.default_rng(4))
    assert sums[:, 1] == pytest.approx(3 * sums[:, 0])
    assert (sums[:, 2] == 120).all()  # four blocks of thirty
    assert (resampled_sums(values, 1000, 10, np.random.default_rng(5))[:, 0] == values[:, 0].sum()).all()


# Folds


def test_a_rolling_fold_is_trained_on_its_own_past() -> None:
    test = wave(1000, "one")
    folds = folds_of([], [test], 4)
    assert [(f.first_s, f.last_s) for f in folds] == [(500, 625), (625, 750), (750, 875), (875, 1000)]
    for fold in folds:
        (train,) = fold.train
        assert np.array_equal(train.power_w, test.power_w[: fold.first_s])


def test_held_out_series_are_judged_whole_but_for_the_warm_up() -> None:
    train, tests = wave(1000, "one"), [wave(500, "two"), wave(300, "three")]
    assert [(f.train, f.first_s, f.last_s) for f in folds_of([train], tests)] == [((train,), 60, n) for n in (500, 300)]
    with pytest.raises(InputError, match="two: is given to train and to test on"):
        folds_of([tests[0]], tests)


def test_what_comes_after_a_fold_does_not_change_its_training() -> None:
    test = wave(1200, "one")
    changed = series(np.where(np.arange(1200) < 900, test.power_w[:, 0], 900.0), "one")
    errors = []
    for telemetry in (test, changed):
        fold = folds_of([], [telemetry], 4)[1]
        assert fold.last_s == 900
        model = make_model("ridge-ar")
        model.fit(fold.train, np.random.default_rng(0))
        errors.append(model.backtest(telemetry, fold.first_s, 840).absolute)
    assert np.array_equal(*errors)


# Figures


def test_skill_is_measured_by_the_best_naive_model() -> None:
    folds = folds_of([wave(1500, "train")], [wave(900, "test", 5000)])
    result = backtest(folds, ["persistence", "seasonal-naive"], seed=0)
    assert set(result["results"]) == {"persistence", "seasonal-naive"}
    for target in TARGETS:
        assert result["best_naive"][target] in ("seasonal-naive", "ridge-ar")
        best = make_model(result["best_naive"][target])
        best.fit(folds[0].train, np.random.default_rng(0))
        losses = best.backtest(folds[0].test, 60)
        best_w = losses.absolute[:, TARGETS.index(target)].sum() / losses.count.sum()
        row = result["results"]["persistence"][target]
        assert set(row) == FIGURES | {"intervals"}
        assert row["skill"] == pytest.approx(1 - row["mae_w"] / best_w)
        assert row["skill"] < -1
        for name, (low, high) in row["intervals"].items():
            assert low <= row[name] <= high
    assert result["forecasts"] == result["seconds"] == 900 - 60 - 60
    assert result["autocorrelation"]["test"]["30s"] == pytest.approx(np.cos(2 * np.pi * 30 / 97), abs=0.05)


def test_every_model_is_judged_and_the_same_seed_gives_the_same() -> None:
    folds = folds_of([], [wave(1000, "one"), wave(1200, "two", 300)], 2)
    result = backtest(folds, list(NAIVE), seed=3)
    assert set(result["results"]) == set(NAIVE)
    assert result == backtest(folds, list(NAIVE), seed=3)
    for skill, error in (("skill", "mae_w"), ("pinball_skill", "pinball_w")):
        for target in TARGETS:
            rows = [result["results"][name][target] for name in NAIVE]
            lowest_w = min(row[error] for row in rows)
            assert [row[skill] for row in rows] == pytest.approx([1 - row[error] / lowest_w for row in rows])
    json.dumps(result, allow_nan=False)


def test_a_series_without_change_has_no_skill() -> None:
    flat = [series(np.full(700, 100.0), name) for name in ("train", "test")]
    row = backtest(folds_of(flat[:1], flat[1:]), ["persistence"], seed=0)["results"]["persistence"]["point_30s"]
    assert row["mae_w"] == 0
    assert row["coverage_80"] == 1
    assert row["skill"] is None
    assert row["intervals"]["skill"] == [None, None]


def test_bad_backtests_are_told() -> None:
    train = wave(800, "train")
    with pytest.raises(InputError, match="--models oracle: is unknown"):
        backtest(folds_of([train], [wave(500, "test")]), ["oracle"], seed=0)
    with pytest.raises(InputError, match="no series to judge on"):
        backtest([], ["ewma"], seed=0)
    with pytest.raises(InputError, match="test: no minute without a gap"):
        backtest(folds_of([train], [wave(100, "test")]), ["ewma"], seed=0)
    with pytest.raises(InputError, match="too short"):
        backtest(folds_of([], [wave(300, "test")]), ["ewma"], seed=0)


# The verb


@pytest.fixture
def call(call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Runs `llmcluster forecast` in the folder of the test."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: call("forecast", *arguments)


def write(telemetry: Telemetry) -> Path:
    """Writes a series into the present folder."""
    path = Path(telemetry.source)
    rows = [f"{i},{value:.3f}" for i, value in enumerate(telemetry.power_w[:, 0])]
    path.write_text("\n".join(["t_s,power_w", *rows, f"{len(rows)},0"]) + "\n")
    return path


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["--train", "a", "b", "--test", "c"], ["--train", "a", "--train", "b", "--test", "c"]),
        (["--train", "a", "b", "c"], ["--train", "a", "--train", "b", "--train", "c"]),
        (["--train", "a", "--train", "b"], ["--train", "a", "--train", "b"]),
        (["--test", "a", "--seed", "3", "4"], ["--test", "a", "--seed", "3", "4"]),
        ([], []),
    ],
)
def test_lists_of_files(given: list[str], meant: list[str]) -> None:
    assert spread(given) == meant


def test_backtest_gives_pure_json(call: Callable[..., Any]) -> None:
    files = [write(wave(700, f"{name}.csv", 100 * i)) for i, name in enumerate(("a", "b", "c"))]
    code, out, err = call(
        "backtest", "--train", *files[:2], "--test", files[2], "--models", "ewma, persistence", "--json", "-"
    )
    assert code == 0, err
    result = json.loads(out)
    assert result["train"] == ["a.csv", "b.csv"]
    assert result["test"] == ["c.csv"]
    assert set(result["results"]) == {"ewma", "persistence"}
    assert set(result["results"]["ewma"]) == set(TARGETS)
    assert set(result["results"]["ewma"]["point_30s"]) > FIGURES
    assert "the best naive model is" in err


def test_backtest_without_training_rolls_through_each_file(call: Callable[..., Any]) -> None:
    write(wave(900, "a.csv"))
    code, out, _ = call("backtest", "--test", "a.csv", "--folds", "2", "--json", "result.json")
    assert code == 0
    result = json.loads(Path("result.json").read_text())
    assert set(result["results"]) == set(NAIVE)
    assert result["forecasts"] == 900 - 450 - 60
    assert all(out.count(f"  {name} ") == 4 for name in NAIVE)
    assert all(f"{target}: the best naive model is {result['best_naive'][target]}" in out for target in TARGETS)


def test_the_engines_counters_are_joined(call: Callable[..., Any]) -> None:
    start = 1_700_000_000
    Path("power.csv").write_text("epoch_s,power_w\n" + "".join(f"{start + i},{100 + i % 7}\n" for i in range(800)))
    Path("engine.csv").write_text(
        "epoch_s,num_requests_running\n" + "".join(f"{start + i},{i % 5}\n" for i in range(800))
    )
    write(wave(800, "other.csv"))
    across = (
        "backtest",
        "--train",
        "power.csv+engine.csv",
        "--test",
        "other.csv",
        "--models",
        "ridge-ar",
        "--json",
        "-",
    )
    code, out, err = call(*across)
    assert code == 0, err
    text = "other.csv: has no covariate that ridge-ar was fitted with (running); it forecasts from power alone"
    assert json.loads(out)["warnings"] == [text]
    assert err.count(f"warning: {text}") == 1
    assert call("backtest", "--test", "power.csv+engine.csv", "--models", "ridge-ar")[0] == 0


def test_bad_input_is_told(call: Callable[..., Any]) -> None:
    write(wave(800, "a.csv"))
    Path("a.safetensors").write_bytes(b"PK\x03\x04 a zip archive, or a pickle")
    for arguments, message in (
        (("--test", "nothing.csv"), "nothing.csv: no such file. Check the path\n"),
        (("--test", "nothing.csv", "--models", "oracle"), "--models oracle: is unknown"),
        (("--test", "nothing.csv", "--models", "a.safetensors"), "a.safetensors: is no safetensors file"),
        (("--test", "a.csv", "--models", "oracle"), "--models oracle: is unknown. Use some of persistence"),
        (("--test", "a.csv", "--train", "a.csv"), "a.csv: is given to train and to test on"),
        (("--test", "a.csv", "--layout", "xml"), "no reader for 'xml'"),
        (("--models", "ewma"), "Missing option"),
    ):
        code, out, err = call("backtest", *arguments)
        assert (code, out) == (2, "")
        assert message in err
        assert "Traceback" not in err
    assert "Example: llmcluster forecast backtest" in call("backtest", "--help")[1]


def test_the_shipped_model_is_judged_on_power_alone(call: Callable[..., Any]) -> None:
    write(wave(900, "a.csv"))
    covered = {}
    for scale in ("1", "400"):
        code, out, err = call("backtest", "--test", "a.csv", "--models", SHIPPED, "--scale", scale, "--json", "-")
        assert code == 0, err
        result = json.loads(out)
        told = " ".join(result["warnings"])
        assert "a.csv: has no covariate that gru was fitted with (running, waiting" in told
        assert ("--scale" in told) == (scale == "1")
        assert result["scale_w"] == float(scale)
        covered[scale] = result["results"][str(SHIPPED)]["mean_30s"]["coverage_80"]
    assert covered["1"] < 0.1 < 0.3 < covered["400"]


@measured
@pytest.mark.data
def test_published_series(call: Callable[..., Any]) -> None:
    busy, idle = (DATA / f"burstgpt_a100_qwen3-8b_w{i}_power.csv" for i in (1, 2))
    code, out, err = call("backtest", "--train", busy, "--test", idle, "--json", "-")
    assert code == 0
    assert "no time stamps" in err
    result = json.loads(out)
    assert result["results"]["training-median"]["point_30s"]["mae_w"] > 150  # the one busy, the other idle
    assert result["results"]["persistence"]["point_30s"]["mae_w"] < 20
    assert abs(next(iter(result["autocorrelation"].values()))["60s"]) < 0.1
