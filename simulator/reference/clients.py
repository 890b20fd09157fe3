"""Those who send requests: they arrive, give up, try again and answer."""

from __future__ import annotations

from collections.abc import Callable, Generator
from itertools import pairwise
from typing import Any

import numpy as np
import simpy

from ..kernels.state import (
    C_ARRIVAL,
    C_BACKOFF_PS,
    C_DONE,
    C_RETRIES,
    C_SENT,
    C_SENT_TOKENS,
    PENDING,
    REJECTED,
    TIMED_OUT,
    Engine,
)
from .moments import ARRIVE, TIMER, World
from .observer import Observer
from .request import Request


class Clients:
    """All clients.

    Args:
        world: The clock.
        engine: The arrays that others read.
        submit: Takes a request that is sent.
        observer: Who watches.
    """

    def __init__(self, world: World, engine: Engine, submit: Callable[[Request], None], observer: Observer) -> None:
        self._world, self._engine, self._submit, self._observer = world, engine, submit, observer
        world.process(self._arrivals())

    def send(self, row: int) -> Request:
        """The request of a row is sent now, for whoever called this to submit it."""
        request = Request.of(self._engine, row, self._world.now_ps)
        self._count(request)
        return request

    def leave(self, request: Request, status: int, slot: int) -> None:
        """The end of a request: its client may now think about the next one."""
        now_ps, requests, cursor = self._world.now_ps, self._engine.requests, self._engine.cursor
        request.record["status"], request.record["finish_ps"] = status, now_ps
        request.record["generated"] = request.generated
        self._engine.done[cursor[C_DONE]] = request.row
        cursor[C_DONE] += 1
        self._observer.left(slot, request.row, now_ps, status)
        follower = int(request.record["follower"])
        if follower >= 0 and requests["think_ps"][follower] >= 0:
            think_ps = max(int(requests["think_ps"][follower]), 1)
            due_ps = max(now_ps + think_ps, int(requests["arrival_ps"][follower]))
            self._world.process(self._follow(follower, due_ps))

    def give_up(self, request: Request, slot: int) -> None:
        """A client's patience has ended: it sends its request again later, or has done so often enough."""
        cursor, now_ps = self._engine.cursor, self._world.now_ps
        if request.attempts >= cursor[C_RETRIES]:
            self.leave(request, TIMED_OUT, slot)
            return
        pause_ps = max(int(cursor[C_BACKOFF_PS]) << request.attempts, 1)
        request.attempts += 1
        request.record["attempts"], request.record["status"] = request.attempts, PENDING
        self._observer.left(slot, request.row, now_ps, PENDING)
        self._world.process(self._try_again(request, now_ps + pause_ps))

    def _arrivals(self) -> Generator[simpy.Event, Any, None]:
        requests, cursor = self._engine.requests, self._engine.cursor
        rows = [*np.flatnonzero(requests["think_ps"] < 0).tolist(), len(requests)]
        cursor[C_ARRIVAL] = rows[0]
        for row, following in pairwise(rows):
            yield self._world.at(int(requests["arrival_ps"][row]), ARRIVE)
            cursor[C_ARRIVAL] = following
            self._send(Request.of(self._engine, row, self._world.now_ps))

    def _follow(self, row: int, due_ps: int) -> Generator[simpy.Event, Any, None]:
        yield self._world.at(due_ps, TIMER + row)
        self._send(Request.of(self._engine, row, due_ps))

    def _try_again(self, request: Request, due_ps: int) -> Generator[simpy.Event, Any, None]:
        yield self._world.at(due_ps, TIMER + request.row)
        self._send(request)

    def _send(self, request: Request) -> None:
        self._count(request)
        if request.record["unfit"]:
            self.leave(request, REJECTED, -1)
        else:
            self._submit(request)

    def _count(self, request: Request) -> None:
        cursor = self._engine.cursor
        request.sent_ps = self._world.now_ps
        request.record["sent_ps"] = request.sent_ps
        cursor[C_SENT] += 1
        cursor[C_SENT_TOKENS] += request.prompt
