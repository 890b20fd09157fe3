"""``llmcluster evaluate``: agents on one scenario, on all of them, or the claims of published systems."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..agents.safety import PREFIX
from ..envs.scenario import load_scenario, scenario_names
from ..simulator.errors import InputError
from .evaluate import check, evaluate
from .matrix import Effort, every_agent, matrix, matrix_json, print_matrix, reference_among, write_matrix
from .output import (
    JsonOption,
    SeedOption,
    WorkloadOption,
    announce_compilation,
    people,
    progress_bar,
    write_json,
)
from .report import write_report
from .splits import Split
from .suites.registry import SUITES
from .suites.show import print_suite, run_suite, suite_json, suite_names
from .table import as_json, print_table

EXAMPLE = "Example: llmcluster evaluate --agents round-robin,best-constant,runs/ppo --episodes 10 --out runs/report"
AGENTS = "round-robin,least-outstanding,uniform-cap,best-constant,follow-load,clairvoyant"
SCENARIO = "default"
EPISODES = 10
EVERY = "all"


def evaluate_command(
    agents: Annotated[
        str,
        typer.Option(
            help="Names of agents and folders that `train` wrote, by comma, or all; safe:NAME for one in a safety layer"
        ),
    ] = AGENTS,
    scenario: Annotated[
        str, typer.Option(help="Name of a scenario or path of a TOML file, several by comma, or all")
    ] = SCENARIO,
    workload: WorkloadOption = None,
    episodes: Annotated[
        int | None, typer.Option(min=1, help="Held-out episodes per agent; 10 by default, 3 with --quick")
    ] = None,
    seed: SeedOption = 0,
    out: Annotated[
        Path, typer.Option(help="Folder for report.html, or for matrix.md of several scenarios; a suite writes neither")
    ] = Path("runs/evaluation"),
    reference: Annotated[
        str | None,
        typer.Option(
            help="Agent that rewards are compared with; the first by default, of several scenarios least-outstanding"
        ),
    ] = None,
    safe: Annotated[bool, typer.Option("--safe", help="Put every agent into the safety layer")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Short episodes and hasty tuning")] = False,
    suite: Annotated[
        str | None,
        typer.Option(help=f"Try the claims of a published system instead: {', '.join(SUITES)}, or all"),
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Compare agents on the same held-out traffic: a table with 95 % intervals, and an HTML report with plots.

    With `--scenario all` (or several by comma) or `--quick`, every agent plays every scenario. With `--suite`, the
    claims of a published system are tried, on scenarios and with agents of its own.
    """
    if suite is not None:
        given = {
            "--agents": agents != AGENTS,
            "--scenario": scenario != SCENARIO,
            "--workload": workload is not None,
            "--reference": reference is not None,
            "--safe": safe,
        }
        if idle := [option for option, there in given.items() if there]:
            raise InputError(f"--suite {suite}", "has scenarios and agents of its own", f"Leave out {', '.join(idle)}")
        _suites(suite, episodes or (Effort.quick().episodes if quick else EPISODES), seed, json_file)
        return
    names = every_agent() if agents == EVERY else tuple(name.strip() for name in agents.split(",") if name.strip())
    if safe:
        names = tuple(name if name.startswith(PREFIX) else PREFIX + name for name in names)
    if quick or scenario == EVERY or "," in scenario:
        if workload:
            raise InputError("--workload", "goes with one scenario", "Leave out --quick, and name one scenario")
        effort = Effort.quick(episodes or Effort.quick().episodes) if quick else Effort(episodes or EPISODES)
        _matrix(scenario, names, effort, seed, out, reference, json_file)
        return
    chosen = load_scenario(scenario)
    check(chosen, names, reference)
    split = Split(chosen, workload, out) if workload else None
    out.mkdir(parents=True, exist_ok=True)
    announce_compilation()
    with progress_bar() as progress:
        evaluation, notes = evaluate(chosen, names, episodes or EPISODES, seed, progress, split)
    console = people(json_file)
    print_table(evaluation, console, seed, reference)
    for name, note in notes.items():
        console.print(f"{name}: {note}")
    console.print(f"report: {write_report(evaluation, out / 'report.html', seed, reference)}")
    write_json({**as_json(evaluation, seed, reference), "notes": notes}, json_file)


def _matrix(
    scenario: str,
    names: tuple[str, ...],
    effort: Effort,
    seed: int,
    out: Path,
    reference: str | None,
    json_file: str | None,
) -> None:
    asked = scenario_names() if scenario == EVERY else [name.strip() for name in scenario.split(",") if name.strip()]
    scenarios = [load_scenario(name) for name in asked]
    for one in scenarios:
        check(one, names, reference)
    reference = reference_among(names, reference)
    out.mkdir(parents=True, exist_ok=True)
    announce_compilation()
    with progress_bar() as progress:
        outcomes = matrix(scenarios, names, effort, seed, progress)
    console = people(json_file)
    print_matrix(outcomes, console, seed, reference)
    console.print(f"tables: {write_matrix(outcomes, out / 'matrix.md', seed, reference)}")
    write_json(matrix_json(outcomes, effort, seed, reference), json_file)


def _suites(asked: str, episodes: int, seed: int, json_file: str | None) -> None:
    names = suite_names(asked)
    announce_compilation()
    console, results = people(json_file), {}
    with progress_bar() as progress:
        for name in names:
            results[name] = run_suite(name, episodes, seed, progress)
    for result in results.values():
        print_suite(result, console)
    write_json({"suites": {name: suite_json(result) for name, result in results.items()}}, json_file)
