"""Many clusters in one call: the copies of a vector environment."""

from __future__ import annotations

from typing import Any

from . import handle
from .cluster import advance
from .compile import kernel
from .state import I64

engine_at: Any = handle.engine_at


@kernel
def advance_all(addresses: I64, until: I64) -> None:
    """Runs the engine at each address (C,) to its time (C,), after control; none may have a router object."""
    for i in range(addresses.shape[0]):
        advance(engine_at(addresses[i]), until[i], True)
