"""Files as such: is there one to read, and writing one whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError


def readable(path: Path) -> None:
    """Raises `InputError` unless ``path`` is a file with something in it."""
    if path.is_dir():
        raise InputError(str(path), "is a folder", "Give a file")
    if not path.is_file():
        raise InputError(str(path), "no such file", "Check the path, or get a trace with `llmcluster data fetch`")
    if path.stat().st_size == 0:
        raise InputError(str(path), "the file is empty", "Download it again")


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
