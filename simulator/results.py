"""Results of a run as columns, and Parquet files of them that grow while the run goes on."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from .errors import InputError
from .files import whole
from .kernels.state import BIN, J_PER_UNIT, REQUEST, REQUEST_STATUS_NAMES, STATUS_NAMES, Records
from .metrics import SloLimits, within

ROW_GROUP = 262_144
BLOCK = 32_768
"""Records whose columns are taken at once: so many stay in the processor's cache from column to column."""

WHOLE_NUMBERS = {
    "arrival_ps": ("arrival_ps", np.int64),
    "prompt_tokens": ("prompt", np.int32),
    "output_tokens": ("output", np.int32),
    "admit_ps": ("admit_ps", np.int64),
    "first_token_ps": ("first_token_ps", np.int64),
    "finish_ps": ("finish_ps", np.int64),
    "preemptions": ("preemptions", np.int32),
}
"""Columns taken from the engine's records as they are: its name of each, and the type to keep."""
ADDED_UP = ("energy_j", "prompt_tokens", "output_tokens")
"""Columns of a slot's seconds that add up over time."""


@dataclass(frozen=True)
class Names:
    """What the numbers in results stand for.

    Attributes:
        slots: Names of the slots; -1 is none.
        models: Names of the models; -1 is any.
        slo_classes: Names of the SLO classes.
    """

    slots: Sequence[str]
    models: Sequence[str]
    slo_classes: Sequence[str] = ("default",)


def request_columns(records: Records, slo_class: NDArray[np.integer[Any]], names: Names) -> dict[str, Any]:
    """What became of each request; times in picoseconds since the start, -1 for what did not happen.

    Args:
        records: Requests as the engine has them.
        slo_class: SLO class of each.
        names: What their numbers stand for.

    Returns:
        Columns by name.
    """
    taken = {name: records[field].astype(kind) for name, (field, kind) in WHOLE_NUMBERS.items()}
    named = {
        "model": _named(records["model"], (*names.models, "any")),
        "slo_class": _named(slo_class, names.slo_classes),
        "status": _named(records["status"], REQUEST_STATUS_NAMES),
        "slot": _named(records["slot"], (*names.slots, "")),
    }
    before = ("arrival_ps", "prompt_tokens", "output_tokens")
    return {name: taken.pop(name) for name in before} | named | taken


def slot_columns(
    first_s: int, bins: Records, status: NDArray[np.integer[Any]], names: Names, every_s: int = 1
) -> dict[str, Any]:
    """The record of every slot over time; ``energy_j`` of a second is its mean power in watts.

    Args:
        first_s: Second of the first row.
        bins: Per second and slot, (seconds, R) BIN.
        status: Life of the slots, (seconds, R).
        names: Names of the slots.
        every_s: Seconds to a row: energy and tokens add up, the status is the last one, all else is the mean. The last
            row may stand for fewer.

    Returns:
        Columns by name, a row per interval and slot; ``second`` is when the interval begins.
    """
    starts = np.arange(0, len(bins), every_s)
    ends = np.minimum(starts + every_s, len(bins))
    slots = len(names.slots)
    columns: dict[str, Any] = {
        "second": np.repeat(first_s + starts, slots),
        "slot": _named(np.tile(np.arange(slots), len(starts)), names.slots),
        "status": _named(status[ends - 1].ravel(), STATUS_NAMES),
    }
    for name in ("energy_j", *(name for name in BIN.names or () if name != "energy")):
        column = bins["energy"] * J_PER_UNIT if name == "energy_j" else np.ascontiguousarray(bins[name])
        columns[name] = (column if every_s == 1 else _gathered(name, column, starts, ends)).ravel()
    return columns


def _gathered(name: str, column: NDArray[Any], starts: NDArray[Any], ends: NDArray[Any]) -> NDArray[Any]:
    """Sums or means of a column (seconds, R) over intervals."""
    wide = column.astype(np.int64 if np.issubdtype(column.dtype, np.integer) else np.float64)
    sums = np.add.reduceat(wide, starts, axis=0) if len(starts) else wide
    return sums if name in ADDED_UP else sums / (ends - starts)[:, None]


