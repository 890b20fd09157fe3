"""Scenarios times agents: what is played, compared, told and written."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.progress import Progress

from llmcluster import InputError, LLMClusterEnv, Scenario, load_scenario
from llmcluster.agents.base import Task
from llmcluster.agents.registry import AGENTS, CANDIDATES, candidates_of
from llmcluster.experiments.matrix import (
    Effort,
    Outcome,
    every_agent,
    matrix,
    matrix_json,
    reference_among,
    standings,
    write_matrix,
)
from llmcluster.experiments.tune import best_of, thinned, tuning_episodes
from llmcluster.experiments.write_results import ROOT, write_page

Tiny = Callable[..., dict[str, Any]]
NAMES = ("least-outstanding", "clairvoyant", "best-constant", "safe:power-of-two")
EFFORT = Effort(2, 60, 2)


@pytest.fixture(scope="module")
def scenarios(tiny: Tiny) -> list[Scenario]:
    first = load_scenario(tiny(name="first"))
    return [first, load_scenario(tiny(name="second", grid={"price_per_kwh": {"level": 0.1}}, rate_per_s=5.0))]


def played(scenarios: list[Scenario], processes: int) -> list[Outcome]:
    with Progress(disable=True) as progress:
        return matrix(scenarios, NAMES, EFFORT, 3, progress, processes)


@pytest.fixture(scope="module")
def outcomes(scenarios: list[Scenario]) -> list[Outcome]:
    return played(scenarios, 1)


def without_time(outcomes: list[Outcome]) -> dict[str, Any]:
    told = matrix_json(outcomes, EFFORT, 0, "least-outstanding")
    for scenario in told["scenarios"].values():
        assert scenario.pop("wall_s") > 0
    return told


def test_every_scenario_is_played_by_every_agent(outcomes: list[Outcome]) -> None:
    told = without_time(outcomes)
    assert list(told["scenarios"]) == ["first", "second"]
    for scenario in told["scenarios"].values():
        assert list(scenario["agents"]) == list(NAMES)
        assert scenario["clairvoyant"] == ["clairvoyant"]
        assert len(set(scenario["seeds"])) == 2
        assert scenario["agents"]["least-outstanding"]["reward_difference"]["mean"] == 0
        assert list(scenario["notes"]) == ["clairvoyant", "best-constant"]
        paired = scenario["agents"]["clairvoyant"]
        own, base = (scenario["agents"][n]["reward"]["per_episode"] for n in ("clairvoyant", "least-outstanding"))
        assert paired["reward_difference"]["per_episode"] == pytest.approx(np.subtract(own, base))
    assert json.loads(json.dumps(told, allow_nan=False)) == told


def test_cost_and_carbon_are_told(outcomes: list[Outcome]) -> None:
    for scenario in without_time(outcomes)["scenarios"].values():
        for figures in scenario["agents"].values():
            assert figures["energy_cost"]["mean"] > 0 and figures["carbon"]["mean"] > 0


def test_interventions_are_told(outcomes: list[Outcome]) -> None:
    first = without_time(outcomes)["scenarios"]["first"]
    assert list(first["interventions"]) == ["safe:power-of-two"]
    assert all(len(counts) == 2 for counts in first["interventions"]["safe:power-of-two"].values())


def test_processes_change_nothing(scenarios: list[Scenario], outcomes: list[Outcome]) -> None:
    assert without_time(played(scenarios, 2)) == without_time(outcomes)


def test_errors_of_a_process_arrive(scenarios: list[Scenario]) -> None:
    with Progress(disable=True) as progress, pytest.raises(InputError, match="agent 'robin'"):
        matrix(scenarios, ["robin"], EFFORT, 0, progress, 2)


def test_standings_leave_out_who_knows_the_future(outcomes: list[Outcome]) -> None:
    table = standings(outcomes, 0, "least-outstanding")
    assert {agent for agent, _, _ in table} == set(NAMES) - {"clairvoyant"}
    assert sum(best for _, best, _ in table) == 2
    assert [rank for _, _, rank in table] == sorted(rank for _, _, rank in table)
    assert sum(rank for _, _, rank in table) == pytest.approx(1 + 2 + 3)


def test_the_page_has_a_line_for_each_scenario(outcomes: list[Outcome], tmp_path: Path) -> None:
    page = write_matrix(outcomes, tmp_path / "matrix.md", 0, "least-outstanding").read_text()
    assert page.count("| first | ") == page.count("| second | ") == 6
    assert "clairvoyant †" in page and page.count("**") == 2 * 12


def test_quick_means_short_and_hasty() -> None:
    effort = Effort.quick()
    assert effort.shorten(load_scenario("azure-chat")).horizon_s == 600
    assert effort.shorten(load_scenario("small")) == load_scenario("small")
    assert Effort(3).shorten(load_scenario("azure-chat")).horizon_s == 3600
    odd = load_scenario("default").model_copy(update={"tick_s": 7, "horizon_s": 1750})
    assert Effort(1, 600).shorten(odd).horizon_s == 595


def test_thinned_candidates_are_spread_evenly() -> None:
    env = LLMClusterEnv("small")
    found = candidates_of("best-constant", Task.of(env))
    assert found is not None
    few = thinned(found, 6)
    assert len(few) == 6
    assert next(iter(few)) == next(iter(found)) and list(few)[-1] == list(found)[-1]
    assert thinned(found, None) is found and thinned(few, 9) is few
    ticks: list[int] = []
    best_of(env, few, [1], lambda: ticks.append(1), (1,))
    assert len(ticks) == tuning_episodes(6, (1,)) == 6


def test_all_agents_are_those_of_the_registry() -> None:
    assert set(every_agent()) == set(AGENTS) | set(CANDIDATES)
    assert reference_among(every_agent(), None) == "least-outstanding"
    assert reference_among(("a", "b"), None) == "a"
    assert reference_among(("a", "b"), "b") == "b"


def test_the_verb_plays_several_scenarios(call: Callable[..., Any]) -> None:
    arguments = ("--agents", "random,follow-load", "--quick", "--episodes", 1, "--safe", "--out", "o")
    code, out, err = call("evaluate", "--scenario", "small,default", *arguments, "--json", "-")
    assert code == 0
    told = json.loads(out)
    assert list(told["scenarios"]) == ["small", "default"]
    assert list(told["scenarios"]["small"]["agents"]) == ["safe:random", "safe:follow-load"]
    assert told["scenarios"]["default"]["interventions"]["safe:random"]
    assert told["episodes"] == 1 and told["horizon_s"] == 600
    assert "best of" in err and Path("o", "matrix.md").exists()


def test_a_trace_goes_with_one_scenario(call: Callable[..., Any]) -> None:
    code, _, err = call("evaluate", "--scenario", "all", "--workload", "trace.csv")
    assert code == 2
    assert "--workload: goes with one scenario" in err


def test_the_page_of_results_leads_to_all_of_them(outcomes: list[Outcome], tmp_path: Path) -> None:
    page = write_page(["What was learned.", ""], outcomes, tmp_path).read_text()
    assert "What was learned." in page and "in each of 2 scenarios" in page
    for agent, best, rank in standings(outcomes, 0, "least-outstanding"):
        assert f"| {agent} | {best} | {rank:.1f} |" in page
    assert "| clairvoyant |" not in page, "it knows the future"
    assert "| second |" in (tmp_path / "results-scenarios.md").read_text()
    for text in (page, (ROOT / "docs" / "results.md").read_text()):
        links = {target for target in re.findall(r"]\(([^)#]+)\)", text)}
        assert links == {"claims.md", "results-scenarios.md"}
        assert all((ROOT / "docs" / target).is_file() for target in links)


@pytest.mark.slow
def test_everything_at_once(call: Callable[..., Any]) -> None:
    code, out, _ = call("evaluate", "--scenario", "all", "--agents", "all", "--quick", "--json", "-")
    assert code == 0
    told = json.loads(out)["scenarios"]
    assert set(told) == {"small", *told} and len(told) >= 14
    for scenario in told.values():
        assert list(scenario["agents"]) == list(every_agent())
