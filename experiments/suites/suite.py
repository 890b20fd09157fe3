"""What a suite yields: a published system's claims beside what was measured here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..statistics import Interval

Verdict = Literal["reproduced", "partly", "not reproduced"]


@dataclass(frozen=True)
class Claim:
    """One claim.

    Attributes:
        what: The claim in words, with its place in the paper.
        published: What the paper gives, as text with its unit.
        measured: What was measured here with its 95 % interval, in ``unit``.
        unit: Unit of ``measured``.
        verdict: Whether it reproduces.
        why: Where it does not, why; how it was measured otherwise.
    """

    what: str
    published: str
    measured: Interval
    unit: str
    verdict: Verdict
    why: str


@dataclass(frozen=True)
class Plot:
    """A picture of one of a suite's tables.

    Attributes:
        title: What it shows.
        table: Title of the table.
        x: Its column along the axis; numbers, or words for bars.
        y: Its columns of numbers that are drawn, one line each.
        by: Column by whose words the rows are told apart: one line for each of them.
        kind: Whether rows are joined, stand alone as points, or are bars.
    """

    title: str
    table: str
    x: str
    y: tuple[str, ...]
    by: str = ""
    kind: Literal["line", "points", "bars"] = "line"


@dataclass(frozen=True)
class SuiteResult:
    """A suite that was run.

    Attributes:
        suite: Name of the suite.
        title: What it tries, for people.
        claims: Its claims.
        tables: Tables by title: rows of equal keys, for people and for JSON.
        assumed: What was assumed where the paper does not say.
        plots: Pictures of its tables, for the page.
    """

    suite: str
    title: str
    claims: tuple[Claim, ...]
    tables: Mapping[str, tuple[Mapping[str, str | float], ...]]
    assumed: tuple[str, ...] = field(default=())
    plots: tuple[Plot, ...] = field(default=())
