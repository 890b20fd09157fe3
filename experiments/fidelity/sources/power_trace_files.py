"""Pairs of a power trace and an engine trace on one clock."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ....simulator.catalog import Catalog
from ....simulator.errors import InputError
from ..csv_rows import read_lines
from ..names import USUAL, mentioned

F64 = NDArray[np.float64]

POWER = ("epoch_s", "power_w")
ENGINE = (
    "epoch_s",
    "num_requests_running",
    "prompt_tokens_total",
    "generation_tokens_total",
    "iterations_total",
)
FEWEST_SAMPLES = 8


@dataclass(frozen=True)
class Trace:
    """A pair of traces.

    Attributes:
        place: The files.
        name: What both files' names have in common.
        gpu: Name of the GPU in the catalogue.
        model: Name of the model in the catalogue.
        power: Time in seconds and watts (n, 2), ascending in time.
        engine: Columns of ``ENGINE`` (m, 5), ascending in time, counters never falling.
    """

    place: str
    name: str
    gpu: str
    model: str
    power: F64
    engine: F64

    @property
    def tp(self) -> int:
        """GPUs of the engine, from a word such as ``tp4``."""
        found = re.search(r"(?:^|[^a-z0-9])tp(\d+)(?:[^a-z0-9]|$)", self.name.lower())
        return int(found.group(1)) if found else 1


def read_traces(files: Sequence[Path], catalog: Catalog) -> list[Trace]:
    """Pairs files by name: what is left without ``_power`` and ``_engine``.

    A single pair may differ in more, but the name of its power trace tells GPU and model. A family alone is as in
    :data:`~..names.USUAL`.

    Args:
        files: The files, two of each pair.
        catalog: GPUs and models that the names may tell.

    Raises:
        InputError: A file has neither layout or lacks its other half, a line does not hold, or a name does not tell
            what was measured.
    """
    halves: dict[str, dict[str, tuple[Path, F64]]] = {}
    for path in files:
        kind, columns = _kind(path)
        name = re.sub(r"_?(power|engine)", "", path.stem) if len(files) > 2 else "pair"
        halves.setdefault(name, {})[kind] = (path, _numbers(path, columns))
    traces = []
    for pair in halves.values():
        if len(pair) != 2:
            (path, _), *_ = pair.values()
            problem = "the other half of the pair is missing, or given twice"
            raise InputError(str(path), problem, "Give …_power.csv and …_engine.csv of the same run")
        (power_path, power), (engine_path, engine) = pair["power"], pair["engine"]
        _check(power_path, power, engine_path, engine)
        name = re.sub(r"_?power", "", power_path.stem)
        place = f"{power_path} + {engine_path.name}"
        gpu = mentioned(name, catalog.gpus) or USUAL.get(mentioned(name, USUAL) or "")
        model = mentioned(name, catalog.models)
        if gpu is None or model is None:
            problem = f"the name does not tell the {'model' if gpu else 'GPU'}"
            remedy = "Name both files after GPU, model and, if more than one, GPUs, such as a100_qwen3-8b_tp1_…; "
            raise InputError(place, problem, remedy + "give what the catalogue lacks with --catalog FILE")
        traces.append(Trace(place, name, gpu, model, power, engine))
    return traces


def _kind(path: Path) -> tuple[str, tuple[str, ...]]:
    names = set(read_lines(path, ())[0].cells)
    for kind, columns in (("engine", ENGINE), ("power", POWER)):
        if names.issuperset(columns):
            return kind, columns
    remedy = f"The header must name {', '.join(POWER)}; or {', '.join(ENGINE)}"
    raise InputError(f"{path}:1", "is neither a power trace nor an engine trace", remedy)


def _numbers(path: Path, columns: Sequence[str]) -> F64:
    lines = read_lines(path, columns)
    numbers = np.array([[line.number(column) for column in columns] for line in lines])
    falls = np.flatnonzero(np.diff(numbers[:, 0]) <= 0)
    if len(falls):
        raise InputError(lines[falls[0] + 1].place, "goes back in time", "Sort the lines by epoch_s, each once")
    low = np.flatnonzero((numbers[:, 1:] < 0).any(axis=1))
    if len(low):
        raise InputError(lines[low[0]].place, "has a negative figure", "Correct or remove the line")
    counters = np.flatnonzero((np.diff(numbers[:, 2:], axis=0) < 0).any(axis=1))
    if len(counters):
        remedy = "The engine was restarted: split the trace there"
        raise InputError(lines[counters[0] + 1].place, "a counter falls", remedy)
    return numbers


def _check(power_path: Path, power: F64, engine_path: Path, engine: F64) -> None:
    for path, numbers in ((power_path, power), (engine_path, engine)):
        if len(numbers) < FEWEST_SAMPLES:
            raise InputError(str(path), f"only {len(numbers)} samples", f"Give {FEWEST_SAMPLES} or more")
    if power[-1, 0] <= engine[0, 0] or engine[-1, 0] <= power[0, 0]:
        raise InputError(str(engine_path), f"does not overlap with {power_path.name} in time", "Give both of one run")
