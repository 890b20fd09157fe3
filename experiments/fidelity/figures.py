"""Fitted figures as files: nested tables to TOML and back, and each figure by a dotted name."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import tomli_w

from ...simulator.catalog import Catalog
from ...simulator.files import whole
from .source import Source

SECTIONS = frozenset({"gpus", "models", "host"})
"""Tables that only a file of the catalogue has."""


@runtime_checkable
class OwnFigures(Protocol):
    """A source whose fitted figures are none of the catalogue's but have a file of their own layout."""

    def with_figures(self, path: Path) -> Source:
        """This source with the figures of a file; raises ``InputError`` if they do not hold."""
        ...


def with_file(source: Source, catalog: Catalog, path: Path) -> tuple[Source, Catalog]:
    """Source and catalogue with the figures of a file, which goes to the one whose layout it has.

    Of a source with figures of its own, files that describe GPUs or models are the catalogue's nevertheless.

    Raises:
        InputError: The file cannot be read, or an entry does not hold.
    """
    if isinstance(source, OwnFigures) and not _describes_hardware_or_models(path):
        return source.with_figures(path), catalog
    return source, catalog.with_file(path)


def _describes_hardware_or_models(path: Path) -> bool:
    try:
        return not SECTIONS.isdisjoint(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return False


def to_toml(tables: Mapping[str, Any], header: Sequence[str]) -> str:
    """The text of a TOML file, with lines of comment on top."""
    return "".join(f"# {line}".rstrip() + "\n" for line in header) + "\n" + tomli_w.dumps(_plain(tables))


def write_toml(tables: Mapping[str, Any], header: Sequence[str], path: Path, source: Source, catalog: Catalog) -> None:
    """Writes fitted figures, and reads them back before they get their name.

    Raises:
        InputError: The folder does not exist, or the figures do not hold.
    """
    with whole(path) as partial:
        partial.write_text(to_toml(tables, header), encoding="utf-8")
        with_file(source, catalog, partial)


def flat(tables: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Every number of nested tables by its dotted name.

    An entry of an array of tables goes by its words and whole numbers, such as ``scales.Qwen3-8B.H200.1.1.1.time``; a
    number in a list goes by its place in it, from 0.
    """
    return {prefix + name: value for name, value in _numbers(tables)}


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _numbers(value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from ((f"{key}.{name}".rstrip("."), number) for name, number in _numbers(inner))
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            label, rest = _identity(inner) if isinstance(inner, Mapping) else (str(i), inner)
            yield from ((f"{label}.{name}".rstrip("."), number) for name, number in _numbers(rest))
    elif isinstance(value, (int, float, np.number)) and not isinstance(value, bool):
        yield "", float(value)


def _identity(entry: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """What an entry of an array of tables goes by, and what is left of it."""
    known = {key: value for key, value in entry.items() if isinstance(value, (str, int)) and key != "source"}
    return ".".join(str(value) for value in known.values()), {k: v for k, v in entry.items() if k not in known}


def _plain(value: Any) -> Any:
    """The same with Python's own numbers and lists."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(inner) for inner in value]
    return value.item() if isinstance(value, np.generic) else value
