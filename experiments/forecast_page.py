"""Assembles ``docs/forecasting.md`` out of the scores that the comparisons have left in ``docs/forecasting/``.

Each section has a file of its own, so that one can be measured anew without the others. Run as
``python -m llmcluster.experiments.forecast_page``; it measures nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import whole
from ..forecaster.base import TARGETS
from .forecast_compare import markdown
from .forecast_real_section import real_section
from .output import write_json

DOCS = Path(__file__).parent.parent / "docs"
PAGE, SCORES = "forecasting.md", "forecasting"
HEADER = """# Forecasts of power

How far models are off that forecast the power of GPUs, and how much better they are than the best naive model on the
same seconds. Made by `python -m llmcluster.experiments.forecast_page` from the scores in `docs/forecasting/`; do not
edit.
"""
Scores = Mapping[str, Any]
SHIPPED = "gru"
BRIEFLY = ", trained briefly"
GOAL = 0.1
COVERS = (0.77, 0.83)
"""What 80 % intervals are asked to cover."""
MOST_US = {"8": 30, "64": 100}
"""Microseconds that an update may take, by slots."""


def simulated_section(scores: Scores) -> str:
    """What was measured on simulated telemetry.

    Args:
        scores: ``compare`` as :func:`compare` returns it, ``tests`` (number of episodes) and ``update_us``, the cost of
            the shipped model by slots and by seconds.
    """
    compared = scores["compare"]
    ten = {slots: by_seconds["10"] for slots, by_seconds in scores["update_us"].items()}
    costs = [
        f"An update of the shipped GRU with the ten seconds of a tick took {us:.0f} µs at {slots} slots; at most "
        f"{MOST_US[slots]} µs are asked."
        for slots, us in ten.items()
    ]
    head = (
        f"{scores['tests']} episodes that nothing was learnt from, of heuristics in several scenarios, as the "
        "environment meters them; `make forecaster` measures anew. A channel is a slot or the whole cluster. `gru` is "
        "what the package ships; its card, `forecaster/shipped/gru.json`, tells what it learnt from and how that was "
        "split. What was *trained briefly* had fewer episodes and passes, each kind of network the "
        "same, and compares the kinds."
    )
    tables = [markdown(compared), *rmse_table(compared), *coverage_table(compared)]
    return "\n".join([head, *goal(compared), "", *tables, *costs, ""])


def goal(compared: Scores) -> list[str]:
    """Where the shipped model is better than the best naive one by as much as is asked."""
    found = next(iter(compared["series"].values()))["results"].get(SHIPPED)
    if found is None:
        return []
    reached = [f"`{target}`" for target in TARGETS if found[target]["skill"] >= GOAL]
    missed = [f"`{target}`" for target in TARGETS if found[target]["skill"] < GOAL]
    parts = [f"{word} for {', '.join(names)}" for word, names in (("reached", reached), ("missed", missed)) if names]
    covered = [found[target]["coverage_80"] for target in TARGETS]
    span = f"{min(covered):.1%} to {max(covered):.1%}"
    kept = "as" if COVERS[0] <= min(covered) and max(covered) <= COVERS[1] else "not as"
    return [
        "",
        f"The goal, {GOAL:.0%} less error than the best naive model, is {' and '.join(parts)}. Its 80 % intervals "
        f"cover {span}, {kept} asked ({COVERS[0]:.0%} to {COVERS[1]:.0%}).{_kinds(compared)}",
    ]


def _kinds(compared: Scores) -> str:
    """Which of the kinds of networks that were trained alike has the lowest error."""
    results = next(iter(compared["series"].values()))["results"]
    alike = [name for name in results if name.endswith(BRIEFLY)]
    if len(alike) < 2:
        return ""
    best: dict[str, list[str]] = {}
    for target in TARGETS:
        name = min(alike, key=lambda one: float(results[one][target]["mae_w"]))
        best.setdefault(name.removesuffix(BRIEFLY), []).append(f"`{target}`")
    won = "; ".join(f"{name} for {', '.join(targets)}" for name, targets in best.items())
    return f" Of the kinds that were trained alike the lowest error has {won}."


def value_section(scores: Scores) -> str:
    """What forecasts are worth to a controller.

    Args:
        scores: ``played``: for each scenario what :func:`~.forecast_value.value` returns.
    """
    parts = [
        "What a controller that sees power alone (`follow-power`: it wakes and parks slots by it) gains by a forecast: "
        "reward of held-out episodes on the same traffic, after tuning with each forecaster alike on validation "
        "traffic. The oracle knows the arrivals to come and bounds what any forecaster can bring. "
        "`python -m llmcluster.experiments.write_forecast_value` measures anew.",
    ]
    for played in scores["played"]:
        parts += [
            "",
            f"**{played['scenario']}**, {played['episodes']} episodes",
            "",
            f"| forecaster | reward | 95 % | difference to {played['reference']} | 95 % |",
            "|---|---:|---|---:|---|",
        ]
        for name, row in played["results"].items():
            (mean, *bounds), (gap, *gap_bounds) = row["reward"], row["difference"]
            differs = [f"{gap:+.1f}", _bounds(gap_bounds, "+.1f")] if name != played["reference"] else ["", ""]
            parts.append("| " + " | ".join([name, f"{mean:.1f}", _bounds(bounds, ".1f"), *differs]) + " |")
    return "\n".join([*parts, ""])


def _bounds(bounds: Sequence[float], form: str) -> str:
    return " … ".join(format(bound, form) for bound in bounds)


SECTIONS: dict[str, tuple[str, Callable[[Scores], str]]] = {
    "simulated": ("Simulated telemetry", simulated_section),
    "real": ("Real series", real_section),
    "value": ("What a forecast is worth", value_section),
}
"""Title and writer of each section, by the name of its file of scores, in the order of the page."""


def rmse_table(compared: Mapping[str, Any]) -> list[str]:
    """Root mean square errors, watts, the four targets in their order."""
    return _table(compared, "Root mean square error", "watts", lambda row: f"{row['rmse_w']:.1f}")


def coverage_table(compared: Mapping[str, Any]) -> list[str]:
    """Share of the truth within the 80 % interval, in percent, the four targets in their order."""
    return _table(compared, "Within the 80 % interval", "percent", lambda row: f"{100 * row['coverage_80']:.1f}")


def _table(compared: Mapping[str, Any], title: str, unit: str, cell: Callable[[Scores], str]) -> list[str]:
    titles = list(compared["series"])
    lines = [
        f"**{title}**, in {unit}, of {', '.join(f'`{target}`' for target in TARGETS)}",
        "",
        f"| model | {' | '.join(titles)} |",
        "|---|" + "---:|" * len(titles),
    ]
    for model in compared["models"]:
        rows = [compared["series"][one]["results"][model] for one in titles]
        cells = [", ".join(cell(row[target]) for target in TARGETS) for row in rows]
        lines.append(f"| {Path(model).name} | {' | '.join(cells)} |")
    return [*lines, ""]


def page(scores: Mapping[str, Scores]) -> str:
    """The page, of those sections that have scores."""
    parts = [f"## {title}\n\n{write(scores[name])}" for name, (title, write) in SECTIONS.items() if name in scores]
    return "\n".join([HEADER, *parts]).rstrip() + "\n"


def read_scores(docs: Path = DOCS) -> dict[str, Scores]:
    """The scores that are there, by section."""
    files = {name: docs / SCORES / f"{name}.json" for name in SECTIONS}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in files.items() if path.exists()}


def write_scores(name: str, scores: Scores, docs: Path = DOCS) -> None:
    """Keeps the scores of a section, and writes the page anew."""
    (docs / SCORES).mkdir(exist_ok=True)
    write_json(dict(scores), str(docs / SCORES / f"{name}.json"))
    write_page(docs)


def write_page(docs: Path = DOCS) -> Path:
    """Writes the page from the scores that are there."""
    with whole(docs / PAGE) as partial:
        partial.write_text(page(read_scores(docs)), encoding="utf-8")
    return docs / PAGE


if __name__ == "__main__":
    write_page()
