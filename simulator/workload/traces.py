"""The catalogue of published traces, and where fetched ones lie."""

from __future__ import annotations

import os
import tomllib
from importlib import resources
from pathlib import Path
from urllib.parse import urlsplit

from platformdirs import user_cache_dir

from ..errors import InputError
from .kinds import Part


class Trace(Part):
    """A published trace.

    Attributes:
        title: What it is, in a line.
        url: Where it is published.
        format: Reader of it.
        licence: Its licence.
        citation: How its authors ask to be cited.
        size_bytes: Size of the file, where known.
        sha256: Hash of the file, where known.
    """

    title: str
    url: str
    format: str
    licence: str
    citation: str
    size_bytes: int | None = None
    sha256: str | None = None

    @property
    def filename(self) -> str:
        """Name of the published file."""
        return urlsplit(self.url).path.rsplit("/", 1)[-1]


def _catalogue() -> dict[str, Trace]:
    text = resources.files(__package__).joinpath("traces.toml").read_text(encoding="utf-8")
    return {name: Trace(**entry) for name, entry in tomllib.loads(text).items()}


TRACES = _catalogue()


def find(name: str) -> Trace:
    """The trace of that name; raises `InputError` if there is none."""
    if name not in TRACES:
        raise InputError("trace", f"no trace named {name!r}", f"Give one of {', '.join(TRACES)}")
    return TRACES[name]


def cache_path(name: str) -> Path:
    """Where the trace lies once it is fetched: under ``LLMCLUSTER_CACHE``, or the user's cache folder."""
    folder = os.environ.get("LLMCLUSTER_CACHE") or user_cache_dir("llmcluster")
    return Path(folder) / "traces" / name / find(name).filename


def cached(name: str) -> Path:
    """The fetched trace; raises `InputError` if it has not been fetched."""
    path = cache_path(name)
    if not path.is_file():
        raise InputError(name, "the trace has not been fetched", f"Run `llmcluster data fetch {name}`")
    return path


def resolve(source: str | Path, folder: Path = Path()) -> Path:
    """The file of a trace: that of a fetched one by its name, or a path, relative to ``folder``."""
    return cached(str(source)) if str(source) in TRACES else folder / source
