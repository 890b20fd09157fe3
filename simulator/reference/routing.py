"""Which slots can take a request, and which of them does."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..errors import InputError
from ..kernels.state import (
    C_ROUTER,
    C_SEED,
    DECODE,
    EXTERNAL,
    LEAST_OUTSTANDING,
    POWER_OF_TWO,
    PREFILL,
    ROUND_ROBIN,
    SERVING,
    Engine,
)
from .replica import Replica
from .request import Request
from .routers import least_outstanding, power_of_two, prefix_affinity, round_robin

RouterObject = Callable[[int, list[int]], int]
ANY_MODEL = -1
HOLD = -1


class Routing:
    """Chooses slots for requests.

    Args:
        engine: The arrays that others read.
        replicas: All slots.

    Attributes:
        router: Asked for each request under the router EXTERNAL.
    """

    def __init__(self, engine: Engine, replicas: Sequence[Replica]) -> None:
        self._engine, self._replicas = engine, replicas
        self._draws = 0
        self.router: RouterObject | None = None

    def choose(self, request: Request) -> Replica | None:
        """The slot for a request; None if there is no candidate, or the router object wants to hold it."""
        candidates = [replica for replica in self._replicas if self._can_take(replica, request)]
        if not candidates:
            return None
        # Weights steer, they never strand a request: if all are zero, they count as equal.
        weighted = [replica for replica in candidates if replica.control.route_weight > 0]
        if weighted:
            return self._decide(request, weighted, [replica.control.route_weight for replica in weighted])
        return self._decide(request, candidates, [1.0] * len(candidates))

    def _can_take(self, replica: Replica, request: Request) -> bool:
        control, deployment = replica.control, self._engine.deployments[replica.control.deployment]
        return bool(
            control.status == SERVING
            and control.role != (PREFILL if request.transferred else DECODE)
            and replica.outstanding < control.limit
            and request.model in (ANY_MODEL, deployment["model"])
            and request.prompt + request.output <= deployment["max_tokens"]
        )

    def _decide(self, request: Request, candidates: list[Replica], weights: list[float]) -> Replica | None:
        router = self._engine.cursor[C_ROUTER]
        if router == EXTERNAL:
            return self._ask(request, candidates)
        if router == ROUND_ROBIN:
            return round_robin(candidates, weights)
        if router == LEAST_OUTSTANDING:
            return least_outstanding(candidates, weights)
        if router == POWER_OF_TWO:
            self._draws += 1
            return power_of_two(candidates, weights, int(self._engine.cursor[C_SEED]) + self._draws)
        return prefix_affinity(candidates, weights, lambda slot: len(slot.scheduler.hit(request)))

    def _ask(self, request: Request, candidates: list[Replica]) -> Replica | None:
        if self.router is None:
            raise InputError("router", "no router object is set", "Set one, or choose a built-in router")
        for replica in self._replicas:
            replica.publish()  # it may want to look
        slots = [replica.slot for replica in candidates]
        answer = self.router(request.row, slots)
        if answer == HOLD:
            return None
        if answer not in slots:
            raise InputError("router", f"{answer} is none of {slots}", "Return a candidate, or -1 to hold the request")
        return self._replicas[answer]
