"""Which backend gets a request, by the rules of the simulator's gateway, and who waits for one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ...envs.actions import RouterName
from ...simulator.reference.routers import least_outstanding, power_of_two, prefix_affinity, round_robin
from .backends import Backend
from .config import QueueSpec
from .refusal import RefusalError


@dataclass(frozen=True)
class Ask:
    """A request as routing sees it.

    Attributes:
        model: Model that it asks for.
        prefix: Units of its prompt.
        tried: Backends that have failed it; they are asked again only where there is no other.
    """

    model: str
    prefix: Sequence[int] = ()
    tried: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Waiter:
    ask: Ask
    turn: asyncio.Future[Backend]


class Dispatcher:
    """Chooses backends and holds requests that none has room for.

    Weights steer, they never strand a request: where no backend with room has a weight, all count as equal. A backend
    that shall get nothing at all is closed.

    Args:
        backends: The backends.
        queue: How many may wait, and how long.
        router: The router at the start.

    Attributes:
        router: The router in force.
        backends: The backends by name.
        held: Requests that wait.
    """

    def __init__(self, backends: Iterable[Backend], queue: QueueSpec, router: RouterName) -> None:
        self.router = router
        self.backends = {backend.spec.name: backend for backend in backends}
        self.held = 0
        self._queue, self._draws = queue, 0
        models = dict.fromkeys(backend.spec.model for backend in self.backends.values())
        self._pools = {m: [b for b in self.backends.values() if b.spec.model == m] for m in models}
        self._waiting: dict[str, deque[_Waiter]] = {model: deque() for model in models}

    @property
    def models(self) -> Collection[str]:
        """Models that are served."""
        return self._pools.keys()

    def waiting(self) -> Mapping[str, int]:
        """Requests that wait, by model."""
        return {model: len(waiting) for model, waiting in self._waiting.items()}

    def has_other(self, ask: Ask) -> bool:
        """Whether a backend that has not been tried may get the request."""
        return any(backend.usable and backend.spec.name not in ask.tried for backend in self._pools[ask.model])

    def has_any(self, ask: Ask) -> bool:
        """Whether any backend may get the request."""
        return any(backend.usable for backend in self._pools[ask.model])

    async def acquire(self, ask: Ask) -> Backend:
        """A backend for a request, which counts as in flight there until :meth:`release`.

        Raises:
            RefusalError: Too many wait already, or it has waited too long.
        """
        return self._route(ask) or await self._wait(ask)

    def release(self, backend: Backend) -> None:
        """A request has left a backend."""
        backend.outstanding -= 1
        self.serve(backend.spec.model)

    def serve(self, model: str) -> None:
        """Gives room that has come up to those who wait for it, in their order."""
        waiting, passed = self._waiting[model], []
        while waiting:
            waiter = waiting.popleft()
            if waiter.turn.cancelled():  # it is about to leave by itself
                passed.append(waiter)
                continue
            backend = self._route(waiter.ask)
            if backend is not None:
                self.held -= 1
                waiter.turn.set_result(backend)
                continue
            passed.append(waiter)
            if not waiter.ask.tried:  # where this one finds no room, nobody does
                break
        waiting.extendleft(reversed(passed))

    def serve_all(self) -> None:
        """The same for all models, after weights, limits or health have changed."""
        for model in self._waiting:
            self.serve(model)

    async def _wait(self, ask: Ask) -> Backend:
        if self.held >= self._queue.most:
            message = f"All backends of '{ask.model}' are busy and the queue is full; try again later."
            raise RefusalError(429, "queue_full", message, {"retry-after": "1"})
        waiter, waiting = _Waiter(ask, asyncio.get_running_loop().create_future()), self._waiting[ask.model]
        # Who has waited before, and was failed by a backend, came before those who wait now.
        (waiting.appendleft if ask.tried else waiting.append)(waiter)
        self.held += 1
        try:
            async with asyncio.timeout(self._queue.timeout_s):
                return await waiter.turn
        except BaseException as fault:
            if waiter.turn.done() and not waiter.turn.cancelled():
                self.release(waiter.turn.result())
            else:
                waiting.remove(waiter)
                self.held -= 1
            if isinstance(fault, TimeoutError):
                message = f"No backend of '{ask.model}' had room within {self._queue.timeout_s:g} s."
                raise RefusalError(503, "no_room", message, {"retry-after": "5"}) from None
            raise

    def _route(self, ask: Ask) -> Backend | None:
        usable = [backend for backend in self._pools[ask.model] if backend.usable]
        fresh = [backend for backend in usable if backend.spec.name not in ask.tried] if ask.tried else usable
        candidates = [backend for backend in fresh or usable if backend.has_room]
        if not candidates:
            return None
        weighted = [backend for backend in candidates if backend.weight > 0]
        if weighted:
            backend = self._choose(weighted, [backend.weight for backend in weighted], ask.prefix)
        else:
            backend = self._choose(candidates, [1.0] * len(candidates), ask.prefix)
        backend.outstanding += 1
        backend.cache.add(ask.prefix)
        return backend

    def _choose(self, candidates: list[Backend], weights: list[float], prefix: Sequence[int]) -> Backend:
        if self.router == "round-robin":
            return round_robin(candidates, weights)
        if self.router == "power-of-two":
            self._draws += 1
            return power_of_two(candidates, weights, self._draws)
        if self.router == "prefix-affinity":
            return prefix_affinity(candidates, weights, lambda backend: backend.hits(prefix))
        return least_outstanding(candidates, weights)
