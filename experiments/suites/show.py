"""Suites run, shown and written: for people, as JSON, and as a page."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from ...simulator.errors import InputError
from ..statistics import Interval
from .registry import SUITES
from .suite import Claim, SuiteResult

Run = Callable[[int, int, Progress], SuiteResult]
EVERY = "all"


def suite_names(asked: str) -> tuple[str, ...]:
    """The suites of a name, or of ``all``.

    Raises:
        InputError: There is no such suite.
    """
    if asked == EVERY:
        return tuple(SUITES)
    if asked not in SUITES:
        raise InputError("suite", f"'{asked}' is unknown", f"Use one of {', '.join((*SUITES, EVERY))}")
    return (asked,)


def run_suite(name: str, episodes: int, seed: int, progress: Progress) -> SuiteResult:
    """Loads a suite and runs it."""
    return entry(name)(episodes, seed, progress)


def entry(name: str) -> Run:
    """The function of a suite."""
    module, _, function = SUITES[name].partition(":")
    within = module if "." in module else f"{__package__}.{module}"
    return cast("Run", getattr(import_module(within), function))


def measured(interval: Interval, unit: str) -> str:
    """A figure with its interval, as text."""
    if math.isnan(interval.mean):
        return "–"
    bounds = "" if math.isnan(interval.low) else f" ({_short(interval.low)} … {_short(interval.high)})"
    return f"{_short(interval.mean)}{bounds}{f' {unit}' if unit else ''}"


def _short(value: str | float) -> str:
    if isinstance(value, str):
        return value
    if math.isnan(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 or float(value).is_integer() else f"{value:.3g}"


def print_suite(result: SuiteResult, console: Console) -> None:
    """Prints the claims, then every table."""
    console.print(Text(f"{result.suite}: {result.title}", style="bold"))
    table = Table("claim", "published", "measured", "verdict", "why", box=box.SIMPLE_HEAD, show_lines=True)
    for claim in result.claims:
        table.add_row(*(Text(cell) for cell in _cells(claim)))
    console.print(table)
    for title, lines in result.tables.items():
        if lines:
            shown = Table(*lines[0], title=title, title_justify="left", box=box.SIMPLE_HEAD)
            for line in lines:
                shown.add_row(*(Text(_short(value)) for value in line.values()))
            console.print(shown)
    for assumed in result.assumed:
        console.print(Text(f"assumed: {assumed}", style="dim"))


def _cells(claim: Claim) -> tuple[str, ...]:
    return (claim.what, claim.published, measured(claim.measured, claim.unit), claim.verdict, claim.why)


def suite_json(result: SuiteResult) -> dict[str, Any]:
    """The result as plain JSON values; ``None`` where a number is not finite."""
    claims = [{**asdict(claim), "measured": claim.measured._asdict()} for claim in result.claims]
    plain: dict[str, Any] = _finite(
        {
            "suite": result.suite,
            "title": result.title,
            "claims": claims,
            "tables": result.tables,
            "assumed": result.assumed,
        }
    )
    return plain


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def suite_page(result: SuiteResult, pictures: Mapping[str, Path], options: str = "") -> Iterator[str]:
    """The part of a Markdown page that tells of a suite, line by line.

    Args:
        result: The suite.
        pictures: Where its plots are, by title, as the page links to them.
        options: Those of the command that plays it, with a space before each.
    """
    yield from (f"## {result.title}", "", f"`llmcluster evaluate --suite {result.suite}{options}`", "")
    yield from ("| claim | published | measured, with 95 % interval | verdict | why |", "|---|---|---:|---|---|")
    for claim in result.claims:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in _cells(claim)) + " |"
    yield ""
    for title, path in pictures.items():
        yield from (f"![{title}]({path.as_posix()})", "")
    for title, lines in result.tables.items():
        if not lines:
            continue
        yield from (f"### {title}", "", "| " + " | ".join(lines[0]) + " |", "|" + "---|" * len(lines[0]))
        for line in lines:
            yield "| " + " | ".join(_short(value).replace("|", "\\|") for value in line.values()) + " |"
        yield ""
    if result.assumed:
        yield from ("Assumed where the paper does not say:", "")
        yield from (f"- {assumed}" for assumed in result.assumed)
        yield ""
