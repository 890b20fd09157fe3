"""What a scenario says of its workload, and the request table that comes of it."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from ..errors import InputError
from ..units import MAX_TIME_S, PS_PER_S, to_ps
from .arrivals import AnyArrivals
from .closed_loop import ClosedLoop
from .combine import merge, repeat
from .fitted import FittedArrivals, FittedLengths
from .formats import read_workload
from .kinds import Part
from .lengths import AnyLengths
from .markov import Markov
from .modulation import AnyModulation
from .table import ANY_MODEL, RequestTable
from .traces import resolve

__all__ = ["ClosedLoop", "FittedArrivals", "FittedLengths", "Markov", "StreamSpec", "WorkloadSpec", "generate"]


class StreamSpec(Part):
    """One source of requests: a trace file, or a length model and an arrival process.

    Attributes:
        file: A trace: a path (relative to the scenario), or the name of a fetched one (`llmcluster data list`).
        format: Its format; told from the file by default.
        rate_factor: Plays the file this many times as fast.
        start_s: Where in the file the run starts, seconds after its first arrival (of the sped-up file), or "random".
        repeat: Play a file that is shorter than the run again from its beginning.
        requests: Prompt and output lengths.
        arrivals: When requests are sent.
        modulation: Multiplies the rate of the arrivals.
        model: Model asked for; any by default.
        slo_class: SLO class; the scenario's first by default.
        priority: Smaller is served first under priority scheduling.
        timeout_s: Patience from arrival to the first token, seconds; endless by default.
    """

    file: str | None = None
    format: str | None = None
    rate_factor: float = Field(1.0, gt=0)
    start_s: float | Literal["random"] = 0.0
    repeat: bool = False
    requests: AnyLengths | None = None
    arrivals: AnyArrivals | None = None
    modulation: AnyModulation | None = None
    model: str | None = None
    slo_class: str | None = None
    priority: int = Field(0, ge=-(2**15), lt=2**15)
    timeout_s: float | None = Field(None, gt=0, lt=MAX_TIME_S)

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._check_source()
        return self

    def _check_source(self) -> None:
        generated = {"requests", "arrivals", "modulation"} & self.given
        of_file = {"format", "rate_factor", "start_s", "repeat"} & self.given
        if self.file is not None and generated:
            raise ValueError(f"file excludes {', '.join(sorted(generated))}")
        if self.file is None and (self.requests is None or self.arrivals is None):
            raise ValueError("give either file, or both requests and arrivals")
        if self.file is None and of_file:
            raise ValueError(f"{', '.join(sorted(of_file))} only go with file")
        if isinstance(self.start_s, float) and self.start_s < 0:
            raise ValueError("start_s must not be negative")

    @property
    def given(self) -> set[str]:
        """Names of the fields that differ from their defaults."""
        return {name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default}


class WorkloadSpec(StreamSpec):
    """A workload: one stream written straight into it, or several under ``streams``.

    Attributes:
        streams: The streams, merged by arrival.
    """

    streams: tuple[StreamSpec, ...] = ()

    def _check_source(self) -> None:
        if not self.streams:
            super()._check_source()
        elif others := self.given - {"streams"}:
            raise ValueError(f"move {', '.join(sorted(others))} into the streams")


def generate(
    spec: WorkloadSpec,
    duration_s: float,
    rng: np.random.Generator,
    models: tuple[str, ...] = (),
    slo_classes: tuple[str, ...] = ("default",),
    folder: Path = Path(),
) -> RequestTable:
    """Draws (or reads) the requests of one run.

    Args:
        spec: The workload.
        duration_s: Length of the run, seconds.
        rng: Source of randomness; each stream gets a child of it, so that streams do not disturb one another.
        models: The scenario's models, which streams name.
        slo_classes: The scenario's SLO classes, which streams name.
        folder: Where relative trace paths start.

    Returns:
        Requests that arrive in ``[0, duration_s)``.

    Raises:
        InputError: A stream names an unknown model or SLO class, or its file does not hold.
    """
    if not 0 < duration_s < MAX_TIME_S:
        raise InputError("duration_s", f"{duration_s} is out of range", f"Give seconds above 0 and below {MAX_TIME_S}")
    streams = spec.streams or (spec,)
    tables = []
    for index, (stream, child) in enumerate(zip(streams, rng.spawn(len(streams)), strict=True)):
        where = f"workload.streams[{index}]" if spec.streams else "workload"
        if stream.file is not None:
            table = _play(stream, stream.file, duration_s, child, folder)
        elif stream.arrivals is not None and stream.requests is not None:
            table = stream.arrivals.requests(duration_s, stream.requests, stream.modulation, child)
        tables.append(_label(table, stream, where, models, slo_classes))
    return merge(tables)


def _play(stream: StreamSpec, file: str, duration_s: float, rng: np.random.Generator, folder: Path) -> RequestTable:
    """The part of a trace that the run covers."""
    path = resolve(file, folder)
    stat = path.stat() if path.exists() else None
    table = _read(path, stream.format, stat and stat.st_mtime_ns).scaled(stream.rate_factor)
    if stream.start_s == "random":
        start_s = rng.uniform(0, table.duration_s if stream.repeat else max(0.0, table.duration_s - duration_s))
    else:
        start_s = stream.start_s
    if start_s > table.duration_s:
        raise InputError("workload.start_s", f"{start_s} is past the trace's end", f"Stay below {table.duration_s:.0f}")
    if stream.repeat and start_s + duration_s > table.duration_s:
        turns = int((start_s + duration_s) / table.duration_s) + 1 if table.duration_s else 2
        table = repeat(table, turns)
    start_ps = to_ps(start_s)
    return table.between(start_ps, start_ps + to_ps(duration_s))


@lru_cache(maxsize=4)
def _read(path: Path, format: str | None, _changed_ns: int | None) -> RequestTable:
    """Reads a trace once while it does not change: an environment replays it at every reset."""
    return read_workload(path, format)


def _label(
    table: RequestTable, stream: StreamSpec, where: str, models: tuple[str, ...], slo_classes: tuple[str, ...]
) -> RequestTable:
    """Points the rows to the scenario's names; a trace's own model names count where the scenario has them."""
    if stream.model is not None:
        model = np.full(len(table), _index(stream.model, models, f"{where}.model", "model"), np.int16)
    else:
        theirs = [models.index(name) if name in models else ANY_MODEL for name in table.models]
        model = np.array([*theirs, ANY_MODEL], np.int16)[table.model]  # -1 picks the last: any model
    slo = 0 if stream.slo_class is None else _index(stream.slo_class, slo_classes, f"{where}.slo_class", "SLO class")
    timeout = table.timeout_ps
    if stream.timeout_s is not None:
        timeout = np.full(len(table), round(stream.timeout_s * PS_PER_S), np.int64)
    return replace(
        table,
        model=model,
        slo_class=np.full(len(table), slo, np.int16),
        priority=np.full(len(table), stream.priority, np.int16),
        timeout_ps=timeout,
        models=models,
        slo_classes=slo_classes,
    )


def _index(name: str, names: tuple[str, ...], where: str, what: str) -> int:
    if name not in names:
        raise InputError(where, f"the scenario has no {what} {name!r}", f"Give one of {', '.join(names) or '(none)'}")
    return names.index(name)
