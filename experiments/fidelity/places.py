"""Places of rows for people: file names without folders, consecutive lines joined."""

from __future__ import annotations

from collections.abc import Iterable


def short(place: str) -> str:
    """A place without the folder, which is another one on every machine."""
    return place.rpartition("/")[2]


def spans(places: Iterable[str]) -> str:
    """Places by file, such as ``power.csv:3-7, 9; other.csv:2``; one without a line stands as it is."""
    files: dict[str, list[int]] = {}
    for place in places:
        name, _, line = short(place).rpartition(":")
        if line.isdigit():
            files.setdefault(name, []).append(int(line))
        else:
            files.setdefault(short(place), [])
    return "; ".join(f"{name}:{_lines(numbers)}" if numbers else name for name, numbers in files.items())


def _lines(numbers: Iterable[int]) -> str:
    found: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][1] + 1:
            found[-1] = found[-1][0], number
        else:
            found.append((number, number))
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in found)
