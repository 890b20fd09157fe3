"""The one decorator of the compiled part: njit, cached on disk under a name that changes with the sources."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numba
import platformdirs

from . import handle  # noqa: F401 - makes the type of an engine known to the compiler

F = TypeVar("F", bound=Callable[..., Any])


@cache
def cache_folder() -> Path:
    """Folder of the compiled code.

    Numba looks only at the file of the function itself when it decides whether a cached function is stale, so a change
    in a function that another file calls would go unnoticed; hence one folder per state of all sources.
    """
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.name.encode() + source.read_bytes())
    return platformdirs.user_cache_path("llmcluster") / "kernels" / digest.hexdigest()[:16]


def is_compiled() -> bool:
    """Whether the compiled code of these sources is on disk already."""
    return any(cache_folder().rglob("*.nbc"))


def _compiled(function: F, **options: bool) -> F:
    config: Any = numba.config
    njit: Any = numba.njit
    before = config.CACHE_DIR
    config.CACHE_DIR = str(cache_folder())
    try:
        # Kernels allocate nothing, and the caller holds every array, so they need no reference counts: with them, the
        # engine would spend most of its time counting. Division by zero does not occur; numpy's rules spare the checks.
        compiled: F = njit(cache=True, error_model="numpy", _nrt=False, **options)(function)
    finally:
        config.CACHE_DIR = before
    return compiled


def kernel(function: F) -> F:
    """Compiles ``function`` at its first call and keeps the machine code on disk; IEEE arithmetic, no fastmath."""
    return _compiled(function)


def part(function: F) -> F:
    """Like :func:`kernel` for what is called on the hot path: inlined by force."""
    return _compiled(function, forceinline=True)
