"""Routers in Python, asked for every request: the open way, and much slower than the compiled ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from .errors import InputError
from .kernels import cluster as kernels
from .kernels import gateway, router
from .kernels.state import C_GATEWAY_DUE, C_GATEWAY_HEAD, C_NOW, FOREVER, Engine

if TYPE_CHECKING:
    from .cluster import Cluster

HOLD = -1


class Router(Protocol):
    """Chooses a slot for a request."""

    def __call__(self, cluster: Cluster, request: int, candidates: list[int]) -> int:
        """Called for every request that comes in, and for those held whenever there may be room.

        Args:
            cluster: The cluster, with every slot at the present, ``cluster.engine.cursor[C_NOW]``; not to be changed.
            request: Row of the request in ``cluster.requests`` and ``cluster.engine.requests``.
            candidates: Slots that can take it, not empty.

        Returns:
            One of the candidates, or HOLD to keep the request at the gateway.
        """


def advance_with(cluster: Cluster, choose: Router, until_ps: int, changed: bool) -> None:
    """Runs the engine of ``cluster`` to ``until_ps`` and asks ``choose`` wherever a request wants a slot.

    Raises:
        InputError: The router chose something else than a candidate.
    """
    engine = cluster.engine
    asked = int(kernels.advance(engine, until_ps, changed))
    while asked != kernels.REACHED:
        now = int(engine.cursor[C_NOW])
        if asked == kernels.GATEWAY:
            engine.cursor[C_GATEWAY_DUE] = FOREVER
            gateway.expire(engine, now)
            for request in list(_held(engine)):
                slot = _ask(cluster, choose, request)
                if slot != HOLD:
                    gateway.unhold(engine, request)
                    gateway.send(engine, slot, request, now)
        else:
            slot = _ask(cluster, choose, asked)
            if slot == HOLD:
                gateway.hold(engine, asked)
            else:
                gateway.send(engine, slot, asked, now)
        asked = int(kernels.advance(engine, until_ps, False))


def _held(engine: Engine) -> Iterator[int]:
    request = int(engine.cursor[C_GATEWAY_HEAD])
    while request >= 0:
        yield request
        request = int(engine.requests["link"][request])


def _ask(cluster: Cluster, choose: Router, request: int) -> int:
    slots = range(len(cluster.engine.slots))
    candidates = [r for r in slots if router.is_candidate(cluster.engine, r, request, False)]
    if not candidates:
        candidates = [r for r in slots if router.is_candidate(cluster.engine, r, request, True)]
    if not candidates:
        return HOLD
    slot = choose(cluster, request, candidates)
    if slot != HOLD and slot not in candidates:
        problem = f"chose slot {slot} for request {request}, not one of {candidates}"
        raise InputError("router", problem, "Return a candidate, or HOLD")
    return slot
