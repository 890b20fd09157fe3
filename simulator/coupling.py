"""Whether slots must be advanced in step."""

from __future__ import annotations

from .kernels.state import C_BOUNDED, C_COUPLED, C_LIMITED, C_RETRIES, C_ROUTER, MIXED, ROUND_ROBIN, UNLIMITED, Engine


def note_coupling(engine: Engine, *, closed_loop: bool) -> None:
    """Notes whether what happens on one slot can matter to another; to be called when router or limits have changed.

    Args:
        engine: The engine.
        closed_loop: Whether some requests wait for the end of others.
    """
    cursor, slots = engine.cursor, engine.slots
    cursor[C_LIMITED] = (slots["limit"] < UNLIMITED).any()
    disaggregated = (slots["role"] != MIXED).any()
    cursor[C_COUPLED] = cursor[C_LIMITED] or closed_loop or disaggregated or cursor[C_RETRIES] > 0
    bounded = cursor[C_COUPLED] or cursor[C_ROUTER] != ROUND_ROBIN
    if bounded and not cursor[C_BOUNDED]:
        slots["bound_ps"] = 0  # Bounds are not kept up while nobody needs them.
    cursor[C_BOUNDED] = bounded
