"""Suites run, shown and written as a page, and the frame's own suites as far as they can be without playing."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from llmcluster import InputError
from llmcluster.experiments import write_claims
from llmcluster.experiments.statistics import Interval
from llmcluster.experiments.suites.plots import draw, draw_bars
from llmcluster.experiments.suites.registry import SUITES
from llmcluster.experiments.suites.show import entry, measured, suite_names
from llmcluster.experiments.suites.suite import Plot
from llmcluster.tests import toy_suite

NAN = float("nan")


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SUITES, "toy", "llmcluster.tests.toy_suite:run")


def other_than_toy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(SUITES):
        if name != "toy":
            monkeypatch.delitem(SUITES, name)


@pytest.mark.usefixtures("toy")
def test_a_suite_is_told_and_written(call: Callable[..., Any]) -> None:
    code, out, _ = call("evaluate", "--suite", "toy", "--episodes", 7, "--seed", 3)
    assert code == 0
    assert "12.3 (10 … 15) %" in out and "not reproduced" in out and "which wings" in out
    code, out, err = call("evaluate", "--suite", "toy", "--episodes", 7, "--seed", 3, "--json", "-")
    result = json.loads(out)["suites"]["toy"]
    assert [claim["verdict"] for claim in result["claims"]] == ["reproduced", "partly", "not reproduced"]
    assert result["claims"][0]["measured"] == {"mean": 12.345, "low": 10.0, "high": 15.0}
    assert result["claims"][1]["measured"] == {"mean": 1234.5, "low": None, "high": None}
    assert [line["speed"] for line in result["tables"]["Speed"]] == [7.0, 3.0, None]
    assert "toy" in err


@pytest.mark.usefixtures("toy")
def test_all_runs_every_suite(call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    other_than_toy(monkeypatch)
    code, out, _ = call("evaluate", "--suite", "all", "--json", "-")
    assert code == 0
    assert list(json.loads(out)["suites"]) == ["toy"]
    assert json.loads(out)["suites"]["toy"]["tables"]["Speed"][0]["speed"] == 10, "ten episodes by default"


@pytest.mark.usefixtures("toy")
def test_a_quick_suite_has_fewer_episodes(call: Callable[..., Any]) -> None:
    code, out, _ = call("evaluate", "--suite", "toy", "--quick", "--json", "-")
    assert code == 0
    assert json.loads(out)["suites"]["toy"]["tables"]["Speed"][0]["speed"] == 3


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize(
    "option",
    [("--agents", "random"), ("--scenario", "small"), ("--workload", "x.csv"), ("--reference", "random"), ("--safe",)],
)
def test_a_suite_refuses_what_it_would_not_heed(call: Callable[..., Any], option: tuple[str, ...]) -> None:
    code, out, err = call("evaluate", "--suite", "toy", *option, "--json", "-")
    assert (code, out) == (2, "")
    assert f"--suite toy: has scenarios and agents of its own. Leave out {option[0]}" in err


def test_help_names_the_suites(call: Callable[..., Any]) -> None:
    code, out, _ = call("evaluate", "--help")
    assert code == 0 and all(name in out for name in SUITES)


def test_an_unknown_suite_is_refused(call: Callable[..., Any]) -> None:
    code, _, err = call("evaluate", "--suite", "nonsense")
    assert code == 2
    assert "suite: 'nonsense' is unknown" in err and "all" in err


@pytest.mark.parametrize("name", SUITES)
def test_listed_suites_can_be_loaded(name: str) -> None:
    assert callable(entry(name))
    assert suite_names(name) == (name,)


@pytest.mark.usefixtures("toy")
def test_the_page_tells_claims_tables_and_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other_than_toy(monkeypatch)
    write_claims.write_claims(tmp_path / "runs", tmp_path / "docs")
    page = (tmp_path / "docs" / "claims.md").read_text()
    assert "Of 3 claims: 1 reproduced, 1 partly, 1 not reproduced." in page
    assert "| It is cheaper | 2 times | 1,234 J | partly | one seed |" in page
    assert "no \\| wings" in page, "a bar would split the cell"
    assert "| a | 1 | 10 |" in page and "### Nothing" not in page
    for number in (0, 1):
        assert f"(figures/claims-toy-{number}.png)" in page
        picture = (tmp_path / "docs" / "figures" / f"claims-toy-{number}.png").read_bytes()
        assert picture.startswith(b"\x89PNG") and len(picture) > 2000
    assert json.loads((tmp_path / "runs" / "toy.json").read_text())["suite"] == "toy"


def test_pictures_repeat_and_differ(tmp_path: Path) -> None:
    from rich.progress import Progress

    with Progress(disable=True) as progress:
        one, other = (toy_suite.run(episodes, 0, progress) for episodes in (5, 9))
    for name, result in (("a", one), ("b", one), ("c", other)):
        draw(result, result.plots[0], tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() != (tmp_path / "c").read_bytes()


def test_bars_stand_over_their_words_though_some_are_missing() -> None:
    lines = [("low", "a", 1.0), ("low", "b", 2.0), ("high", "b", 3.0), ("high", "a", 4.0), ("highest", "b", 5.0)]
    rows = [{"load": load, "agent": agent, "speed": speed} for load, agent, speed in lines]
    axes = Figure().subplots()
    draw_bars(axes, Plot("", "", "load", ("speed",), by="agent", kind="bars"), rows)
    words = [label.get_text() for label in axes.get_xticklabels()]
    bars = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    standing = {(words[round(bar.get_x() + bar.get_width() / 2)], bar.get_height()) for bar in bars}
    assert words == ["low", "high", "highest"]
    assert standing == {(load, speed) for load, _, speed in lines}
    edges = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in bars)
    assert all(end <= begin + 1e-9 for (_, end), (begin, _) in pairwise(edges)), "no bar hides another"


@pytest.mark.parametrize("plot", [Plot("x", "Slowness", "load", ("speed",)), Plot("x", "Speed", "load", ("weight",))])
def test_pictures_of_what_there_is_not_are_refused(tmp_path: Path, plot: Plot) -> None:
    from rich.progress import Progress

    with Progress(disable=True) as progress, pytest.raises(InputError, match="there is no table"):
        draw(toy_suite.run(1, 0, progress), plot, tmp_path / "none")


def test_figures_are_told_with_their_bounds() -> None:
    assert measured(Interval(0.12345, 0.1, 0.2), "J") == "0.123 (0.1 … 0.2) J"
    assert measured(Interval(1.0, NAN, NAN), "") == "1"
    assert measured(Interval(NAN, NAN, NAN), "J") == "–"
