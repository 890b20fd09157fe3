"""The suite of offline energy-optimal serving: its front, its claims, and what it does without data."""

from pathlib import Path

import numpy as np
import pytest
from rich.progress import Progress

from llmcluster import LLMClusterEnv
from llmcluster.agents.base import Task
from llmcluster.agents.offline_optimal.assignment import Shares
from llmcluster.agents.registry import make_agent
from llmcluster.experiments.results import Evaluation
from llmcluster.experiments.rollout import play
from llmcluster.experiments.suites import offline_optimal as suite
from llmcluster.experiments.suites.offline_claims import front_claims, online_claims, optimiser_claims, r2_claim
from llmcluster.experiments.suites.offline_front import (
    Batch,
    Outcome,
    offline,
    one_hot,
    online,
    plain,
    saving,
    zeta_for,
)
from llmcluster.experiments.suites.offline_models import (
    AZURE,
    CASE_STUDY,
    GRID,
    case_models,
    data_folder,
    queries,
    r2_rows,
    read_grid,
    simulated_r2_rows,
)
from llmcluster.experiments.suites.plots import draw
from llmcluster.experiments.suites.registry import SUITES
from llmcluster.experiments.suites.suite import SuiteResult

SCORES, GAMMA = (np.array([getattr(m, name) for m in CASE_STUDY]) for name in ("accuracy", "gamma"))
COUNT = 400
ANY = Shares.none(3)


@pytest.fixture(scope="module")
def batches() -> tuple[Batch, Batch]:
    """Past and present queries of the traffic model, on the shipped fits."""
    prompt, output, source = queries(None, COUNT, COUNT, np.random.default_rng(0))
    assert "fitted" in source
    models = case_models([])
    return tuple(Batch.of(models, SCORES, prompt[part], output[part]) for part in (slice(COUNT), slice(COUNT, None)))


def test_the_front_lies_between_its_ends(batches: tuple[Batch, Batch]) -> None:
    _, batch = batches
    outcomes = [Outcome.of(batch, offline(batch, zeta, ANY).served, "offline", zeta) for zeta in (0.0, 0.3, 0.6, 1.0)]
    energy, accuracy = ([getattr(one, name) for one in outcomes] for name in ("energy_kwh", "accuracy"))
    assert (np.diff(energy) <= 0).all()
    assert (np.diff(accuracy) <= 0).all()
    assert accuracy[0] == pytest.approx(SCORES.max())
    assert energy[-1] == pytest.approx(batch.energy_j.min(axis=1).sum() / 3.6e6)
    assert all(sum(one.shares) == pytest.approx(1) for one in outcomes)


def test_no_plain_policy_is_above_the_front(batches: tuple[Batch, Batch]) -> None:
    _, batch = batches
    rivals = plain(batch, ["7b", "13b", "70b"], GAMMA, np.random.default_rng(0))
    assert [one.policy for one in rivals[:3]] == ["round robin", "random", "random, shares γ"]
    assert rivals[2].shares == pytest.approx(tuple(GAMMA), abs=0.01)
    for rival in rivals:
        _, equal = zeta_for(batch, rival.accuracy - 1e-9, ANY)
        mine = Outcome.of(batch, equal.served, "offline")
        assert mine.accuracy >= rival.accuracy - 1e-6
        assert mine.energy_kwh <= rival.energy_kwh * 1.01
    alone = rivals[-1]
    assert alone.accuracy == pytest.approx(SCORES[2])
    assert alone.shares == (0, 0, 1)


def test_the_online_rule_keeps_shares_it_knows_only_from_the_past(batches: tuple[Batch, Batch]) -> None:
    past, batch = batches
    strict = Shares.of(GAMMA, COUNT, 1.0, 1.0)
    served = online(past, batch, case_models([]), SCORES, 0.6, strict)
    assert (served.sum(axis=1) == 1).all()
    assert served.mean(axis=0) == pytest.approx(GAMMA, abs=0.05)
    best = offline(batch, 0.6, strict).objective
    random = plain(batch, ["7b", "13b", "70b"], GAMMA, np.random.default_rng(1))[2]
    mine = Outcome.of(batch, served, "online")
    assert mine.energy_kwh < random.energy_kwh
    assert (batch.cost(0.6) * served).sum() >= best


def test_savings_are_paired(batches: tuple[Batch, Batch]) -> None:
    _, batch = batches
    small, large = (one_hot(np.full(COUNT, k), 3) for k in (0, 2))
    values = saving(batch, small, large, np.random.default_rng(0), resamples=50)
    assert values.shape == (50,)
    assert values.mean() == pytest.approx(1 - batch.energy_j[:, 0].sum() / batch.energy_j[:, 2].sum(), abs=0.01)
    assert (saving(batch, large, large, np.random.default_rng(0), resamples=5) == 0).all()


