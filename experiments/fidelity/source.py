"""What a set of published measurements must offer to be validated against, and to be calibrated on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ...simulator.catalog import Catalog
from .skipped import Skipped

Advance = Callable[[int], None]
"""Is told how many rows are done, for a progress bar."""


def unheard(done: int) -> None:
    """Takes what nobody wants to be told: how far a simulation within another loop is."""


@dataclass(frozen=True)
class Row:
    """One measured row.

    Attributes:
        place: Where it stands, such as ``file.csv:12``; errors and outliers are named by it.
        configuration: What was set up, without what was swept over it (batch size, rate, cap). All rows of one
            configuration fall into the same part of the split.
        measured: What was measured, by quantity, in the unit that the source documents.
        groups: What errors are broken down by, such as ``{"gpu": "H100-80GB", "model": "Qwen3-8B"}``; names as in the
            catalogue where they are there.
        given: What the simulation needs to know of the row, by the source's own names.
    """

    place: str
    configuration: str
    measured: Mapping[str, float]
    groups: Mapping[str, str]
    given: Mapping[str, Any] = field(default_factory=dict)


Simulated = Mapping[str, float]
"""Simulated quantities of a row."""

Outcome = Simulated | Skipped
"""What becomes of a row: its simulated quantities, or why it has none."""


@dataclass(frozen=True)
class Fitted:
    """What a calibration found.

    Attributes:
        tables: A catalogue file as nested tables, to be written as TOML and read by ``Catalog.with_file``.
        intervals: 95 % bootstrap interval (over configurations) of each fitted figure, by dotted name.
        residuals: Relative error of each row, by quantity, in the order of the rows; NaN where it has none.
    """

    tables: Mapping[str, Any]
    intervals: Mapping[str, tuple[float, float]]
    residuals: Mapping[str, Sequence[float]]


class Source(Protocol):
    """One layout of measured files. Each lives in a module of ``sources`` and is listed in ``registry.SOURCES``.

    Attributes:
        name: As on the command line, such as ``nlr-rate``.
        title: What was measured, one line, with where it comes from and the engine's version.
        quantities: What is compared, with unit: ``{"itl": "ms", …}``.
        assumed: What the data do not say and the simulation therefore assumes, one line each.
    """

    name: str
    title: str
    quantities: Mapping[str, str]
    assumed: Sequence[str]

    def read(self, files: Sequence[Path], catalog: Catalog) -> list[Row]:
        """Reads files of the layout; raises ``InputError`` that names file, line or column, and remedy.

        The catalogue tells which GPUs and models are known, and by which names.
        """
        ...

    def simulate(self, rows: Sequence[Row], catalog: Catalog, seed: int, advance: Advance) -> Sequence[Outcome]:
        """Simulates every row that it can, and says why of the others; never looks at what was measured."""
        ...


class Calibrated(Source, Protocol):
    """A source that figures of the catalogue can be fitted to."""

    def fit(self, rows: Sequence[Row], catalog: Catalog, rng: np.random.Generator, advance: Advance) -> Fitted:
        """Fits figures of the catalogue to the rows."""
        ...
