"""Scores on real series: what could be forecast at all, pieces that a cut run goes on with, figures, page, pictures."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from llmcluster.experiments import write_forecast_scores as command
from llmcluster.experiments.forecast_backtest import backtest, folds_of
from llmcluster.experiments.forecast_hindsight import hindsight_mae_w, least_absolute, memory
from llmcluster.experiments.forecast_page import DOCS, PAGE
from llmcluster.experiments.forecast_plots import LOWEST, MODELS, _bars, plot_forecasts, plot_skills
from llmcluster.experiments.forecast_real_section import (
    FORECASTS,
    SKILLS,
    _fits,
    best_learned,
    real_section,
    verdict,
)
from llmcluster.experiments.forecast_scores import Case, measured, rounded, scores_of
from llmcluster.experiments.write_forecast_scores import SERVING, SWEEPS, cases_of, lines_of, write_forecast_scores
from llmcluster.forecaster import TARGETS
from llmcluster.forecaster.frames import FIT, parts_of
from llmcluster.forecaster.models import LEARNED, NAIVE, make_model
from llmcluster.forecaster.models.learned import TrainSettings
from llmcluster.forecaster.telemetry import Telemetry

QUICK = TrainSettings(hidden=4, epochs=1)


def series(power_w: Any, source: str = "one.csv", **more: Any) -> Telemetry:
    power = np.asarray(power_w, float)
    power = power[:, None] if power.ndim == 1 else power
    return Telemetry(power, tuple(f"gpu{i}" for i in range(power.shape[1])), source=source, **more)


def wave(seconds: int, seed: int = 0) -> Any:
    noise = np.random.default_rng(seed).normal(0, 5, seconds)
    return 200 + 40 * np.sin(2 * np.pi * np.arange(seconds) / 97) + noise


# What could be forecast at all


def test_memory_is_that_of_seconds_and_of_windows_that_follow_one_another() -> None:
    found = memory(series(200 + 40 * np.sin(2 * np.pi * np.arange(97 * 60) / 97)))
    wanted = [np.cos(2 * np.pi * h / 97) for h in (30, 60, 30, 60)]
    assert list(found) == list(TARGETS)
    assert list(found.values()) == pytest.approx(wanted, abs=0.02)
    noise = np.random.default_rng(1).normal(200, 9, 60_000)
    assert max(map(abs, memory(series(noise)).values())) < 0.05  # a lag shorter by one would give 1/30 for means
    steps = np.repeat(np.random.default_rng(2).normal(200, 9, 1000), 45)
    of_steps = memory(series(steps))
    assert of_steps["point_30s"] == pytest.approx(1 / 3, abs=0.06)
    assert of_steps["point_60s"] == pytest.approx(0, abs=0.06)


def test_memory_knows_no_gaps_and_begins_where_it_is_told() -> None:
    noise = np.random.default_rng(3).normal(200, 9, 4000)
    slow = np.repeat(np.random.default_rng(4).normal(200, 9, 20), 200)
    both = np.concatenate([noise, slow])
    assert memory(series(both), 4000) == memory(series(slow))
    assert memory(series(both), 4000)["point_30s"] > 0.7 > memory(series(both))["point_30s"]
    holes = np.where(np.arange(len(slow)) % 500 < 3, np.nan, slow)
    assert memory(series(holes))["mean_60s"] == pytest.approx(memory(series(slow))["mean_60s"], abs=0.1)


def test_the_least_absolute_line_is_the_best_through_two_of_the_points() -> None:
    """The lowest sum of absolute errors is that of a line through as many points as it has figures."""
    rng = np.random.default_rng(5)
    for _ in range(5):
        x, y = rng.normal(size=15), rng.normal(size=15)
        through = []
        for i, j in itertools.combinations(range(15), 2):
            slope = (y[i] - y[j]) / (x[i] - x[j])
            through.append(np.abs(y - y[i] - slope * (x - x[i])).mean())
        assert least_absolute(x[:, None], y) == pytest.approx(min(through), rel=2e-3)
    x = rng.normal(size=(50, 2))
    assert least_absolute(x, x @ [2.0, -1.0] + 3) == pytest.approx(0, abs=1e-6)
    assert least_absolute(np.ones((4, 1)), np.array([1.0, 2, 3, 10])) == pytest.approx(2.5)


def test_no_line_beats_the_one_drawn_in_hindsight() -> None:
    power = np.stack([wave(900, 1), 2 * wave(900, 2)], axis=1)
    power[600:606, 1] = np.nan
    folds = folds_of([], [series(power, scale_w=np.array([300.0, 600.0]))], 2)
    naive = backtest(folds, ["persistence", "training-median"], 0)["results"]
    for k, target in enumerate(TARGETS):
        lowest_w = hindsight_mae_w(folds)[k]
        assert 0 < lowest_w < min(naive[model][target]["mae_w"] for model in naive)
    scaled = [folds_of([], [series(power)], 2), folds]
    assert hindsight_mae_w(scaled[0]) == pytest.approx(hindsight_mae_w(scaled[1]))


# Pieces and figures


@pytest.fixture(scope="module")
def case() -> Case:
    return Case("one", folds_of([], [series(wave(800))], 2), (0, 1))


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pieces")


@pytest.fixture(scope="module")
def scores(case: Case, pieces: Path) -> dict[str, Any]:
    return scores_of(case, QUICK, pieces)


def test_a_cut_run_goes_on_with_what_it_has(case: Case, scores: dict[str, Any], pieces: Path) -> None:
    files = {path: path.stat().st_mtime_ns for path in pieces.iterdir()}
    assert len(files) == len(case.pieces) == len(NAIVE) + 2 * len(LEARNED)
    some = sorted(files)[:4]
    for path in some:
        path.unlink()
    ticks: list[int] = []
    assert scores_of(case, QUICK, pieces, lambda: ticks.append(1)) == scores
    assert len(ticks) == len(files)
    again = {path: path.stat().st_mtime_ns for path in pieces.iterdir()}
    assert set(again) == set(files)
    assert {path for path in files if again[path] != files[path]} == set(some)


def test_a_piece_of_something_else_is_not_taken(case: Case, tmp_path: Path) -> None:
    before = measured(case, "ewma", 0, QUICK, tmp_path)
    other = Case("one", folds_of([], [series(wave(800, 7))], 2), (0,))
    shorter = Case("one", case.folds[:1], (0,))
    for number, (one, seed, settings) in enumerate(
        ((other, 0, QUICK), (shorter, 0, QUICK), (case, 1, QUICK), (case, 0, TrainSettings(hidden=8))), 2
    ):
        measured(one, "ewma", seed, settings, tmp_path)
        assert len(list(tmp_path.iterdir())) == number
    held = measured(case, "ewma", 0, QUICK, tmp_path)
    assert np.array_equal(held.losses.squared, before.losses.squared)
    assert np.array_equal(held.own.absolute, before.own.absolute)
    assert np.array_equal(held.forecast, before.forecast)


def test_forecasts_are_kept_fold_after_fold(case: Case, tmp_path: Path) -> None:
    forecast = measured(case, "persistence", 0, QUICK, tmp_path).forecast
    (test,) = {fold.test for fold in case.folds}
    assert forecast[:, 0, 0, 1] == pytest.approx(test.power_w[400:, 0], rel=1e-6)


def test_figures_are_those_of_a_backtest_and_means_over_seeds(case: Case, scores: dict[str, Any]) -> None:
    alone = [backtest(case.folds, ["ridge-ar", "gru"], seed, settings=QUICK) for seed in (0, 1)]
    assert scores["best_naive_mae_w"] == alone[0]["best_naive_mae_w"]
    for target in TARGETS:
        ridge, ridge_alone = scores["results"]["ridge-ar"][target], alone[0]["results"]["ridge-ar"][target]
        assert {name: ridge[name] for name in ridge_alone if name != "intervals"} == {
            name: value for name, value in ridge_alone.items() if name != "intervals"
        }
        both = [one["results"]["gru"][target] for one in alone]
        gru = scores["results"]["gru"][target]
        assert gru["mae_w"] == pytest.approx((both[0]["mae_w"] + both[1]["mae_w"]) / 2)
        assert gru["skill_by_seed"] == pytest.approx([one["skill"] for one in both])
        assert gru["skill_by_seed"][0] != gru["skill_by_seed"][1]
        assert gru["skill"] == pytest.approx(np.mean(gru["skill_by_seed"]))
        assert scores["hindsight"][target] == pytest.approx(
            1 - hindsight_mae_w(case.folds)[TARGETS.index(target)] / scores["best_naive_mae_w"][target]
        )


def test_skill_on_what_was_fitted_is_that_of_the_fitted_part(case: Case, scores: dict[str, Any]) -> None:
    errors = {}
    for name in NAIVE:
        sums, count = np.zeros(4), 0.0
        for fold in case.folds:
            model = make_model(name)
            model.fit(fold.train, np.random.default_rng(0))
            (train,) = fold.train
            own = model.backtest(train.part(0, int(np.flatnonzero(parts_of(len(train)) == FIT)[-1]) + 61))
            sums, count = sums + own.absolute.sum(axis=0), count + own.count.sum()
        errors[name] = sums / count
    for k, target in enumerate(TARGETS):
        lowest_w = min(error[k] for error in errors.values())
        wanted = 1 - errors["persistence"][k] / lowest_w
        assert scores["results"]["persistence"][target]["own_skill"] == pytest.approx(wanted)


def test_a_series_without_change_has_no_skill(tmp_path: Path) -> None:
    flat = scores_of(Case("flat", folds_of([], [series(np.full(800, 90.0))], 1), (0,)), QUICK, tmp_path)
    json.dumps(flat, allow_nan=False)
    assert flat["hindsight"]["point_30s"] is None
    assert flat["results"]["ewma"]["mean_60s"]["own_skill"] is None


# What is measured


def test_cases_keep_the_future_and_covariates_out() -> None:
    covariates = {"temperature_c": np.full((800, 1), 40.0)}
    serving = {name: series(wave(800, i), name, covariates=covariates) for i, name in enumerate(("w1", "w2"))}
    sweeps = {"short": series(wave(700, 3), "short"), "long": series(wave(2400, 4), "long")}
    cases = {case.title: case for case in cases_of(serving, sweeps, (5, 6, 7))}
    assert list(cases) == [
        "w1", "w2", "w1 → w2", "w2 → w1", "short", "long",
    ]  # fmt: skip
    for name in ("w1", "w2", "short", "long"):
        assert len(cases[name].folds) == (2 if name == "long" else 4)
        for fold in cases[name].folds:
            assert [len(train) for train in fold.train] == [fold.first_s]
            assert {fold.test.source, fold.train[0].source} == {name}
    across = cases["w1 → w2"].folds[0]
    assert [t.source for t in across.train] == ["w1"] and across.test is serving["w2"]
    assert "temperature_c" in across.train[0].covariates
    assert cases["w1"].seeds == (5, 6, 7) and cases["long"].seeds == (5,)


@pytest.mark.slow
def test_the_whole_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "SHOWN", ("w1", "mixtral"))
    for i, path in enumerate((*SERVING.values(), *SWEEPS.values())):
        file = tmp_path / "data" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        power = wave(760, i)
        rows = ["power_w,temp_c", *(f"{w:.2f},40" for w in np.repeat(power, 4))]
        if path in SWEEPS.values():
            rows = ["t_s,gpu0_w", *(f"{t},{w:.2f}" for t, w in enumerate(power))]
        file.write_text("\n".join(rows) + "\n")
    (tmp_path / "docs").mkdir()
    arguments = (tmp_path / "data", tmp_path / "pieces", tmp_path / "docs", QUICK, (0, 1))
    target = write_forecast_scores(*arguments)
    scores = json.loads(target.read_text())
    page = (tmp_path / "docs" / PAGE).read_text()
    assert real_section(scores).strip() in page
    pictures = [(tmp_path / "docs" / name).read_bytes() for name in (SKILLS, FORECASTS)]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert scores["series"]["w2"]["memory"]["point_30s"] == pytest.approx(np.cos(2 * np.pi * 30 / 97), abs=0.1)
    text = target.read_text()
    assert write_forecast_scores(*arguments).read_text() == text, "all is drawn from seeds"
    assert pictures == [(tmp_path / "docs" / name).read_bytes() for name in (SKILLS, FORECASTS)]


# Files, page and pictures


def test_scores_are_kept_in_few_lines() -> None:
    nested = {"a": {"b": {"c": {"d": {"e": [1.0, None]}}}}, "ü": [{"x": 1}]}
    text = lines_of(nested)
    assert json.loads(text) == nested
    assert '"d": {"e": [1.0, null]}' in text.splitlines()
    assert rounded({"a": [1.23456789, 12, None, "x"], "b": {"c": -0.000123456789}}) == {
        "a": [1.2346, 12, None, "x"],
        "b": {"c": -0.00012346},
    }


def made(**skills: tuple[float, float, float]) -> dict[str, Any]:
    """A case in which all models have no skill but the given ones, with their intervals, for every target."""
    rows = {}
    for model in (*NAIVE, *LEARNED):
        value, low, high = skills.get(model, (-0.5, -0.9, 0.1))
        row = {
            "skill": value,
            "mae_w": 10 * (1 - value),
            "coverage_80": 0.8,
            "own_skill": 0.3,
            "pinball_w": 3 * (1 - value),
        }
        bounds = {"skill": [low, high], "pinball_skill": [low + 0.1, high + 0.1]}
        rows[model] = {t: {**row, "intervals": bounds} for t in TARGETS}
    best = dict.fromkeys(TARGETS, "ewma")
    return {
        "results": rows, "best_naive": best, "best_naive_mae_w": dict.fromkeys(TARGETS, 10.0), "forecasts": 1234,
        "seeds": [0, 1], "hindsight": dict.fromkeys(TARGETS, 0.07),
    }  # fmt: skip


def test_the_verdict_counts_what_intervals_allow() -> None:
    cases = {
        "won": made(gru=(0.12, 0.02, 0.2)),
        "just": made(lstm=(0.05, 0.01, 0.09)),
        "open": made(s4d=(0.3, -0.1, 0.5)),
        "lost": made(**dict.fromkeys(LEARNED, (-0.2, -0.3, -0.1))),
    }
    assert best_learned(cases["just"]["results"], "point_30s") == "lstm"
    (said,) = verdict(cases)
    assert "Of 16 figures" in said and "one in 8 and worse in 4" in said
    assert f"reached on `won` ({', '.join(TARGETS)})." in said
    assert "In 16 of 16 even the line in" in said
    assert "with the lowest in 8 and worse in 0." in said
    cases["won"]["hindsight"]["mean_30s"] = 0.2
    cases["just"]["hindsight"]["mean_30s"] = None
    (said,) = verdict({name: cases[name] for name in ("just", "won", "lost")})
    assert "In 10 of 11 even" in said
    assert "reached nowhere" in verdict({"lost": cases["lost"]})[0]


def test_learned_by_heart_is_told_from_not_learned() -> None:
    cases = {"one": made(gru=(0.12, 0.02, 0.2)), "two": made()}
    for target in TARGETS[:3]:
        cases["two"]["results"]["s4d"][target]["own_skill"] = -0.1
    (said, _) = _fits(cases)
    assert said.startswith("Of 40 figures of learned models 37 are above nought on their own part, and 33 of these no")


def test_the_section_says_what_was_found(scores: dict[str, Any], case: Case) -> None:
    described = {"seconds": 800, "channels": 2, "mean_w": 200.4, "deviation_w": 30.0}
    described |= {name: memory(case.folds[0].test) for name in ("memory", "memory_of_second_half")}
    text = real_section({"series": {"one": described}, "cases": {"one": rounded(scores)}})
    lines = text.splitlines()
    assert any(line.startswith("| `one` | 800 × 2 | 200 ± 30 | -0.3") for line in lines)
    model = best_learned(scores["results"], "mean_60s")
    row = scores["results"][model]["mean_60s"]
    summary = next(line for line in lines if line.startswith("| one |") and f"{model} " in line)
    assert f"over {scores['best_naive']['mean_60s']} (" in summary
    signed = f"{row['skill']:+.0%}".replace("%", " %").replace("-", "−")
    assert f"{model} {signed}" in summary
    gru = scores["results"]["gru"]["point_30s"]["mae_w"]
    assert any(line.startswith(f"| `one` | {gru:.1f} W") or line.startswith(f"| `one` | {gru:.2f} W") for line in lines)
    assert "| the paper's own cluster | 7.97 W | 9.7 W |" in text
    counts = [len(re.findall(r"(?<!\\)\|", line)) for line in lines if line.startswith("|")]
    assert set(counts) <= {5, 6, 8}, "every row of a table has all its cells"
    for model in (*NAIVE, *LEARNED):
        assert sum(line.startswith(f"| {model} |") for line in lines) == 2


def test_pictures_show_the_figures(scores: dict[str, Any], case: Case, pieces: Path, tmp_path: Path) -> None:
    axes = Figure().subplots()
    results = made(gru=(0.12, 0.02, 0.2), s4d=(-3.0, -4.0, -2.0))["results"]
    _bars(axes, results)
    heights = np.array([bar.get_height() for bar in axes.patches]).reshape(len(TARGETS), len(MODELS))
    assert heights[:, MODELS.index("gru")] == pytest.approx([0.12] * 4)
    assert heights[:, MODELS.index("s4d")] == pytest.approx([LOWEST] * 4)
    files = [tmp_path / name for name in ("a.png", "b.png")]
    for file in files:
        plot_skills({"one": scores, "two": scores}, file)
    assert files[0].read_bytes() == files[1].read_bytes()
    asked = []

    def forecast(model: str) -> Any:
        asked.append(model)
        return measured(case, model, 0, QUICK, pieces).forecast

    for file in files:
        plot_forecasts([(case, forecast)], {"one": scores}, file)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert set(asked) == {scores["best_naive"]["point_30s"], best_learned(scores["results"], "point_30s")}


def test_the_published_scores_are_of_the_published_cases() -> None:
    scores = json.loads((DOCS / "forecasting" / "real.json").read_text(encoding="utf-8"))
    assert scores["series"].keys() == SERVING.keys() | SWEEPS.keys()
    for case in scores["cases"].values():
        assert set(case["results"]) == {*NAIVE, *LEARNED}
        for target in TARGETS:
            naive = {model: case["results"][model][target]["mae_w"] for model in NAIVE}
            assert min(naive, key=naive.__getitem__) == case["best_naive"][target]
            assert case["results"][case["best_naive"][target]][target]["skill"] == 0
