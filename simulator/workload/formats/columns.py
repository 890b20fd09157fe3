"""Columns of CSV traces: read at full speed; where that fails, the line and column at fault are looked up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pv
from numpy.typing import NDArray

from ...errors import InputError
from ...files import whole

MAX_TOKENS = 2**31 - 1
HEADER_LINES = 1
BLOCK_BYTES = 1 << 20
"""What is parsed at once where a file is read in parts; Arrow reads some thirty blocks ahead."""

I64 = NDArray[np.int64]


@dataclass(frozen=True)
class Columns:
    """Named columns of consecutive rows of a CSV file, without nulls.

    Attributes:
        path: The file.
        table: The columns.
        first_row: Number of the first row in the file, counted from 0.
    """

    path: Path
    table: pa.Table
    first_row: int

    def place(self, row: int) -> str:
        """File and line of a row of these, for messages; lines count from 1."""
        return f"{self.path}:{self.first_row + int(row) + 1 + HEADER_LINES}"

    def tokens(self, name: str, counts: NDArray[np.bool_] | None = None) -> I64:
        """A column of token counts, each from 1 to 2**31 - 1; of the rows that count only, by default all."""
        tokens = np.asarray(self.table[name].to_numpy(), np.int64)
        rows = np.arange(len(tokens)) if counts is None else np.flatnonzero(counts)
        tokens = tokens[rows]
        bad = np.flatnonzero((tokens < 1) | (tokens > MAX_TOKENS))
        if len(bad):
            remedy = "Token counts are at least 1: correct or remove the line"
            raise InputError(self.place(rows[bad[0]]), f"{name} is {tokens[bad[0]]}", remedy)
        return tokens

    def decimal_ps(self, name: str) -> I64:
        """A column of decimal seconds, read as strings, to the nearest picosecond without passing through floats."""
        column = self.table[name].combine_chunks()
        wide = pa.decimal256(66, 40)
        try:
            exact = pc.round(pc.cast(column, wide), 12)
            narrow = pc.cast(exact, pa.decimal128(38, 12))
        except pa.ArrowInvalid:
            row = _first_bad(column, wide)
            problem = f"{name} is {column[row].as_py()!r}"
            raise InputError(self.place(row), problem, "Give seconds as a decimal number") from None
        words = np.frombuffer(narrow.buffers()[1], np.int64).reshape(-1, 2)
        words = words[narrow.offset : narrow.offset + len(narrow)]
        overflow = np.flatnonzero(words[:, 1] != words[:, 0] >> 63)
        if len(overflow):
            remedy = "Give seconds, and count them from the first arrival"
            raise InputError(self.place(overflow[0]), f"{name} is past 106 days", remedy)
        return words[:, 0].copy()


class Clock:
    """Counts the times of a file from its first one, and refuses those that go back; part after part.

    Args:
        name: Column that holds the times.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._origin: int | None = None
        self._last: int | None = None

    def read(self, columns: Columns, time: I64, counts: NDArray[np.bool_] | None = None) -> I64:
        """Times of the rows that count (by default all), from the first such row of the file on.

        Raises:
            InputError: A line is earlier than the one before it.
        """
        before = np.concatenate([[time[0] if self._last is None else self._last], time[:-1]])
        back = np.flatnonzero(time < before)
        if len(back):
            problem = f"{self._name} is earlier than on the line before"
            raise InputError(columns.place(back[0]), problem, f"Sort the lines by {self._name}")
        self._last = int(time[-1])
        kept = time if counts is None else time[counts]
        if self._origin is None and len(kept):
            self._origin = int(kept[0])
        shifted: I64 = kept - (self._origin or 0)
        return shifted


def read_columns(path: Path, types: Mapping[str, pa.DataType], rows: int | None = None) -> Iterator[Columns]:
    """Reads the named columns of a CSV file with a header.

    Args:
        path: The file.
        types: Column names and Arrow types.
        rows: Rows of a part at most; the whole file at once by default.

    Yields:
        The columns in parts, each of one row at least.

    Raises:
        InputError: A column is missing, a line has too few or too many fields, a value is not of its type, or there
            are no rows.
    """
    first_row = 0
    for table in _tables(path, types, rows):
        columns = Columns(path, table, first_row)
        for name in types:
            if table[name].null_count:
                row = pc.index(pc.is_null(table[name]), True).as_py()
                raise InputError(columns.place(row), f"{name} is empty", "Fill it in, or remove the line")
        first_row += table.num_rows
        yield columns
    if first_row == 0:
        raise InputError(str(path), "no request after the header", "Download it again")