class ResultsWriter:
    """Writes ``requests.parquet`` and ``seconds.parquet`` into a folder, part by part.

    The files bear their names once all is written; of a run that fails they leave nothing. Use it as a context manager.

    Args:
        folder: Where to; made if missing.
        names: What the numbers in the results stand for.
        part: Writes ``requests/PART.parquet`` and ``seconds/PART.parquet`` instead, to be one of several that are
            read as one data set.
        every_s: Seconds to a row of the slots' record.
        limits: Adds a column ``met_slo`` by these limits of the SLO classes.
    """

    def __init__(
        self, folder: Path, names: Names, part: str | None = None, every_s: int = 1, limits: SloLimits | None = None
    ) -> None:
        if every_s < 1:
            raise InputError("every_s", f"{every_s} is not positive", "Give whole seconds, at least 1")
        self._names, self._every_s, self._limits = names, every_s, limits
        suffix = ".parquet" if part is None else f"/{part}.parquet"
        self.requests_path, self.seconds_path = folder / f"requests{suffix}", folder / f"seconds{suffix}"
        self._next_s = 0
        self._bins: list[Records] = []
        self._status: list[NDArray[np.integer[Any]]] = []

    def __enter__(self) -> Self:
        """Opens the files under other names."""
        nothing = np.zeros(0, np.int64)
        size = len(self._names.slots)
        with ExitStack() as stack:
            columns = self._request_columns(nothing, np.zeros(0, REQUEST), nothing)
            self._requests = _Growing(self.requests_path, columns, stack)
            columns = slot_columns(0, np.zeros((0, size), BIN), np.zeros((0, size), int), self._names, self._every_s)
            self._seconds = _Growing(self.seconds_path, columns, stack)
            self._open = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Names the files, or removes them if there was a fault."""
        with self._open as stack:
            if fault is None:
                self._write_seconds(all_of_them=True)
                self._requests.flush()
                self._seconds.flush()
            else:
                stack.__exit__(kind, fault, trace)

    def requests(self, ids: ArrayLike, records: Records, slo_class: ArrayLike | None = None) -> None:
        """Appends requests.

        Args:
            ids: Number of each in the workload.
            records: What became of each, in the engine's records.
            slo_class: SLO class of each; the first by default.
        """
        numbers = np.asarray(ids, np.int64)
        classes = np.zeros(len(numbers), np.int16) if slo_class is None else np.asarray(slo_class)
        for first in range(0, len(numbers), BLOCK):
            block = slice(first, first + BLOCK)
            self._requests.append(self._request_columns(numbers[block], records[block], classes[block]))

    def seconds(self, bins: Records, status: ArrayLike) -> None:
        """Appends the seconds that follow on those before: (seconds, R) BIN, and (seconds, R) life of the slots."""
        self._bins.append(np.asarray(bins))
        self._status.append(np.asarray(status))
        self._write_seconds(all_of_them=False)

    def _request_columns(self, ids: NDArray[np.int64], records: Records, slo_class: NDArray[Any]) -> dict[str, Any]:
        columns = {"id": ids} | request_columns(records, slo_class, self._names)
        if self._limits is not None:
            columns["met_slo"] = within(records, slo_class, self._limits)
        return columns

    def _write_seconds(self, all_of_them: bool) -> None:
        held = sum(map(len, self._bins))
        full = held if all_of_them else held - held % self._every_s
        if full == 0:
            return
        bins, status = np.concatenate(self._bins), np.concatenate(self._status)
        self._seconds.append(slot_columns(self._next_s, bins[:full], status[:full], self._names, self._every_s))
        self._next_s += full
        self._bins, self._status = [bins[full:].copy()], [status[full:].copy()]


class _Growing:
    """A Parquet file whose rows come in small parts; whole numbers are stored as differences.

    Args:
        path: The file; its folder is made if missing.
        columns: What rows look like, without rows.
        context: Closes and names the file, or removes it.
    """

    def __init__(self, path: Path, columns: dict[str, Any], context: ExitStack) -> None:
        self._held: list[pa.Table] = []
        self._rows = 0
        schema = pa.table(columns).schema
        named = [field.name for field in schema if pa.types.is_dictionary(field.type)]
        differences = {field.name: "DELTA_BINARY_PACKED" for field in schema if pa.types.is_integer(field.type)}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = context.enter_context(whole(path))
        writer = pq.ParquetWriter(partial, schema, use_dictionary=named, column_encoding=differences)
        self._writer = context.enter_context(writer)

    def append(self, columns: dict[str, Any]) -> None:
        """Adds rows."""
        self._held.append(pa.table(columns))
        self._rows += self._held[-1].num_rows
        if self._rows >= ROW_GROUP:
            self.flush()

    def flush(self) -> None:
        """Writes the rows that are held as a row group."""
        if self._rows:
            self._writer.write_table(pa.concat_tables(self._held))
        self._held, self._rows = [], 0


def _named(codes: NDArray[np.integer[Any]], names: Sequence[str]) -> pa.DictionaryArray:
    """Names by number; -1 is the last one."""
    numbers = codes.astype(np.int16)
    numbers[numbers < 0] = len(names) - 1
    return pa.DictionaryArray.from_arrays(pa.array(numbers), pa.array(list(names), pa.string()))