def test_claims_say_what_does_not_hold(batches: tuple[Batch, Batch]) -> None:
    _, batch = batches
    rng = np.random.default_rng(0)
    loose, strict = Shares.of(GAMMA, COUNT, 0.25, np.inf), Shares.of(GAMMA, COUNT, 1.0, 1.0)
    rivals = plain(batch, ["7b", "13b", "70b"], GAMMA, rng)
    for claim in front_claims(batch, GAMMA, loose, strict, rivals, rng):
        assert claim.verdict == "reproduced"
        assert 0 < claim.measured.low <= claim.measured.mean <= claim.measured.high < 1
    paper, ours = (r2_claim([], r2_rows([]), "energy", form, rng) for form in ("paper", "with out²"))
    assert paper.verdict == "partly"
    assert "falcon-40b" in paper.why
    assert ours.verdict == "reproduced"
    assert ours.measured.mean > 0.99
    solved = offline(batch, 0.5, strict)
    gap, seconds = optimiser_claims([solved], solved)
    assert gap.verdict == seconds.verdict == "reproduced"
    assert gap.measured.mean <= 1e-3


def test_claims_in_the_simulator_are_paired_and_ask_for_the_slo() -> None:
    env = LLMClusterEnv("small")
    names = ("greedy-energy", "least-outstanding")
    episodes = [play(env, make_agent(name, Task.of(env)), name, seed) for name in names for seed in range(3)]
    found = Evaluation("small", "own", names, frozenset(), tuple(episodes), 0.0)
    (claim,) = online_claims(found, names[0], names[1:], np.random.default_rng(0))
    mine, theirs = (
        np.array([[e.summary.energy_per_output_token_j, e.summary.slo_attainment] for e in found.of(name)])
        for name in names
    )
    assert claim.measured.mean == pytest.approx(np.mean(1 - mine[:, 0] / theirs[:, 0]))
    assert claim.measured.low > 0
    worse = (mine[:, 1] < theirs[:, 1]).all()
    assert claim.verdict == ("partly" if worse else "reproduced")
    (reverse,) = online_claims(found, names[1], names[:1], np.random.default_rng(0))
    assert reverse.verdict == "not reproduced"
    (same,) = online_claims(found, names[1], names[1:], np.random.default_rng(0))
    assert same.measured.mean == 0


def test_simulated_models_are_of_the_same_seven() -> None:
    table = simulated_r2_rows()
    assert len(table) == len(r2_rows([])) == 7
    for row in table:
        assert all(value > 0.99 for key, value in row.items() if key != "model")


def test_the_plot_is_of_the_front(batches: tuple[Batch, Batch], tmp_path: Path) -> None:
    _, batch = batches
    outcomes = [Outcome.of(batch, offline(batch, zeta, ANY).served, "offline", zeta) for zeta in (0.0, 1.0)]
    outcomes += plain(batch, ["7b", "13b", "70b"], GAMMA, np.random.default_rng(0))
    front = tuple(suite.front_row(one, ["7b", "13b", "70b"]) for one in outcomes)
    result = SuiteResult("offline-optimal", suite.TITLE, (), {suite.FRONT: front}, plots=(suite.FRONT_PLOT,))
    draw(result, suite.FRONT_PLOT, tmp_path / "front.png")
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")


def test_the_folder_of_data_is_given_or_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LLMCLUSTER_DATA", raising=False)
    assert data_folder(None) is None
    assert read_grid(None) == read_grid(tmp_path) == []
    monkeypatch.setenv("LLMCLUSTER_DATA", str(tmp_path))
    assert data_folder(None) == tmp_path
    assert data_folder(Path("other")) == Path("other")


@pytest.mark.data
def test_measured_models_are_those_of_the_published_data(azure_conv: Path) -> None:
    data = azure_conv.parents[1]
    if not (data / GRID).is_file():
        pytest.skip("the grid of lengths is not under LLMCLUSTER_DATA")
    rows = read_grid(data)
    table = {row["model"]: row for row in r2_rows(rows)}
    assert len(table) == 7
    assert table["falcon-40b on 3"]["energy, paper, uncentred"] == pytest.approx(0.934, abs=1e-3)
    assert all(row["energy, with out², uncentred"] >= 0.995 for row in table.values())
    for measured, shipped in zip(case_models(rows), case_models([]), strict=True):
        assert measured.energy_j(500, 500) == pytest.approx(shipped.energy_j(500, 500), rel=0.1)
    prompt, _, source = queries(data, 1000, 500, np.random.default_rng(0))
    assert len(prompt) == 1500
    assert source == "Azure 2023 conversation trace"
    assert (data / AZURE).is_file()


@pytest.mark.slow
def test_the_suite_runs_without_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLMCLUSTER_DATA", raising=False)
    assert SUITES["offline-optimal"] == "offline_optimal:run"
    with Progress(disable=True) as progress:
        result = suite.run(2, 0, progress)
    assert result.suite == "offline-optimal"
    assert {claim.verdict for claim in result.claims} <= {"reproduced", "partly", "not reproduced"}
    assert any("no data" in text for text in result.assumed)
    front = next(rows for title, rows in result.tables.items() if title.startswith("Energy"))
    assert {row["policy"] for row in front} >= {"offline", "online, predicted lengths", "round robin", "random"}
    assert all(rows for rows in result.tables.values())
