"""Rebuilds ``docs/results.md``: learned agents against heuristics, and every agent in every scenario.

Run as ``python -m llmcluster.experiments.write_results``; it goes on where it stopped, in ``runs/results``. Claims of
published systems are its third part, a page of their own: see ``write_claims``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ..envs.scenario import load_scenario, scenario_names
from ..simulator.files import whole
from .evaluate import evaluate
from .matrix import Effort, Outcome, every_agent, matrix, reference_among, standings, write_matrix
from .output import people, progress_bar
from .report import write_report
from .table import CLAIRVOYANT_NOTE, COLUMNS, DIFFERENCE, Row, as_json, formatted, rows
from .train import TrainConfig, train, use_one_thread

SCENARIO, TIMESTEPS, EPISODES, SEED, REFERENCE = "default", 300_000, 30, 0, "best-constant"
TRAINED = {"ppo-seed0": ("ppo", 0), "ppo-seed1": ("ppo", 1), "maskable-ppo-seed0": ("maskable-ppo", 0)}
HEURISTICS = (
    REFERENCE,
    "random",
    "round-robin",
    "least-outstanding",
    "uniform-cap",
    "follow-load",
    "clairvoyant",
)
ROOT = Path(__file__).parent.parent
RUNS = Path("runs/results")


def write_results() -> None:
    """Trains what is not yet trained, evaluates everything and writes the page with its part."""
    use_one_thread()
    learned = _learned(people("-"))
    with progress_bar() as progress:
        scenarios = [load_scenario(name) for name in scenario_names()]
        outcomes = matrix(scenarios, every_agent(), Effort.quick(), SEED, progress)
    write_page(learned, outcomes, ROOT / "docs")


def write_page(learned: Sequence[str], outcomes: Sequence[Outcome], folder: Path) -> Path:
    """Writes ``results.md``, and ``results-scenarios.md`` beside it.

    Args:
        learned: What is said of learned agents, line by line.
        outcomes: Every agent in every scenario.
        folder: Where to.

    Returns:
        The page.
    """
    reference, effort = reference_among(outcomes[0][0].agents, None), Effort.quick()
    part = write_matrix(outcomes, folder / "results-scenarios.md", SEED, reference)
    lines = [
        "# Results",
        "",
        "<!-- Written by `python -m llmcluster.experiments.write_results`; do not edit by hand. -->",
        "",
        "1. [Learned agents and heuristics](#learned-agents-and-heuristics) in the default scenario",
        "2. [Every agent in every scenario](#every-agent-in-every-scenario)",
        "3. [Claims of published systems](claims.md): PALS, TAPAS and offline energy-optimal serving, with tables and "
        "pictures; `llmcluster evaluate --suite all` plays them, `python -m llmcluster.experiments.write_claims` "
        "writes that page",
        "",
        "`python -m llmcluster.experiments.write_results` rebuilds the first two; it does the same as the commands "
        "that stand there.",
        "",
        "## Learned agents and heuristics",
        "",
        *learned,
        "## Every agent in every scenario",
        "",
        f"{effort.episodes} held-out episodes of {effort.horizon_s} s in each of {len(outcomes)} scenarios, the same "
        f"for all agents; those that are tuned chose among {effort.candidates} candidates. That is enough to see where "
        f"an agent fails, not to tell apart those that are close. Rank is by reward, among those that do not know the "
        f"future. By scenario, with differences to `{reference}`: [{part.name}]({part.name}).",
        "",
        "```",
        "llmcluster evaluate --scenario all --agents all --quick",
        "```",
        "",
        "| agent | best of | rank in the mean |",
        "|---|---:|---:|",
        *(f"| {agent} | {best} | {rank:.1f} |" for agent, best, rank in standings(outcomes, SEED, reference)),
        "",
    ]
    page = folder / "results.md"
    with whole(page) as partial:
        partial.write_text("\n".join(lines))
    return page


def _learned(console: Console) -> list[str]:
    """Trains, evaluates on the default scenario, and tells what came of it."""
    scenario = load_scenario(SCENARIO)
    for name, (algo, seed) in TRAINED.items():
        train(TrainConfig(algo, scenario, TIMESTEPS, seed), RUNS / name, console)
    agents = [*HEURISTICS, *(str(RUNS / name) for name in TRAINED)]
    with progress_bar() as progress:
        evaluation, notes = evaluate(scenario, agents, EPISODES, SEED, progress)
    write_report(evaluation, RUNS / "report.html", reference=REFERENCE)
    with whole(RUNS / "results.json") as partial:
        partial.write_text(json.dumps(as_json(evaluation, reference=REFERENCE), indent=1))
    table = rows(evaluation, reference=REFERENCE)
    lines = [
        f"Scenario `{SCENARIO}`: {EPISODES} held-out episodes, the same for all agents. Figures are means with 95 % "
        f"bootstrap intervals; Δ reward is the paired difference to `{REFERENCE}`. PPO and MaskablePPO were trained "
        f"for {TIMESTEPS:,} steps with the defaults of `llmcluster train`. {CLAIRVOYANT_NOTE}.",
        "",
        _verdict(table),
        "",
        "Intervals are over episodes; how far training runs differ shows in the seeds alone. Rewards count from the "
        "start; other figures leave out the first 120 s, and what comes after the horizon only settles the queue.",
        "",
        "These were chosen among candidates on validation traffic:",
        "",
        *(f"- `{name}`: {note}" for name, note in notes.items()),
        "",
        "```",
        *(
            f"llmcluster train --algo {algo} --timesteps {TIMESTEPS} --seed {seed} --out {RUNS / name}"
            for name, (algo, seed) in TRAINED.items()
        ),
        f"llmcluster evaluate --episodes {EPISODES} --reference {REFERENCE} --out {RUNS} \\",
        f"  --agents {','.join(agents)}",
        "```",
        "",
    ]
    for first in range(0, len(COLUMNS), 4):
        columns = COLUMNS[first : first + 4]
        titles = (f"{c.title}{f' ({c.unit})' if c.unit else ''}" for c in columns)
        lines += ["| agent | " + " | ".join(titles) + " |", "|---|" + "---:|" * len(columns)]
        for row in table:
            cells = (" ".join(_bracketed(*formatted(row.intervals[c.key], c))) for c in columns)
            name = f"**{row.label}**" if row.best else row.label
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    return lines


def _verdict(table: list[Row]) -> str:
    """What the figures say about learned agents and the best constant action, either way."""
    said = []
    for row in table:
        if row.agent in (*TRAINED, "follow-load", "clairvoyant"):
            gap = row.intervals[DIFFERENCE]
            verdict = "beats" if gap.low > 0 else "loses to" if gap.high < 0 else "cannot be told from"
            bounds = f"95 % interval {gap.low:+.1f} … {gap.high:+.1f}"
            said.append(f"`{row.agent}` {verdict} `{REFERENCE}` ({gap.mean:+.1f}, {bounds})")
    return "; ".join(said) + "."


def _bracketed(mean: str, bounds: str) -> tuple[str, str]:
    return mean, f"[{bounds}]" if bounds else ""


if __name__ == "__main__":
    write_results()
