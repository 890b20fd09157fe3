"""The gateway: sends requests to slots, holds those that no slot takes, hands over those that a slot has prefilled."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import simpy

from ..kernels.state import AT_GATEWAY, C_LIMITED, C_ON_FAILURE, FAIL, IN_TRANSFER, LOST, RETRY, TIMED_OUT, Engine
from .clients import Clients
from .control import Control
from .moments import SERVE, TIMER, World
from .observer import Observer
from .physics import Physics
from .replica import Replica
from .request import Request
from .routing import Routing

GATEWAY = -1  # in the place of a slot


class Gateway:
    """Routing and holding.

    Args:
        world: The clock.
        engine: The arrays that others read.
        observer: Who watches.

    Attributes:
        replicas: All slots.
        routing: Chooses among them.
        held: Requests that no slot takes at present, in the order in which they came to be held.
    """

    def __init__(self, world: World, engine: Engine, observer: Observer) -> None:
        self._world, self._engine, self._observer = world, engine, observer
        self._clients = Clients(world, engine, self.accept, observer)
        physics = [Physics(engine, deployment) for deployment in range(len(engine.deployments))]
        self.replicas = [
            Replica(world, engine, physics, slot, control, self, observer)
            for slot, control in enumerate(Control.of_all(engine))
        ]
        self.routing = Routing(engine, self.replicas)
        self.held: dict[Request, None] = {}
        self._served_ps = -1

    # ------------------------------------------------------------------------------------------------------ requests

    def accept(self, request: Request) -> None:
        """A request comes in: from its client, or with its prompt prefilled."""
        if not self._route(request):
            self._hold(request)

    def place(self, row: int, replica: Replica) -> Request:
        """A request is sent now, to a slot that somebody else has chosen."""
        request = self._clients.send(row)
        replica.enqueue(request)
        return request

    def take_back(self, request: Request, status: int, replica: Replica, *, for_good: bool = False) -> None:
        """A request leaves a slot: it has come to its end, its client has given up, or it goes on elsewhere.

        A client that has given up may try again, unless it has done so ``for_good``.
        """
        if status == IN_TRANSFER:
            self._hand_over(request, replica)
        elif status == TIMED_OUT and not for_good:
            self._clients.give_up(request, replica.slot)
        else:
            self._clients.leave(request, status, replica.slot)
        if self.held and self._engine.cursor[C_LIMITED]:
            self._world.process(self._serve_next())

    def rescue(self, request: Request, slot: int) -> None:
        """The slot of a request has failed: by policy, that is its end, or it waits here to begin anew."""
        policy = self._engine.cursor[C_ON_FAILURE]
        if policy == FAIL or (policy == RETRY and request.generated > 0):
            self._clients.leave(request, LOST, slot)
            return
        request.generated, request.transferred = 0, False
        request.record["first_token_ps"] = -1
        self._observer.left(slot, request.row, self._world.now_ps, AT_GATEWAY)
        self._hold(request)

    def serve(self) -> None:
        """Held requests whose clients have given up leave; the others are tried once each."""
        for request in [request for request in self.held if request.impatient(self._world.now_ps)]:
            del self.held[request]
            self._clients.give_up(request, GATEWAY)
        # Where no slot has room for one, none has for those of its model and phase behind it: no need to skip them.
        for request in list(self.held):
            if self._route(request):
                del self.held[request]

    # ------------------------------------------------------------------------------------------------------- holding

    def _route(self, request: Request) -> bool:
        slot = self.routing.choose(request)
        if slot is not None:
            slot.enqueue(request)
        return slot is not None

    def _hold(self, request: Request) -> None:
        self.held[request] = None
        request.record["status"] = AT_GATEWAY
        if request.timeout_ps >= 0 and request.generated == 0:
            self._world.process(self._watch(request, request.sent_ps))

    def _watch(self, request: Request, sent_ps: int) -> Generator[simpy.Event, Any, None]:
        """Serves one picosecond after the patience of a held request has ended, if it is still held."""
        yield self._world.at(max(sent_ps + request.timeout_ps + 1, self._world.now_ps), SERVE)
        if request in self.held and request.sent_ps == sent_ps:
            self._serve_once()

    def _serve_next(self) -> Generator[simpy.Event, Any, None]:
        """Serves one picosecond after a slot has got room."""
        yield self._world.at(self._world.now_ps + 1, SERVE)
        self._serve_once()

    def _serve_once(self) -> None:
        """Serves, if there has been no other cause at this instant."""
        if self._served_ps < self._world.now_ps:
            self._served_ps = self._world.now_ps
            self.serve()

    # ----------------------------------------------------------------------------------------------------- transfers

    def _hand_over(self, request: Request, replica: Replica) -> None:
        """Sends the KV cache of a prompt over the link of its slot, as soon as that is free."""
        now_ps, row = self._world.now_ps, request.row
        record = self._engine.deployments[replica.control.deployment]
        begin_ps = max(now_ps, replica.link_free_ps)
        replica.link_free_ps = begin_ps + request.prompt * int(record["transfer_ps"])
        request.transferred = True
        request.record["status"] = IN_TRANSFER
        self._observer.left(replica.slot, row, now_ps, IN_TRANSFER)
        arrival_ps = replica.link_free_ps + int(record["transfer_latency_ps"])
        self._world.process(self._transfer(request, max(arrival_ps, now_ps + 1)))

    def _transfer(self, request: Request, arrival_ps: int) -> Generator[simpy.Event, Any, None]:
        yield self._world.at(arrival_ps, TIMER + request.row)
        self.accept(request)
