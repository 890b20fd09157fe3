"""What the NLR sources have in common: one simulation for all rows that ask the same, and the fit of the host."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from ....simulator.blueprint import Blueprint
from ....simulator.catalog import Catalog
from ....simulator.errors import InputError
from ..csv_rows import Line, read_lines
from ..names import called, gpu_called
from ..source import Advance, Fitted, Row, Simulated
from .nlr_node import GPU, GPUS, MODEL, Run, idle_gpus_w, node

Floats = NDArray[np.float64]

IDLE_NODE_W = 700.0
"""The idle node on its meter, as the scripts that processed the data say."""

FIGURES = ("idle_w", "active_w", "request_w")
RESAMPLES = 200


class NlrSource(ABC):
    """Base of the three.

    Attributes:
        columns: Columns that a file must have.
        max_tokens: Token budget of an iteration.
    """

    name: str
    title: str
    quantities: Mapping[str, str]
    assumed: Sequence[str]
    columns: Sequence[str]
    max_tokens = 8192

    def read(self, files: Sequence[Path], catalog: Catalog) -> list[Row]:
        """Reads files of the layout; raises ``InputError`` that names file, line or column, and remedy.

        The layout tells neither model nor GPU; a file that does, and of others than those of the node, is refused.
        """
        lines = [line for path in files for line in read_lines(path, self.columns)]
        for line in lines:
            for column, name, own in (
                ("model", called(catalog.model, line.cells.get("model") or MODEL, {}), MODEL),
                ("gpu", gpu_called(catalog, line.cells.get("gpu") or GPU), GPU),
            ):
                if name != own:
                    problem = f"{column} is {name}; {self.name} simulates {MODEL} on {GPUS} x {GPU} alone"
                    raise InputError(line.place, problem, "Leave the line out, or give it in the layout mlenergy")
        return [self._row(line) for line in lines]

    def simulate(self, rows: Sequence[Row], catalog: Catalog, seed: int, advance: Advance) -> list[Simulated]:
        """Simulates every row; rows that differ in nothing but what was measured share a run."""
        host = catalog.gpu(GPU).host
        return [
            self._compared(run) | {"power": run.load.node_w(host)} for run in self._runs(rows, catalog, seed, advance)
        ]

    def fit(self, rows: Sequence[Row], catalog: Catalog, rng: np.random.Generator, advance: Advance) -> Fitted:
        """Fits the power of the host: by how much the node drew more than its GPUs draw in the simulation.

        What the host draws without work follows from the idle node and is not fitted; the part that comes with work,
        and with each running request, is: non-negative least squares of the relative error. The intervals are of
        configurations drawn anew.

        Raises:
            InputError: There is no row.
        """
        if not rows:
            raise InputError(self.name, "no row to fit to", "Give at least one")
        runs = self._runs(rows, catalog, int(rng.integers(2**31)), advance)
        idle_w = max(IDLE_NODE_W - idle_gpus_w(node(catalog, self.max_tokens)), 0.0)
        load = np.array([[run.load.gpu_w, run.load.busy, run.load.running] for run in runs])
        node_w = np.array([row.measured["power"] for row in rows])
        fitted = _host_w(load, node_w, idle_w)
        names = list(dict.fromkeys(row.configuration for row in rows))
        of = np.array([names.index(row.configuration) for row in rows])
        resampled = []
        for _ in range(RESAMPLES):
            drawn = np.concatenate([np.flatnonzero(of == i) for i in rng.integers(len(names), size=len(names))])
            resampled.append(_host_w(load[drawn], node_w[drawn], idle_w))
        low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
        figures = dict(zip(FIGURES, np.round(fitted, 3).tolist(), strict=True))
        host = catalog.gpu(GPU).host.model_copy(update=figures)
        compared = [self._compared(run) | {"power": run.load.node_w(host)} for run in runs]
        return Fitted(
            tables={"gpus": {GPU: {"like": GPU, "host": figures}}},
            intervals={f"gpus.{GPU}.host.{f}": (float(low[i]), float(high[i])) for i, f in enumerate(FIGURES)},
            residuals={
                q: [c[q] / row.measured[q] - 1 for c, row in zip(compared, rows, strict=True)] for q in self.quantities
            },
        )

    @abstractmethod
    def _row(self, line: Line) -> Row:
        """A line of a file."""

    @abstractmethod
    def _play(self, blueprint: Blueprint, given: Mapping[str, Any], rng: np.random.Generator) -> Run:
        """Simulates what a row gives."""

    @abstractmethod
    def _compared(self, run: Run) -> dict[str, float]:
        """Quantities of a run, without its power."""

    def _runs(self, rows: Sequence[Row], catalog: Catalog, seed: int, advance: Advance) -> list[Run]:
        blueprint = node(catalog, self.max_tokens)
        known: dict[str, Run] = {}
        runs = []
        for done, row in enumerate(rows, 1):
            key = repr(sorted(row.given.items()))
            if key not in known:
                known[key] = self._play(blueprint, row.given, np.random.default_rng([seed, crc32(key.encode())]))
            runs.append(known[key])
            advance(done)
        return runs


def groups(**others: str) -> dict[str, str]:
    """What errors of a row are broken down by: GPU, model and others."""
    return {"gpu": GPU, "model": MODEL, **others}


def band(value: float, edges: Sequence[int], unit: str) -> str:
    """The range among ascending edges that a value falls into, such as ``11-30 req/s``."""
    low = 0
    for high in edges:
        if value <= high:
            return f"{low + 1}-{high} {unit}"
        low = high
    return f"over {low} {unit}"


def _host_w(load: Floats, node_w: Floats, idle_w: float) -> Floats:
    """Watts idle, with work, and of a request, that explain the node's power best; none is negative.

    Above idle the node's meter counts the host twice.
    """
    missing = (node_w - load[:, 0] - idle_w) / node_w
    per_watt = 2 * load[:, 1:] / node_w[:, None]
    best, least = np.zeros(2), float(missing @ missing)
    for chosen in ([0], [1], [0, 1]):
        watts, *_ = np.linalg.lstsq(per_watt[:, chosen], missing)
        rest = missing - per_watt[:, chosen] @ watts
        if (watts >= 0).all() and rest @ rest < least:
            best, least = np.zeros(2), float(rest @ rest)
            best[chosen] = watts
    return np.concatenate([[idle_w], best])
