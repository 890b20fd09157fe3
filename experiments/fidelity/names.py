"""GPUs and models in measured files, by the names of the catalogue."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from ...simulator.catalog import GpuSpec, ModelSpec
from ...simulator.errors import InputError


def called(find: Callable[[str], GpuSpec | ModelSpec], text: str, usual: Mapping[str, str]) -> str:
    """What the catalogue calls it, else what such files usually mean by it, else as it stands there.

    Args:
        find: ``Catalog.gpu`` or ``Catalog.model`` of the catalogue in use.
        text: As in the file.
        usual: Names of the catalogue by those of such files.
    """
    try:
        return find(text).name
    except InputError:
        return usual.get(text, text)


def mentioned(text: str, known: Iterable[str]) -> str | None:
    """The longest of the known names that stands in a text, as whole words, whatever the punctuation within it."""
    words = _words(text)
    runs = {"".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)}
    return max((name for name in known if "".join(_words(name)) in runs), key=len, default=None)


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())
