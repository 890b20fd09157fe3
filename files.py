"""Files as such: is there one to read, what TOML says, and writing one whole or not at all."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import InputError


def readable(path: Path) -> None:
    """Raises `InputError` unless ``path`` is a file with something in it."""
    if path.is_dir():
        raise InputError(str(path), "is a folder", "Give a file")
    if not path.is_file():
        raise InputError(str(path), "no such file", "Check the path")
    if path.stat().st_size == 0:
        raise InputError(str(path), "the file is empty", "Download it again")


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file; raises `InputError` where there are none to be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as fault:
        raise InputError(str(path), f"cannot be read ({fault.strerror})", "Give the path of a TOML file") from fault
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as fault:
        raise InputError(str(path), f"is not TOML ({fault})", "Mend the line it names") from fault


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yields a name to write to, which becomes ``path`` if all goes well and vanishes if not."""
    if not path.absolute().parent.is_dir():
        raise InputError(str(path), "its folder does not exist", "Make the folder first")
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
