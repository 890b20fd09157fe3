"""The table of models by targets by series."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmcluster import InputError
from llmcluster.experiments.forecast_backtest import backtest, folds_of
from llmcluster.experiments.forecast_compare import cases_of, compare, markdown, tables
from llmcluster.forecaster import TARGETS
from llmcluster.forecaster.models.learned import TrainSettings
from llmcluster.forecaster.telemetry import Telemetry

SECONDS = 900


def series(source: str, level_w: float, seed: int) -> Telemetry:
    """A slow wave with noise about a level."""
    noise = np.random.default_rng(seed).normal(0, 5, SECONDS)
    power = level_w + 40 * np.sin(np.arange(SECONDS) / 50 + seed) + noise
    return Telemetry(power[:, None], ("gpu0",), source=source)


def written(path: str, telemetry: Telemetry) -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    rows = [f"{i},{value:.3f}" for i, value in enumerate(telemetry.power_w[:, 0])]
    Path(path).write_text("\n".join(["t_s,power_w", *rows, f"{len(rows)},0"]) + "\n")
    return Path(path)


def test_within_each_and_across_both_ways() -> None:
    a, b = series("x/a.csv", 200, 1), series("y/b.csv", 300, 2)
    cases = cases_of([], [a, b], 2, across=True)
    assert [title for title, _ in cases] == ["x/a.csv", "y/b.csv", "x/a.csv → y/b.csv", "y/b.csv → x/a.csv"]
    within, there, back = cases[0][1], cases[2][1], cases[3][1]
    assert [fold.test.source for fold in within] == ["x/a.csv"] * 2
    assert all(len(fold.train[0]) == fold.first_s for fold in within), "nothing of the future"
    assert there[0].train == (a,) and there[0].test is b and back[0].train == (b,) and back[0].test is a
    trained = cases_of([a], [b], 2, across=False)
    assert [title for title, _ in trained] == ["y/b.csv"] and trained[0][1][0].train == (a,)


def test_names_are_long_where_short_ones_would_clash() -> None:
    a, b = series("1/x/a.csv", 200, 1), series("2/x/a.csv", 300, 2)
    assert [title for title, _ in cases_of([], [a, b], 2, across=False)] == ["1/x/a.csv", "2/x/a.csv"]


@pytest.mark.parametrize("given", ["one", "twice", "train"])
def test_what_cannot_be_compared_is_refused(given: str) -> None:
    a, b = series("a.csv", 200, 1), series("b.csv", 300, 2)
    train, tests = {"one": ([], [a]), "twice": ([], [a, a]), "train": ([a], [b, b])}[given]
    with pytest.raises(InputError, match="--across" if given != "twice" else "each file once"):
        cases_of(train, tests, 2, across=True)


def test_the_table_says_what_backtests_find() -> None:
    tests = [series("a.csv", 200, 1), series("b.csv", 300, 2)]
    result = compare(cases_of([], tests, 2, across=False), ["ewma", "ridge-ar"], 0, lambda: None)
    alone = backtest(folds_of([], tests[:1], 2), ["ewma", "ridge-ar"], 0)
    assert result["series"]["a.csv"] == alone
    made = tables(result)
    assert [target for target, _, _ in made] == list(TARGETS)
    for target, headings, rows in made:
        assert headings == ["model", "a.csv", "b.csv"] and [row[0] for row in rows] == [
            "best naive",
            "ewma",
            "ridge-ar",
        ]
        best = alone["best_naive"][target]
        assert rows[0][1] == f"{best} ({alone['best_naive_mae_w'][target]:.2f} W)"
        row = alone["results"]["ridge-ar"][target]
        assert rows[2][1].startswith(f"{row['skill']:+.1%} [") and f"({row['mae_w']:.2f} W)" in rows[2][1]
        assert row["skill"] == pytest.approx(1 - row["mae_w"] / alone["best_naive_mae_w"][target])
    page = markdown(result)
    assert page.count("| ridge-ar |") == 4 and "a.csv: autocorrelation" in page


def test_networks_are_trained_as_is_said() -> None:
    case = cases_of([series("a.csv", 200, 1)], [series("b.csv", 200, 2)], 1, across=False)
    errors = []
    for epochs in (1, 12):
        settings = TrainSettings(hidden=4, epochs=epochs)
        found = compare(case, ["gru"], 0, lambda: None, settings)["series"]["b.csv"]
        errors.append(found["results"]["gru"]["point_30s"]["mae_w"])
    assert errors[0] != errors[1]


def test_the_verb(call: Callable[..., Any]) -> None:
    files = [written(f"{name}.csv", series(name, level, i)) for i, (name, level) in enumerate((("a", 200), ("b", 300)))]
    code, out, err = call(
        "forecast", "compare", "--test", *files, "--across", "--models", "persistence,ewma", "--folds", 1,
        "--out", "table.md", "--json", "-",
    )  # fmt: skip
    assert code == 0, err
    result = json.loads(out)
    assert list(result["series"]) == ["a.csv", "b.csv", "a.csv → b.csv", "b.csv → a.csv"]
    assert Path("table.md").read_text() == markdown(result)
    assert all(target in err for target in TARGETS) and "best naive" in err


def test_bad_arguments_are_refused(call: Callable[..., Any]) -> None:
    file = written("a.csv", series("a", 200, 1))
    for given, fault in (
        (("--across",), "Give two or more"),
        (("--out", "gone/table.md"), "its folder does not exist"),
        (("--models", "tarot"), "--models tarot: is unknown"),
        (("--hidden", 5), "is no multiple of 4"),
        (("--device", "tpu"), "--device tpu"),
        (("--test", "gone.csv", "--models", "tarot"), "--models tarot: is unknown"),
        (("--test", "gone.csv"), "gone.csv: no such file. Check the path"),
    ):
        code, _, err = call("forecast", "compare", "--test", file, *given)
        assert code == 2 and fault in err
