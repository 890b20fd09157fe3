"""The published page of errors, as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...simulator.confidence import MEANING, Level
from .documents import Document, Target
from .errors import Comparison
from .figures import sha256
from .places import short, spans
from .split import FIT, HELD_OUT
from .validate import Validation

OUTLIERS = 5
GROUPS = ("gpu", "model")
CROSSED = ("itl", "power")
"""What is also told of each model on each GPU."""

METHOD = """\
`llmcluster validate SOURCE FILE…` simulates every measured row with the catalogue's figures and compares; it fits
nothing and reads what was measured only to take the error, **simulated / measured − 1**. Tables give the median of its
absolute value in percent; *bias* is the median with its sign. Intervals are 95 % percentile bootstraps over
configurations, because rows of one configuration err together. Rows that cannot be simulated are counted and named.

`llmcluster calibrate SOURCE FILE… --out TOML` fits figures, and looks only at configurations of the **fit** part: those
of which the first 8 bytes of the SHA-256 of the text, as a big-endian integer modulo 10, are below 6. The others are
**held out**. All rows of one configuration (all its batch sizes, rates or caps) are in the same part. **Left out** is
each model predicted from figures fitted to the fit rows of the other models, with no factor of its own: what to expect
of a model that nobody has measured. **Without stalls** are those configurations of `mlenergy` in which neither client
nor server stalls, see the known misses: measured percentiles of small batches tell. Beside figures shared by all models
on a GPU there is one fitted factor, of power, for a model on a GPU at one parallelism."""

EXPECTED = """\
Median errors on the rows of `mlenergy`, by what backs a model on a GPU; `llmcluster simulate` says which it is. In this
order: held-out rows of what has factors of its own; every model predicted from the others; every GPU with the fitted
figures of another one, watts scaled by TDP; every model with dimensions guessed from its parameter count. All of these
rows are of H100 and B200: a GPU that was calibrated on other runs, such as A100, may do better or worse."""

SENSITIVE = """\
The ML.ENERGY data tell no prompt lengths and of output lengths only the mean. Median changes of what is simulated of
the dense Qwen3 models on H100 if they were otherwise; and, in the last line, of those runs of all models that are taken
to send their requests several times and would fill their batch with them sent once:"""


@dataclass(frozen=True)
class Result:
    """What the page says of one source.

    Attributes:
        document: The source, its files and targets.
        validation: All rows.
        left_out: Each model predicted from the others, where figures are fitted to the source.
        files: The files that were read.
        figure: Picture, relative to the page.
    """

    document: Document
    validation: Validation
    left_out: Comparison | None
    files: Sequence[Path]
    figure: str


def page(
    results: Sequence[Result],
    misses: str,
    priors: str,
    expected: Mapping[Level, Mapping[str, float]],
    sensitive: Mapping[str, Mapping[str, tuple[float, float]]],
) -> str:
    """The page; equal results give equal text.

    Args:
        results: One for each source.
        misses: What is known of the misses, as Markdown.
        priors: How the priors of the fits were chosen, as Markdown.
        expected: Errors by what backs the figures.
        sensitive: What changes with assumed lengths, by variant and quantity: median change, and that of its size.
    """
    sections = [
        ["# Fidelity: how far the simulator is from measurements"],
        ["<!-- Written by `python -m llmcluster.experiments.write_fidelity`; do not edit by hand. -->"],
        [METHOD],
        ["## Against the targets"],
        _targets(results),
        *_expected(expected),
        *_sensitive(sensitive),
        ["## How far a model's own figures are trusted"],
        [priors.strip()],
        ["## Known misses, and why"],
        [misses.strip()],
        ["## What was measured"],
        _measured(results),
        *(part for result in results for part in _source(result)),
        ["## Rebuild this page"],
        ["```", "python -m llmcluster.experiments.write_fidelity --data FOLDER", "```"],
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def _expected(expected: Mapping[Level, Mapping[str, float]]) -> list[list[str]]:
    """What `llmcluster simulate` tells of models and GPUs by what backs their figures."""
    if not expected:
        return []
    lines = ["| figures | rows | ITL | power |", "|---|---:|---:|---:|"]
    lines += [
        f"| {MEANING[level]} | {one['rows']} | {100 * one['itl']:.1f} % | {100 * one['power']:.1f} % |"
        for level, one in expected.items()
    ]
    return [["## What to expect"], [EXPECTED], lines]


def _sensitive(sensitive: Mapping[str, Mapping[str, tuple[float, float]]]) -> list[list[str]]:
    """How much hangs on the lengths that the data do not tell."""
    if not sensitive:
        return []
    quantities = list(next(iter(sensitive.values())))
    lines = ["| | " + " | ".join(quantities) + " |", "|---|" + "---:|" * len(quantities)]
    lines += [
        f"| {variant} | " + " | ".join(f"{100 * changes[q][0]:+.1f} %" for q in quantities) + " |"
        for variant, changes in sensitive.items()
    ]
    return [["## What hangs on the assumed lengths"], [SENSITIVE], lines]


def _targets(results: Iterable[Result]) -> list[str]:
    lines = [
        "| data | rows | quantity | compared | median error | 95 % interval | target | |",
        "|---|---|---|---:|---:|---|---:|---|",
    ]
    for result in results:
        for target in result.document.targets:
            value, interval, count = _found(result, target)
            sign = "≥" if target.at_least else "≤"
            lines.append(
                f"| {result.document.source} | {_words(target)} "
                f"| {target.quantity} | {count} | {_share(value, target)} | {interval} "
                f"| {sign} {_share(target.bound, target)} | {_verdict(target, value)} |"
            )
    return lines


def _found(result: Result, target: Target) -> tuple[float, str, str]:
    """Value, interval and number of rows of what a target asks for; NaN where it was not simulated."""
    for score in result.validation.scores:
        if score.name == target.quantity:
            bounds = " … ".join(_share(bound, target) for bound in (score.low, score.high))
            return score.value, bounds, str(len(result.validation.comparison.rows))
    comparison = result.left_out if target.left_out else result.validation.comparison
    if comparison is None:
        return math.nan, "", "0"
    summary = comparison.where(**target.where).summaries(np.random.default_rng(0)).get(target.quantity)
    if summary is None:
        return math.nan, "", "0"
    bounds = "" if math.isnan(summary.low) else f"{100 * summary.low:.1f} … {100 * summary.high:.1f} %"
    return summary.median, bounds, str(summary.count)


def _share(value: float, target: Target) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:.3f}" if target.at_least else f"{100 * value:.1f} %"


def _verdict(target: Target, value: float) -> str:
    return "not simulated" if math.isnan(value) else "met" if target.met(value) else "**missed**"


def _words(target: Target) -> str:
    """Which rows a target is for."""
    chosen = [key if value == "yes" else value.replace("_", " ") for key, value in target.where.items()]
    return ", ".join((["model left out"] if target.left_out else []) + chosen) or "all"


def _measured(results: Iterable[Result]) -> list[str]:
    lines = [
        "| source | what, and with which engine | files | rows | configurations | not compared |",
        "|---|---|---|---:|---:|---|",
    ]
    for result in results:
        comparison = result.validation.comparison
        files = ", ".join(f"`{path.name}` ({sha256(path)[:12]})" for path in result.files)
        configurations = len({row.configuration for row in comparison.rows})
        name = result.document.source
        lines.append(
            f"| [{name}](#{name}) | {result.validation.source.title} | {files} | {len(comparison.rows)} "
            f"| {configurations} | {_uncompared(comparison)} |"
        )
    return [*lines, "", "In brackets: how the SHA-256 of the file begins."]


def _source(result: Result) -> list[list[str]]:
    """The sections of one source."""
    validation = result.validation
    units = validation.source.quantities
    comparison = validation.comparison
    kinds = "fit / held out" + (" / left out" if result.left_out is not None else "")
    return [
        [f"## {result.document.source}"],
        [f"{validation.source.title}."],
        [
            "| quantity | rows | median error | 95 % interval | bias | 90th percentile |",
            "|---|---:|---:|---|---:|---:|",
            *(
                f"| {q}, {units[q]} | {s.count} | {100 * s.median:.1f} % "
                f"| {'' if math.isnan(s.low) else f'{100 * s.low:.1f} … {100 * s.high:.1f} %'} "
                f"| {100 * s.bias:+.1f} % | {100 * s.p90:.1f} % |"
                for q, s in validation.summaries.items()
            ),
        ],
        [f"- {score}" for score in validation.scores],
        [f"Median errors by GPU and model, in percent: {kinds}."],
        _by_parts(result, list(validation.summaries)),
        *crossed(comparison),
        *_other_groups(validation),
        [f"![measured against simulated]({result.figure})"],
        ["Filled points were fitted to, hollow ones held out; dotted lines are 10 % off."],
        ["Furthest off:"],
        [
            "| place | quantity | measured | simulated | error |",
            "|---|---|---:|---:|---:|",
            *(
                f"| {short(cell.place)} | {cell.quantity} | {cell.measured:.4g} | {cell.simulated:.4g} "
                f"| {100 * cell.error:+.0f} % |"
                for cell in comparison.outliers(OUTLIERS)
            ),
        ],
        _skipped(comparison),
        [f"- Doubtful, but compared: {what}: {spans(places)}." for what, places in validation.outliers.items()],
        ["Assumed:"],
        [f"- {line}" for line in validation.source.assumed],
    ]


def _by_parts(result: Result, quantities: Sequence[str]) -> list[str]:
    comparison = result.validation.comparison
    parts: list[Comparison] = [comparison.where(part=FIT), comparison.where(part=HELD_OUT)]
    if result.left_out is not None:
        parts.append(result.left_out)
    lines = ["| | rows | " + " | ".join(quantities) + " |", "|---|---:|" + "---:|" * len(quantities)]
    chosen: list[dict[str, str]] = [{}]
    chosen += [{key: value} for key in GROUPS for value in comparison.groups.get(key, {})]
    for where in chosen:
        rows = len(comparison.where(**where).rows)
        cells = [" / ".join(_median(one.where(**where), q) for one in parts) for q in quantities]
        lines.append(f"| {', '.join(where.values()) or 'all'} | {rows} | {' | '.join(cells)} |")
    return lines


def crossed(comparison: Comparison) -> list[list[str]]:
    """Held-out errors of each model on each GPU, where there are several of both."""
    held = comparison.where(part=HELD_OUT)
    gpus, models = (list(held.groups.get(key, {})) for key in GROUPS)
    if min(len(gpus), len(models)) < 2 or not set(CROSSED) <= set(held.error):
        return []
    lines = ["| | " + " | ".join(gpus) + " |", "|---|" + "---:|" * len(gpus)]
    for model in models:
        ones = [held.where(gpu=gpu, model=model) for gpu in gpus]
        cells = [
            f"{' / '.join(_median(one, q) for q in CROSSED)} ({len(one.rows)})" if one.rows else "–" for one in ones
        ]
        lines.append(f"| {model} | {' | '.join(cells)} |")
    title = f"Median errors of held-out rows by model and GPU, in percent: {' / '.join(CROSSED)} (rows)."
    return [[title], lines]


def _median(comparison: Comparison, quantity: str) -> str:
    errors = np.abs(comparison.error[quantity])
    errors = errors[~np.isnan(errors)]
    return f"{100 * np.median(errors):.1f}" if len(errors) else "–"


def _other_groups(validation: Validation) -> list[list[str]]:
    """Medians of whatever else the source is broken down by."""
    found = []
    for key, values in validation.groups.items():
        if key in (*GROUPS, "part") or len(values) < 2:
            continue
        quantities = list(validation.summaries)
        lines = [f"| {key} | rows | " + " | ".join(quantities) + " |", "|---|---:|" + "---:|" * len(quantities)]
        for value, group in values.items():
            cells = (_percent({name: s.median for name, s in group.summaries.items()}, q) for q in quantities)
            lines.append(f"| {value} | {group.rows} | {' | '.join(cells)} |")
        found.append(lines)
    return found


def _percent(medians: Mapping[str, float], quantity: str) -> str:
    return f"{100 * medians[quantity]:.1f}" if quantity in medians else "–"


def _uncompared(comparison: Comparison) -> str:
    """How many rows are not compared, in full or in part, and why."""
    return "; ".join(f"{len(some)}: {why.reason}" for why, some in comparison.reasons.items()) or "0"


def _skipped(comparison: Comparison) -> list[str]:
    """Which rows are not compared, in what, and why."""
    lines = []
    for why, some in comparison.reasons.items():
        places: dict[tuple[str, ...], list[str]] = {}
        for one in some:
            places.setdefault(one.quantities, []).append(one.place)
        lines += [f"- Not compared in {', '.join(q)}, because {why.reason}: {spans(of)}." for q, of in places.items()]
    return lines
