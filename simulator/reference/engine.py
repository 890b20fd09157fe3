"""The reference engine: the rules of docs/engine.md, one event per iteration."""

from __future__ import annotations

from collections.abc import Generator
from itertools import count
from typing import Any

import simpy

from ..kernels.state import BIN_PS, C_GATEWAY_COUNT, C_NOW, Engine
from .control import Control
from .gateway import Gateway
from .meter import Instant
from .moments import CLOSE, CONTROL, World
from .observer import Observer
from .request import Request
from .routing import RouterObject


class ReferenceEngine:
    """Runs a cluster whose state others see in the arrays of ``engine``, as the compiled engine would.

    Control is what callers change between calls in the columns of ``engine.slots``: status, deployment, role, cap_w,
    clock_limit, limit, route_weight, inlet_c, load_w; they set ``governed`` to 0 for the governor to be asked anew.

    Args:
        engine: The arrays, at time zero; slots have their status and deployment.
        observer: Is told of everything as it happens.
    """

    def __init__(self, engine: Engine, observer: Observer | None = None) -> None:
        self.engine = engine
        self._world = World()
        self._gateway = Gateway(self._world, engine, observer or Observer())
        self._replicas = self._gateway.replicas
        self._world.process(self._seconds())
        self._publish()

    @property
    def router(self) -> RouterObject | None:
        """The router object, asked for each request while the router is EXTERNAL.

        It gets the request's row and the candidates, and returns one of these, or -1 to hold the request.
        """
        return self._gateway.routing.router

    @router.setter
    def router(self, router: RouterObject | None) -> None:
        self._gateway.routing.router = router

    def advance(self, until_ps: int, control: bool = True) -> None:
        """Carries out everything before ``until_ps``, and what ends at that instant.

        Args:
            until_ps: Picoseconds, later than now.
            control: Whether something may have been changed since the last call, so that the gateway is served first.
        """
        self._obey()
        if control:
            self._gateway.serve()
        self._world.run(until=self._world.at(int(until_ps), CONTROL))
        for replica in self._replicas:
            replica.meter.account(self._world.now_ps)
        self._publish()

    def submit(self, row: int, prompt_tokens: int, output_tokens: int, slot: int) -> Request:
        """A request that comes live: it takes a row that has not arrived, and goes to the given slot now."""
        record = self.engine.requests[row]
        record["prompt"], record["output"] = prompt_tokens, output_tokens
        request = self._gateway.place(row, self._replicas[slot])
        self._publish()
        return request

    def cancel(self, request: Request) -> None:
        """The client of a request that is at a slot has gone for good."""
        self._replicas[int(request.record["slot"])].abort(request)
        self._publish()

    def instant(self, slot: int) -> Instant:
        """What a slot's meter shows now."""
        return self._replicas[slot].meter.instant

    def evict(self, slot: int) -> None:
        """A slot, whose status is FAILED already, loses its iteration, its KV cache and its requests."""
        self._obey()
        for request in self._replicas[slot].fail():
            self._gateway.rescue(request, slot)
        self._publish()

    def clear(self, slot: int) -> None:
        """Empties the KV cache of a slot without requests, which becomes that of its present deployment."""
        self._obey()
        self._replicas[slot].clear()
        self._publish()

    def _seconds(self) -> Generator[simpy.Event, Any, None]:
        for edge_ps in count(BIN_PS, BIN_PS):
            yield self._world.at(edge_ps, CLOSE)
            for replica in self._replicas:
                replica.close_second(edge_ps)

    def _obey(self) -> None:
        """Takes over what control has set."""
        slots = self.engine.slots
        governed = slots["governed"].tolist()
        for replica, control, holds in zip(self._replicas, Control.of_all(self.engine), governed, strict=True):
            replica.meter.control = control
            replica.governor.holds &= bool(holds)
        slots["governed"] = 1

    def _publish(self) -> None:
        """Writes what others read."""
        for replica in self._replicas:
            replica.publish()
        self.engine.cursor[C_NOW] = self._world.now_ps
        self.engine.cursor[C_GATEWAY_COUNT] = len(self._gateway.held)
