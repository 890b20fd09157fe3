"""The engine of a cluster, for all who act on it later."""

from __future__ import annotations

from .kernels import cluster as kernels
from .kernels.prefix import clear_cache
from .kernels.state import ARRAYS, C_NOW, Engine
from .snapshot import State


class CurrentEngine:
    """Holds the engine: a workload without end puts one after another in its place.

    Args:
        engine: The first.

    Attributes:
        engine: The present one.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def clear_cache(self, slot: int) -> None:
        """Empties the KV cache of a slot, for its deployment of this time."""
        clear_cache(self.engine, slot)

    def evict(self, slot: int) -> None:
        """Drops what a slot does now; its requests fail or go back to the gateway, by the cluster's policy."""
        kernels.evict(self.engine, slot, int(self.engine.cursor[C_NOW]))

    def __getstate__(self) -> State:
        """For copies and pickles: the arrays alone, since an engine knows where in memory they lie."""
        return {name: getattr(self.engine, name) for name in ARRAYS}

    def __setstate__(self, arrays: State) -> None:
        """The reverse of :meth:`__getstate__`."""
        self.engine = Engine.of(arrays)
