"""Rows of a CSV file with the number of each line; a last line that was cut is left out."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ...files import readable

MISSING = {"", "n/a", "na", "nan", "-", "[n/a]", "[not supported]", "n/a]", "[unknown error]", "[gpu is lost]"}
"""What stands for no reading, in small letters."""


@dataclass(frozen=True)
class Rows:
    """A CSV file cut into cells.

    Attributes:
        path: The file.
        cells: Cells of each line, stripped.
        lines: Number of each line.
        warnings: What was left out.
    """

    path: Path
    cells: list[list[str]]
    lines: list[int]
    warnings: tuple[str, ...]

    def split_header(self) -> tuple[list[str], Rows]:
        """The first line, and the rest."""
        return self.cells[0], Rows(self.path, self.cells[1:], self.lines[1:], self.warnings)

    def numbers(self, column: int, name: str, unit: str = "") -> NDArray[np.float64]:
        """A column as numbers, ``nan`` where there is no reading; any unit may follow, or only the one given."""
        try:
            return np.array([float(row[column]) for row in self.cells])
        except ValueError:
            return np.array([self._number(i, column, name, unit) for i in range(len(self.cells))])

    def _number(self, row: int, column: int, name: str, unit: str) -> float:
        text = self.cells[row][column]
        if text.lower() in MISSING:
            return float("nan")
        if unit and text.partition(" ")[2] not in ("", unit):
            raise InputError(f"{self.path}:{self.lines[row]}", f"{name} is {text!r}", f"Give it in {unit}")
        try:
            return float(text.split(" ")[0])
        except ValueError:
            raise InputError(
                f"{self.path}:{self.lines[row]}", f"{name} is {text!r}, not a number", "Mend or remove the line"
            ) from None


def read_rows(path: Path) -> Rows:
    """Reads a CSV file.

    A last line without its line break was cut while it was written: even where it can be read, digits may be missing.
    It is left out, and a warning says so.

    Raises:
        InputError: The file is absent, empty or no text, or a line has another number of cells than the first.
    """
    readable(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(str(path), "is not UTF-8 text", "Write it anew as UTF-8 CSV") from None
    warnings: tuple[str, ...] = ()
    if text and not text.endswith("\n"):
        text = text[: text.rfind("\n") + 1]
        warnings = (f"{path}: the last line was cut and is left out",)
    cells: list[list[str]] = []
    lines: list[int] = []
    reader = csv.reader(text.splitlines(), skipinitialspace=True)
    for row in reader:
        stripped = [cell.strip() for cell in row]
        if not any(stripped):
            continue
        if cells and len(stripped) != len(cells[0]):
            raise InputError(
                f"{path}:{reader.line_num}", f"{len(stripped)} cells where {len(cells[0])} are due", "Mend the line"
            )
        cells.append(stripped)
        lines.append(reader.line_num)
    if not cells:
        raise InputError(str(path), "holds no whole line", "Record for longer")
    return Rows(path, cells, lines, warnings)
