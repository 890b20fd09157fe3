"""Records GPUs and servers as pairs of CSV that forecasts and calibrations read: own hardware becomes own figures.

Of each slot there are two files, named after GPU, model and tensor parallelism as the readers want it:

* ``…_power.csv``: ``epoch_s,power_w,temp_c,sm_clock_mhz,cap_w``
* ``…_engine.csv``: ``epoch_s,num_requests_running,num_requests_waiting,prompt_tokens_total,generation_tokens_total,
  iterations_total``

Lines are in the file as soon as they are known, so that a recording that is killed keeps what it has. Files that are
there already are left alone.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from ..simulator.errors import InputError
from .meter import GpuMeter
from .sampler import Look, Sampler

POWER = ("epoch_s", "power_w", "temp_c", "sm_clock_mhz", "cap_w")
ENGINE = (
    "epoch_s",
    "num_requests_running",
    "num_requests_waiting",
    "prompt_tokens_total",
    "generation_tokens_total",
    "iterations_total",
)


@dataclass(frozen=True)
class Recorded:
    """A slot to record.

    Attributes:
        name: Its name.
        gpu: Its GPU by the catalogue's name.
        model: Its model by the catalogue's name.
        gpus: Its GPUs by their names in the configuration.
    """

    name: str
    gpu: str
    model: str
    gpus: tuple[str, ...]

    def stem(self, out: Path) -> str:
        """Beginning of its files' names: what the readers tell GPU, model and GPUs of an engine from."""
        slot = re.sub(r"[^A-Za-z0-9]+", "-", self.name).strip("-")
        return f"{out.stem}_{self.gpu}_{self.model}_tp{len(self.gpus)}_{slot}"


class Recorder:
    """Writes what a sampler sees.

    Args:
        slots: What to record.
        out: Where to: folder and beginning of the names.
        wall: Seconds since 1970 at the first look; later ones follow the monotonic clock, which never jumps.

    Attributes:
        files: The files.
        lines: Lines of power written so far.

    Raises:
        InputError: A file is there already, or cannot be written.
    """

    def __init__(self, slots: Sequence[Recorded], out: Path, wall: Callable[[], float] = time.time) -> None:
        self._slots, self._wall = slots, wall
        self._meters = {gpu: GpuMeter(averages=True) for slot in slots for gpu in slot.gpus}
        self._offset_s: float | None = None
        self._told: dict[str, float] = {}
        self.files: list[Path] = []
        self.lines = 0
        self._open: dict[tuple[str, str], TextIO] = {}
        try:
            for slot in slots:
                for kind, columns in (("power", POWER), ("engine", ENGINE)):
                    path = out.with_name(f"{slot.stem(out)}_{kind}.csv")
                    file = path.open("x", encoding="utf-8", buffering=1)
                    self._open[slot.name, kind] = file
                    self.files.append(path)
                    file.write(",".join(columns) + "\n")
        except OSError as fault:
            self.close()
            for path in self.files:  # those that were made just now: a second try is not to find them
                path.unlink()
            raise InputError(f"--out {out}", f"{fault.filename}: {fault.strerror}", "Name another file") from fault

    def take(self, look: Look) -> None:
        """Writes a line of each slot whose sources have said something new."""
        if self._offset_s is None:
            self._offset_s = self._wall() - look.time_s
        for slot in self._slots:
            self._power(slot, look)
            self._engine(slot, look)

    def _power(self, slot: Recorded, look: Look) -> None:
        held = [look.gpus[gpu] for gpu in slot.gpus]
        read = [one.reading for one in held if one.reading is not None and not one.fault]
        if len(read) < len(held) or held[0].at_s <= self._told.get(slot.name, -1.0):
            return
        self._told[slot.name] = held[0].at_s
        watts = [self._meters[gpu].watts(one) for gpu, one in zip(slot.gpus, read, strict=True)]
        if any(w is None for w in watts):
            return
        caps = [one.enforced_w for one in read]
        self._write(
            slot.name,
            "power",
            held[0].at_s,
            sum(w for w in watts if w is not None),
            max((one.temperature_c for one in read if one.temperature_c is not None), default=None),
            min((one.clock_mhz for one in read if one.clock_mhz is not None), default=None),
            None if None in caps else sum(w for w in caps if w is not None),
        )
        self.lines += 1

    def _engine(self, slot: Recorded, look: Look) -> None:
        held = look.engines[slot.name]
        told = self._told.get(f"{slot.name} engine", -1.0)
        if held.reading is None or held.fault or held.at_s <= told:
            return
        self._told[f"{slot.name} engine"] = held.at_s
        one = held.reading
        counters = (one.prompt_tokens, one.output_tokens, one.iterations)
        self._write(slot.name, "engine", held.at_s, one.running, one.waiting, *counters)

    def _write(self, slot: str, kind: str, at_s: float, *values: float | None) -> None:
        assert self._offset_s is not None
        cells = ["" if value is None else f"{value:.10g}" for value in values]
        self._open[slot, kind].write(f"{self._offset_s + at_s:.3f},{','.join(cells)}\n")

    def close(self) -> None:
        """Closes all files."""
        for file in self._open.values():
            file.close()

    def __enter__(self) -> Self:
        """The recorder itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, at: TracebackType | None) -> None:
        """Closes all files."""
        self.close()


def record(
    sampler: Sampler, recorder: Recorder, period_s: float, duration_s: float | None, stop: threading.Event
) -> None:
    """Looks every ``period_s`` and records, for ``duration_s`` or until ``stop``."""
    began_s = due_s = time.monotonic()
    while not stop.is_set() and (duration_s is None or due_s - began_s < duration_s):
        recorder.take(sampler.look())
        due_s = max(due_s + period_s, time.monotonic() - period_s)
        stop.wait(max(due_s - time.monotonic(), 0.0))
