"""Table, JSON and report of a small real evaluation."""

import io
import json
import re
from collections import defaultdict
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from llmcluster.envs.cluster_env import LLMClusterEnv
from llmcluster.experiments.report import render, write_report
from llmcluster.experiments.results import SERIES, Episode, Evaluation
from llmcluster.experiments.table import COLUMNS, DIFFERENCE, FIGURES, as_json, print_table, rows, told
from llmcluster.simulator.errors import InputError

SCENARIO = {
    "name": "tiny",
    "horizon_s": 60,
    "cluster": {"rows": [{"racks": [{"servers": [{"gpu": "A100-80GB", "gpus": 2, "model": "Llama-3.1-8B"}]}]}]},
    "workload": {
        "requests": {"kind": "azure-2023-conv"},
        "arrivals": {"kind": "azure-2023-conv", "rate_per_s": 3.0},
    },
    "budget": {"levels": [1.0, 0.4], "mean_hold_s": 20.0, "ramp_s": 10.0},
}
AGENTS = {"full": 4, "half": 2, "<oracle> & co": 3}
ORACLE = "<oracle> & co"
SEEDS = (11, 5, 8)


def play(env: LLMClusterEnv, agent: str, seed: int) -> Episode:
    """Full routing and a constant cap."""
    env.reset(seed=seed)
    action = np.zeros(env.action_space.shape, np.int64)
    action[:2], action[2:4] = 4, AGENTS[agent]
    terms: dict[str, float] = defaultdict(float)
    series: dict[str, list[float]] = {name: [] for name in SERIES}
    reward, done = 0.0, False
    while not done:
        _, of_tick, _, done, info = env.step(action)
        reward += of_tick
        for name, value in info["reward_terms"].items():
            terms[name] += value
        now = env.telemetry
        serving = np.count_nonzero(now.status == 2)
        power_w = now.power_w.sum(axis=1).mean()
        values = (info["time_s"], power_w, now.budget_w[0], now.arrivals_per_s, serving, now.slo_attainment)
        for name, value in zip(SERIES, values, strict=True):
            series[name].append(float(value))
    assert env.plant is not None
    arrays = {name: np.array(values) for name, values in series.items()}
    return Episode(agent, seed, reward, terms, env.plant.summary(), arrays)


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    env = LLMClusterEnv(SCENARIO)
    episodes = tuple(play(env, agent, seed) for agent in AGENTS for seed in SEEDS)
    return Evaluation("tiny", "azure-2023-conv", tuple(AGENTS), frozenset({ORACLE}), episodes, 1.5)


def only(evaluation: Evaluation, seeds: int) -> Evaluation:
    kept = tuple(e for e in evaluation.episodes if e.seed in SEEDS[:seeds])
    return replace(evaluation, episodes=kept)


def lacking_tokens(evaluation: Evaluation) -> Evaluation:
    """The last agent finished nothing in its last episode."""
    *others, last = evaluation.episodes
    summary = replace(last.summary, energy_per_output_token_j=float("nan"))
    return replace(evaluation, episodes=(*others, replace(last, summary=summary)))


def test_rows(evaluation: Evaluation) -> None:
    table = rows(evaluation, seed=1, reference="half")
    assert [row.agent for row in table] == list(AGENTS)
    assert [row.clairvoyant for row in table] == [False, False, True]
    base = np.array([e.reward for e in evaluation.of("half")])
    for row in table:
        rewards = np.array([e.reward for e in evaluation.of(row.agent)])
        assert row.intervals["reward"].mean == pytest.approx(rewards.mean())
        assert row.values[DIFFERENCE] == pytest.approx(rewards - base)
        assert row.intervals[DIFFERENCE].mean == pytest.approx((rewards - base).mean())
        for column in COLUMNS:
            interval = row.intervals[column.key]
            assert interval.low <= interval.mean <= interval.high
    assert table[1].intervals[DIFFERENCE] == (0.0, 0.0, 0.0)


def test_every_column_has_a_figure() -> None:
    assert {c.key for c in COLUMNS} == {*FIGURES, DIFFERENCE}


