"""Columns of CSV traces: read at full speed; where that fails, the line and column at fault are looked up."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pv
from numpy.typing import NDArray

from ...errors import InputError

MAX_TOKENS = 2**31 - 1
HEADER_LINES = 1


def read_columns(path: Path, types: Mapping[str, pa.DataType]) -> pa.Table:
    """Reads the named columns of a CSV file with a header.

    Args:
        path: The file.
        types: Column names and Arrow types.

    Returns:
        The columns, without nulls, at least one row.

    Raises:
        InputError: A column is missing, a line has too few or too many fields, or a value is not of its type.
    """
    try:
        table = _read(path, types)
    except KeyError as fault:
        raise InputError(f"{path}:1", f"no column {_missing(path, types)}", _columns_remedy(types)) from fault
    except ValueError as fault:  # Arrow's own, or bytes that are no text
        _raise_bad_line(path)
        _raise_bad_value(path, types)
        raise InputError(str(path), f"not a CSV file ({fault})", "Download it again") from fault
    if table.num_rows == 0:
        raise InputError(str(path), "no request after the header", "Download it again")
    for name in types:
        if table[name].null_count:
            row = int(pc.index(pc.is_null(table[name]), True).as_py())
            raise InputError(f"{path}:{line(row)}", f"{name} is empty", "Fill it in, or remove the line")
    return table


def line(row: int) -> int:
    """Line of a row of the table, counted from 1."""
    return row + 1 + HEADER_LINES


def positive_tokens(path: Path, table: pa.Table, name: str) -> NDArray[np.int64]:
    """A column of token counts, each from 1 to 2**31 - 1."""
    tokens = np.asarray(table[name].to_numpy(), np.int64)
    bad = np.flatnonzero((tokens < 1) | (tokens > MAX_TOKENS))
    if len(bad):
        raise InputError(
            f"{path}:{line(bad[0])}",
            f"{name} is {tokens[bad[0]]}",
            "Token counts are at least 1: correct or remove the line",
        )
    return tokens


def from_first(path: Path, time: NDArray[np.int64], name: str) -> NDArray[np.int64]:
    """Times counted from the first one; raises `InputError` at the first line that goes back."""
    back = np.flatnonzero(np.diff(time) < 0)
    if len(back):
        raise InputError(
            f"{path}:{line(int(back[0]) + 1)}",
            f"{name} is earlier than on the line before",
            f"Sort the lines by {name}",
        )
    shifted: NDArray[np.int64] = time - time[0]
    return shifted


def decimal_ps(path: Path, table: pa.Table, name: str) -> NDArray[np.int64]:
    """A column of decimal seconds, read as strings, to the nearest picosecond without passing through floats."""
    column = table[name].combine_chunks()
    wide = pa.decimal256(66, 40)
    try:
        exact = pc.round(pc.cast(column, wide), 12)
        narrow = pc.cast(exact, pa.decimal128(38, 12))
    except pa.ArrowInvalid:
        row = _first_bad(column, wide)
        value = column[row].as_py()
        raise InputError(f"{path}:{line(row)}", f"{name} is {value!r}", "Give seconds as a decimal number") from None
    words = np.frombuffer(narrow.buffers()[1], np.int64).reshape(-1, 2)[narrow.offset : narrow.offset + len(narrow)]
    overflow = np.flatnonzero(words[:, 1] != words[:, 0] >> 63)
    if len(overflow):
        where = f"{path}:{line(int(overflow[0]))}"
        raise InputError(where, f"{name} is past 106 days", "Give seconds, and count them from the first arrival")
    return words[:, 0].copy()


def ps_decimal(time_ps: NDArray[np.int64]) -> pa.Array:
    """Picoseconds as decimal seconds with all twelve digits; the inverse of `decimal_ps`."""
    words = np.stack([time_ps, time_ps >> 63], axis=1)
    return pa.Array.from_buffers(pa.decimal128(38, 12), len(time_ps), [None, pa.py_buffer(np.ascontiguousarray(words))])


def _read(path: Path, types: Mapping[str, pa.DataType]) -> pa.Table:
    return pv.read_csv(
        path,
        parse_options=pv.ParseOptions(ignore_empty_lines=False),
        convert_options=pv.ConvertOptions(
            column_types=dict(types), include_columns=list(types), null_values=[""], strings_can_be_null=True
        ),
    )


def _missing(path: Path, types: Mapping[str, pa.DataType]) -> str:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        header = file.readline().strip().split(",")
    return ", ".join(name for name in types if name not in [field.strip('"') for field in header])


def _columns_remedy(types: Mapping[str, pa.DataType]) -> str:
    return f"The header must name {', '.join(types)}"


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
    try:
        strings = _read(path, dict.fromkeys(types, pa.string()))
    except ValueError:
        return
    for name, wanted in types.items():
        column = strings[name].combine_chunks()
        row = _first_bad(column, wanted)
        if row < len(column):
            kind = "an integer" if pa.types.is_integer(wanted) else "a time like 2023-11-16 18:15:46.6805900"
            raise InputError(
                f"{path}:{line(row)}", f"{name} is {column[row].as_py()!r}, not {kind}", "Correct or remove the line"
            )


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
