"""Measured CSV files: rows with their place, and figures that name file, line and column where they do not hold."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...simulator.errors import InputError
from ...simulator.files import readable


@dataclass(frozen=True)
class Line:
    """One row of a file.

    Attributes:
        place: File and line, ``file.csv:12``; lines count from 1, the header among them.
        cells: Text by column.
    """

    place: str
    cells: Mapping[str, str]

    def text(self, column: str) -> str:
        """A cell that must not be empty."""
        if not self.cells[column]:
            raise InputError(self.place, f"{column} is empty", "Fill it in, or remove the line")
        return self.cells[column]

    def number(self, column: str) -> float:
        """A cell as a finite number."""
        text = self.text(column)
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise InputError(self.place, f"{column} is {text!r}, not a number", "Correct or remove the line")
        return value

    def positive(self, column: str) -> float:
        """A cell as a finite number above 0."""
        value = self.number(column)
        if value <= 0:
            raise InputError(self.place, f"{column} is {value:g}", "It must be positive: correct or remove the line")
        return value

    def whole(self, column: str) -> int:
        """A cell as a whole number above 0."""
        value = self.positive(column)
        if value != int(value):
            raise InputError(self.place, f"{column} is {value:g}", "It must be a whole number: correct the line")
        return int(value)


def read_lines(path: Path, columns: Sequence[str]) -> list[Line]:
    """Reads a CSV file with a header; columns beyond those named are kept too.

    Args:
        path: The file.
        columns: Columns that it must have.

    Returns:
        Its rows, at least one.

    Raises:
        InputError: The file cannot be read, lacks a column or has no rows, or a line has too few or many fields.
    """
    readable(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            if missing := [name for name in columns if name not in header]:
                raise InputError(
                    f"{path}:1", f"no column {', '.join(missing)}", f"The header must name {', '.join(columns)}"
                )
            lines = []
            for fields in reader:
                if not fields:
                    continue
                place = f"{path}:{reader.line_num}"
                if len(fields) != len(header):
                    problem = f"{len(fields)} fields where the header has {len(header)}"
                    raise InputError(place, problem, "The file is cut or damaged: mend or remove the line")
                lines.append(Line(place, {k: v.strip() for k, v in zip(header, fields, strict=True)}))
    except (csv.Error, UnicodeDecodeError) as fault:
        raise InputError(str(path), f"is no CSV file ({fault})", "Give a CSV file with a header") from fault
    if not lines:
        raise InputError(str(path), "no row after the header", "Give a file with measured rows")
    return lines