def ps_decimal(time_ps: I64) -> pa.Array:
    """Picoseconds as decimal seconds with all twelve digits; the inverse of `Columns.decimal_ps`."""
    words = np.stack([time_ps, time_ps >> 63], axis=1)
    return pa.Array.from_buffers(pa.decimal128(38, 12), len(time_ps), [None, pa.py_buffer(np.ascontiguousarray(words))])


def write_columns(parts: Iterable[pa.Table], path: Path) -> None:
    """Writes a CSV file out of parts of a table, at least one; no value needs quotes."""
    options = pv.WriteOptions(quoting_style="none", quoting_header="none")
    later = iter(parts)
    first = next(later)
    with whole(path) as partial, pv.CSVWriter(partial, first.schema, write_options=options) as writer:
        for part in chain([first], later):
            writer.write_table(part)


def _tables(path: Path, types: Mapping[str, pa.DataType], rows: int | None) -> Iterator[pa.Table]:
    """The columns as they come, without empty parts; Arrow's faults become those of a line and column."""
    try:
        if rows is None:
            yield from (table for table in [pv.read_csv(path, **_options(types))] if table.num_rows)
        else:
            yield from _parts(_blocks(path, types), rows)
    except KeyError as fault:
        remedy = f"The header must name {', '.join(types)}"
        raise InputError(f"{path}:1", f"no column {_missing(path, types)}", remedy) from fault
    except ValueError as fault:  # Arrow's own, or bytes that are no text
        _raise_bad_line(path)
        _raise_bad_value(path, types)
        raise InputError(str(path), f"not a CSV file ({fault})", "Download it again") from fault


def _parts(blocks: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same rows, so many at a time."""
    held: list[pa.Table] = []
    count = 0
    for block in blocks:
        held.append(block)
        count += block.num_rows
        if count >= rows:
            table = pa.concat_tables(held)
            full = count - count % rows
            yield from (table.slice(first, rows) for first in range(0, full, rows))
            held, count = [table.slice(full)], count - full
    if count:
        yield pa.concat_tables(held)


def _blocks(path: Path, types: Mapping[str, pa.DataType]) -> Iterator[pa.Table]:
    options = pv.ReadOptions(block_size=BLOCK_BYTES, use_threads=False)
    with pv.open_csv(path, read_options=options, **_options(types)) as reader:
        for batch in reader:
            yield pa.Table.from_batches([batch])


def _options(types: Mapping[str, pa.DataType]) -> dict[str, object]:
    return {
        "parse_options": pv.ParseOptions(ignore_empty_lines=False),
        "convert_options": pv.ConvertOptions(
            column_types=dict(types), include_columns=list(types), null_values=[""], strings_can_be_null=True
        ),
    }


def _missing(path: Path, types: Mapping[str, pa.DataType]) -> str:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        header = file.readline().strip().split(",")
    return ", ".join(name for name in types if name not in [field.strip('"') for field in header])


def _raise_bad_line(path: Path) -> None:
    """Raises `InputError` at the first line with fewer or more fields than the header."""
    with path.open("rb") as file:
        expected = file.readline().count(b",")
        for number, text in enumerate(file, 1 + HEADER_LINES):
            if text.strip() and (got := text.count(b",")) != expected:
                raise InputError(
                    f"{path}:{number}",
                    f"{got + 1} fields where the header has {expected + 1}",
                    "The file is cut or damaged: download it again, or remove the line",
                )


def _raise_bad_value(path: Path, types: Mapping[str, pa.DataType]) -> None:
    """Raises `InputError` at the first value that is not of its column's type."""
    first_row = 0
    for table in _strings(path, types):
        for name, wanted in types.items():
            column = table[name].combine_chunks()
            row = _first_bad(column, wanted)
            if row < len(column):
                kind = "an integer" if pa.types.is_integer(wanted) else "a time like 2023-11-16 18:15:46.6805900"
                problem = f"{name} is {column[row].as_py()!r}, not {kind}"
                raise InputError(Columns(path, table, first_row).place(row), problem, "Correct or remove the line")
        first_row += table.num_rows


def _strings(path: Path, types: Mapping[str, pa.DataType]) -> Iterator[pa.Table]:
    """The columns as text, as far as the file can be read."""
    with suppress(ValueError):
        yield from _blocks(path, dict.fromkeys(types, pa.string()))


def _first_bad(column: pa.Array, wanted: pa.DataType) -> int:
    """Index of the first string that does not cast, by bisection; the length if all do."""
    low, high = 0, len(column)
    while low < high:
        middle = (low + high) // 2
        try:
            pc.cast(column.slice(low, middle + 1 - low), wanted)
            low = middle + 1
        except pa.ArrowInvalid:
            high = middle
    return low
