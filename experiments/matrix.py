"""Many scenarios times many agents: every scenario an evaluation of its own, several at a time."""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from ..agents.registry import AGENTS, CANDIDATES
from ..envs.scenario import Scenario
from ..simulator.files import whole
from .evaluate import evaluate
from .results import Evaluation
from .table import CLAIRVOYANT_NOTE, COLUMNS, DIFFERENCE, Column, Row, as_json, formatted, rows

PROCESSES = 2
SHOWN = ("reward", DIFFERENCE, "slo_attainment", "energy_per_output_token", "over_budget", "energy_cost", "carbon")
PAGE = (DIFFERENCE, "reward", "slo_attainment", "energy_per_output_token", "energy_cost", "carbon")
PREFERRED_REFERENCE = "least-outstanding"


@dataclass(frozen=True)
class Effort:
    """How much is played.

    Attributes:
        episodes: Held-out episodes per agent.
        horizon_s: Length of an episode at most; the scenario's own by default.
        candidates: See :func:`~llmcluster.experiments.evaluate.evaluate`.
    """

    episodes: int
    horizon_s: int | None = None
    candidates: int | None = None

    @classmethod
    def quick(cls, episodes: int = 3) -> Effort:
        """Few short episodes and hasty tuning: to see that all is well, not to tell agents apart that are close."""
        return cls(episodes, 600, 6)

    def shorten(self, scenario: Scenario) -> Scenario:
        """The scenario with its episodes no longer than the horizon; a time of day passes as fast as ever."""
        if self.horizon_s is None or scenario.horizon_s <= self.horizon_s:
            return scenario
        return scenario.model_copy(update={"horizon_s": self.horizon_s // scenario.tick_s * scenario.tick_s})


def every_agent() -> tuple[str, ...]:
    """Names of all registered agents."""
    return tuple(dict.fromkeys([*AGENTS, *CANDIDATES]))


Outcome = tuple[Evaluation, dict[str, str]]


def matrix(
    scenarios: Sequence[Scenario],
    names: Sequence[str],
    effort: Effort,
    seed: int,
    progress: Progress,
    processes: int | None = None,
) -> list[Outcome]:
    """Evaluates the same agents on every scenario.

    Args:
        scenarios: The scenarios.
        names: Agents.
        effort: How much is played.
        seed: Seed of the episodes.
        progress: Shows how many scenarios are done.
        processes: Scenarios at a time; two by default, where there are two cores.

    Returns:
        Evaluation and notes of each scenario, in their order.
    """
    jobs = [(effort.shorten(scenario), tuple(names), effort, seed) for scenario in scenarios]
    bar = progress.add_task("scenarios", total=len(jobs))
    processes = min(processes or PROCESSES, os.cpu_count() or 1, len(jobs))
    if processes == 1:
        found = []
        for job in jobs:
            found.append(_evaluate(*job))
            progress.advance(bar)
        return found
    # Spawned, not forked: this process has threads, such as the one that draws the progress.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(_evaluate, *job) for job in jobs]
        try:
            for future in as_completed(futures):
                future.result()
                progress.advance(bar)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return [future.result() for future in futures]


def _evaluate(scenario: Scenario, names: tuple[str, ...], effort: Effort, seed: int) -> Outcome:
    with Progress(disable=True) as silent:
        return evaluate(scenario, names, effort.episodes, seed, silent, candidates=effort.candidates)


def reference_among(names: Sequence[str], reference: str | None) -> str:
    """The reference asked for; least-outstanding, or else the first agent, by default."""
    return reference or (PREFERRED_REFERENCE if PREFERRED_REFERENCE in names else names[0])


def print_matrix(outcomes: Sequence[Outcome], console: Console, seed: int, reference: str) -> None:
    """Prints a table for each scenario, and which agent was best how often."""
    columns = [column for column in COLUMNS if column.key in SHOWN]
    for evaluation, _ in outcomes:
        lines = rows(evaluation, seed, reference)
        count = len(evaluation.of(reference))
        told = f"{evaluation.scenario}: means of {count} episodes; Δ reward against {reference}, with its interval"
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=told, title_justify="left")
        table.add_column("agent")
        for column in columns:
            table.add_column(Text(f"{column.title}{f', {column.unit}' if column.unit else ''}"), justify="right")
        for row in lines:
            cells = (_cell(row, column) for column in columns)
            table.add_row(Text(row.label), *cells, style="bold" if row.best else "")
        console.print(table)
    for agent, best, rank in standings(outcomes, seed, reference):
        console.print(f"{agent}: best of {best} scenarios, rank {rank:.1f} in the mean", markup=False)
    console.print(Text(CLAIRVOYANT_NOTE, style="dim"))


def _cell(row: Row, column: Column) -> str:
    mean, bounds = formatted(row.intervals[column.key], column)
    return f"{mean} ({bounds})" if bounds and column.key == DIFFERENCE else mean


def standings(outcomes: Sequence[Outcome], seed: int, reference: str) -> list[tuple[str, int, float]]:
    """Each agent that does not know the future: how often it was best, and its mean rank by reward; best rank first."""
    ranks: dict[str, list[int]] = {}
    for evaluation, _ in outcomes:
        fair = [row for row in rows(evaluation, seed, reference) if not row.clairvoyant]
        for place, row in enumerate(sorted(fair, key=lambda row: -row.intervals["reward"].mean), 1):
            ranks.setdefault(row.agent, []).append(place)
    table = [(agent, places.count(1), sum(places) / len(places)) for agent, places in ranks.items()]
    return sorted(table, key=lambda line: line[2])


def matrix_json(outcomes: Sequence[Outcome], effort: Effort, seed: int, reference: str) -> dict[str, Any]:
    """The whole as plain JSON values: ``scenarios`` by name, each as :func:`~.table.as_json` has it, and its notes."""
    return {
        "episodes": effort.episodes,
        "horizon_s": effort.horizon_s,
        "candidates": effort.candidates,
        "reference": reference,
        "standings": [
            {"agent": agent, "best_of": best, "mean_rank": rank}
            for agent, best, rank in standings(outcomes, seed, reference)
        ],
        "scenarios": {
            evaluation.scenario: {**as_json(evaluation, seed, reference), "notes": notes}
            for evaluation, notes in outcomes
        },
    }


def write_matrix(outcomes: Sequence[Outcome], path: Path, seed: int, reference: str) -> Path:
    """Writes a page with a table for each figure, a line per scenario and a column per agent."""
    with whole(path) as partial:
        partial.write_text("\n".join(_page(outcomes, seed, reference)) + "\n")
    return path


def _page(outcomes: Sequence[Outcome], seed: int, reference: str) -> Iterator[str]:
    tables = {evaluation.scenario: rows(evaluation, seed, reference) for evaluation, _ in outcomes}
    agents = [row.label for row in next(iter(tables.values()))]
    yield from ("# Scenarios and agents", "", f"{CLAIRVOYANT_NOTE}. The best of a line is bold.", "")
    for column in (next(c for c in COLUMNS if c.key == key) for key in PAGE):
        against = f" against {reference}, with 95 % intervals" if column.key == DIFFERENCE else ""
        yield from (f"## {column.title}{f', {column.unit}' if column.unit else ''}{against}", "")
        yield "| scenario | " + " | ".join(agents) + " |"
        yield "|---|" + "---:|" * len(agents)
        for scenario, lines in tables.items():
            if all(math.isnan(row.intervals[column.key].mean) for row in lines):
                continue
            cells = (f"**{_cell(row, column)}**" if row.best else _cell(row, column) for row in lines)
            yield f"| {scenario} | " + " | ".join(cells) + " |"
        yield ""
