"""Rebuilds ``docs/results.md``: trains with the defaults and evaluates on held-out traffic.

Run as ``python -m llmcluster.experiments.write_results``; it goes on where it stopped, in ``runs/results``.
"""

from __future__ import annotations

import json
from pathlib import Path

from ..envs.scenario import load_scenario
from ..simulator.files import whole
from .evaluate import evaluate
from .output import people, progress_bar
from .report import write_report
from .table import CLAIRVOYANT_NOTE, COLUMNS, DIFFERENCE, Row, as_json, formatted, rows
from .train import TrainConfig, train, use_one_thread

SCENARIO, TIMESTEPS, EPISODES, REFERENCE = "default", 300_000, 30, "best-constant"
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
    """Trains what is not yet trained, evaluates everything and writes the page."""
    use_one_thread()
    console = people("-")
    scenario = load_scenario(SCENARIO)
    for name, (algo, seed) in TRAINED.items():
        train(TrainConfig(algo, scenario, TIMESTEPS, seed), RUNS / name, console)
    agents = [*HEURISTICS, *(str(RUNS / name) for name in TRAINED)]
    with progress_bar() as progress:
        evaluation, notes = evaluate(scenario, agents, EPISODES, 0, progress)
    write_report(evaluation, RUNS / "report.html", reference=REFERENCE)
    with whole(RUNS / "results.json") as partial:
        partial.write_text(json.dumps(as_json(evaluation, reference=REFERENCE), indent=1))
    table = rows(evaluation, reference=REFERENCE)
    lines = [
        "# Results",
        "",
        "<!-- Written by `python -m llmcluster.experiments.write_results`; do not edit by hand. -->",
        "",
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
        "Everything on this page is rebuilt by",
        "",
        "```",
        "python -m llmcluster.experiments.write_results",
        "```",
        "",
        "which does the same as",
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
    with whole(ROOT / "docs" / "results.md") as partial:
        partial.write_text("\n".join(lines))


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
