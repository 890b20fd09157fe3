"""The two engines behind one seam: the compiled one, and the reference in SimPy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .kernels import cluster as kernels
from .kernels.prefix import clear_cache
from .kernels.state import C_NOW, Engine, Records
from .reference.engine import ReferenceEngine
from .reference.observer import Observer
from .routing import Router, advance_with
from .window import roll

if TYPE_CHECKING:
    from .cluster import Cluster

ENGINE_NAMES = ("compiled", "reference")


class Driver(Protocol):
    """Runs an engine.

    Attributes:
        engine: The present one.
    """

    engine: Engine

    def run(self, cluster: Cluster, router: Router | None, until_ps: int, changed: bool) -> None:
        """Runs to ``until_ps``.

        Args:
            cluster: The cluster, for the router to see.
            router: Is asked for every request, where there is one.
            until_ps: Picoseconds.
            changed: Whether control has changed something, so that the gateway is served first.
        """

    def clear_cache(self, slot: int) -> None:
        """Empties the KV cache of a slot, for its deployment of this time."""

    def evict(self, slot: int) -> None:
        """Drops what a slot does now; its requests fail or go back to the gateway, by the cluster's policy."""

    def roll(self, rows: Records, hashes: NDArray[np.int64]) -> None:
        """Forgets the requests that have left and appends others."""


class CompiledDriver:
    """Runs the compiled engine; a workload without end puts one after another in its place.

    Args:
        engine: The first.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        for slot in range(len(engine.slots)):
            clear_cache(engine, slot)

    def run(self, cluster: Cluster, router: Router | None, until_ps: int, changed: bool) -> None:
        """See :class:`Driver`."""
        if router is None:
            kernels.advance(self.engine, until_ps, changed)
        else:
            advance_with(cluster, router, until_ps, changed)

    def clear_cache(self, slot: int) -> None:
        """See :class:`Driver`."""
        clear_cache(self.engine, slot)

    def evict(self, slot: int) -> None:
        """See :class:`Driver`."""
        kernels.evict(self.engine, slot, int(self.engine.cursor[C_NOW]))

    def roll(self, rows: Records, hashes: NDArray[np.int64]) -> None:
        """See :class:`Driver`."""
        self.engine = roll(self.engine, rows, hashes)


class ReferenceDriver:
    """Runs the reference engine.

    Args:
        engine: Its arrays.
        observer: Is told of everything as it happens.

    Attributes:
        reference: The engine itself.
    """

    def __init__(self, engine: Engine, observer: Observer | None = None) -> None:
        self.engine = engine
        self.reference = ReferenceEngine(engine, observer)

    def run(self, cluster: Cluster, router: Router | None, until_ps: int, changed: bool) -> None:
        """See :class:`Driver`."""
        if router is not None:
            self.reference.router = lambda request, candidates: router(cluster, request, candidates)
        self.reference.advance(until_ps, changed)
        self.reference.router = None

    def clear_cache(self, slot: int) -> None:
        """See :class:`Driver`."""
        self.reference.clear(slot)

    def evict(self, slot: int) -> None:
        """See :class:`Driver`."""
        self.reference.evict(slot)

    def roll(self, rows: Records, hashes: NDArray[np.int64]) -> None:
        """Refuses: it holds a workload whole."""
        raise InputError("engine", "the reference engine holds a workload whole", "Use the compiled one")


def make_driver(name: str, engine: Engine, observer: Observer | None) -> Driver:
    """A driver by name.

    Raises:
        InputError: There is no such engine, or it cannot be observed.
    """
    if name not in ENGINE_NAMES:
        raise InputError("engine", f"'{name}' is unknown", f"Use one of {', '.join(ENGINE_NAMES)}")
    if name == "reference":
        return ReferenceDriver(engine, observer)
    if observer is not None:
        raise InputError("engine", "the compiled one cannot be watched", 'Use engine="reference" (--engine reference)')
    return CompiledDriver(engine)