def test_the_best_is_never_clairvoyant(evaluation: Evaluation) -> None:
    raised = tuple(replace(e, reward=e.reward + 1e6 * (e.agent == ORACLE)) for e in evaluation.episodes)
    best = [row.agent for row in rows(replace(evaluation, episodes=raised)) if row.best]
    means = {a: np.mean([e.reward for e in evaluation.of(a)]) for a in ("full", "half")}
    assert best == [max(means, key=lambda a: means[a])]


def test_intervals_do_not_depend_on_the_company(evaluation: Evaluation) -> None:
    alone = rows(replace(evaluation, agents=("full",)), seed=2)[0]
    assert alone.intervals == rows(evaluation, seed=2)[0].intervals


def test_agents_must_have_played_the_same_seeds(evaluation: Evaluation) -> None:
    with pytest.raises(InputError, match="did not play the seeds"):
        rows(replace(evaluation, episodes=evaluation.episodes[:-1]))
    with pytest.raises(InputError, match="did not play the seeds"):
        rows(replace(evaluation, episodes=()))


def test_unknown_reference_and_nobody(evaluation: Evaluation) -> None:
    with pytest.raises(InputError, match="Use one of full, half"):
        rows(evaluation, reference="best")
    with pytest.raises(InputError, match="no agent"):
        rows(replace(evaluation, agents=()))


@pytest.mark.parametrize("seeds", [1, 3])
def test_json_is_plain(evaluation: Evaluation, seeds: int) -> None:
    result = as_json(lacking_tokens(only(evaluation, seeds)), reference="half")
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["seeds"] == sorted(SEEDS[:seeds])
    assert result["clairvoyant"] == [ORACLE]
    assert list(result["agents"]) == list(AGENTS)
    assert None in result["agents"][ORACLE]["energy_per_output_token"]["per_episode"]
    for metrics in result["agents"].values():
        assert set(metrics) == set(result["units"]) == {c.key for c in COLUMNS}
        for figure in metrics.values():
            assert set(figure) == {"mean", "low", "high", "per_episode"}
            assert len(figure["per_episode"]) == seeds
            assert (figure["low"] is None) == (seeds == 1 or figure["mean"] is None)


@pytest.mark.parametrize("seeds", [1, 3])
def test_printed_table_fits_its_console(evaluation: Evaluation, seeds: int) -> None:
    console = Console(file=io.StringIO(), width=140)
    print_table(only(evaluation, seeds), console, reference="half")
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= 140
    assert f"{ORACLE} †" in text
    assert "against half" in text
    assert "nan" not in text
    assert "…" in text if seeds == 3 else "…" not in text
    for column in COLUMNS[:15]:
        assert column.title in text
    assert "trips" not in text  # nothing did


def test_columns_of_zeros_are_left_out_unless_they_tell_something(evaluation: Evaluation) -> None:
    *others, last = evaluation.episodes
    tripped = replace(evaluation, episodes=(*others, replace(last, summary=replace(last.summary, trips=2))))
    usual, more = ([column.key for column in told(rows(one))] for one in (evaluation, tripped))
    assert usual[-3:] == ["energy_cost", "carbon", "quality"] and more == [*usual, "trips"]


class Page(HTMLParser):
    """What a page loads, its tags that stay open, its headings."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("seeds", [1, 3])
def test_report_is_one_sound_page_that_loads_nothing(evaluation: Evaluation, seeds: int, tmp_path: Path) -> None:
    path = write_report(lacking_tokens(only(evaluation, seeds)), tmp_path / "report.html")
    text = path.read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.loaded == []
    assert page.tags.count("table") == 3
    assert text.count("Plotly.newPlot(") >= 4
    assert len(re.findall(r'id="figure-\d"', text)) == 4
    visible = text.split("<script", 1)[0]
    assert "&lt;oracle&gt; &amp; co †" in visible
    assert "<oracle>" not in visible
    assert ">nan" not in visible


def test_report_is_repeatable(evaluation: Evaluation) -> None:
    assert render(evaluation, seed=4) == render(evaluation, seed=4)


def test_report_replaces_the_old_one_or_leaves_it(evaluation: Evaluation, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(InputError):
        write_report(evaluation, path, reference="nobody")
    assert path.read_text() == "old"
    write_report(evaluation, path)
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
