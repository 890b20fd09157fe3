"""What the control loop sets, and what holds when it falls silent."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from pydantic import Field, ValidationError

from ...envs.actions import RouterName
from ...envs.spec import Spec
from ..readings import GatewayReading
from .config import GatewayConfig
from .dispatch import Dispatcher
from .metrics import Metrics
from .refusal import RefusalError

_log = logging.getLogger(__name__)


class Steer(Spec):
    """What is to hold from now on; backends that are left out keep what they have."""

    router: RouterName | None = Field(default=None, description="Router; none leaves it as it is.")
    weights: Mapping[str, float] = Field(default={}, description="Routing weight by backend.")
    limits: Mapping[str, int] = Field(default={}, description="Requests in flight at most by backend; 0 for no limit.")
    closed: tuple[str, ...] | None = Field(
        default=None,
        description="Backends that take no new request. Without it, those of weight 0 are; with it, weight 0 is as in "
        "the simulator: such a backend takes what none with a weight has room for.",
    )

    @classmethod
    def of(cls, body: bytes, known: Mapping[str, object]) -> Steer:
        """Reads a steer out of the body of a request; raises :class:`RefusalError` where it does not hold."""
        try:
            steer = cls.model_validate_json(body)
        except ValidationError as fault:
            problems = [f"{'.'.join(map(str, e['loc'])) or 'the body'}: {e['msg']}" for e in fault.errors()[:3]]
            raise RefusalError(400, "invalid_steer", "; ".join(problems)) from fault
        unknown = {*steer.weights, *steer.limits, *(steer.closed or ())} - known.keys()
        if unknown:
            raise RefusalError(
                400, "unknown_backend", f"There is no backend {sorted(unknown)}; there are {sorted(known)}."
            )
        if any(weight < 0 for weight in steer.weights.values()) or any(limit < 0 for limit in steer.limits.values()):
            raise RefusalError(400, "invalid_steer", "Weights and limits are 0 or more.")
        return steer


class Steering:
    """Applies steers, and takes them back when none follows within the lease.

    Args:
        dispatcher: What is steered.
        config: The settings.
    """

    def __init__(self, dispatcher: Dispatcher, config: GatewayConfig) -> None:
        self._dispatcher, self._config = dispatcher, config
        self._lapse: asyncio.TimerHandle | None = None

    def apply(self, steer: Steer) -> None:
        """Sets what a steer says."""
        dispatcher = self._dispatcher
        dispatcher.router = steer.router or dispatcher.router
        for name, backend in dispatcher.backends.items():
            backend.weight = steer.weights.get(name, backend.weight)
            backend.limit = steer.limits.get(name, backend.limit)
            backend.closed = backend.weight == 0 if steer.closed is None else name in steer.closed
        self.forget()
        self._lapse = asyncio.get_running_loop().call_later(self._config.lease_s, self._fall_back)
        dispatcher.serve_all()

    def forget(self) -> None:
        """Nothing lapses any more."""
        if self._lapse is not None:
            self._lapse.cancel()

    def _fall_back(self) -> None:
        _log.warning("nobody has steered for %g s: equal weights, no limits", self._config.lease_s)
        self._dispatcher.router = self._config.router
        for backend in self._dispatcher.backends.values():
            backend.weight, backend.limit, backend.closed = 1.0, 0, False
        self._dispatcher.serve_all()


def reading_of(dispatcher: Dispatcher, metrics: Metrics, now_s: float) -> GatewayReading:
    """The gateway as it is now."""
    backends = dispatcher.backends
    return GatewayReading(
        time_s=now_s,
        arrivals=metrics.arrivals,
        arriving_tokens=metrics.arriving_tokens,
        held=dispatcher.held,
        left=metrics.left,
        met_slo=metrics.met_slo,
        router=dispatcher.router,
        weights={name: backend.weight for name, backend in backends.items()},
        limits={name: backend.limit for name, backend in backends.items()},
        in_flight={name: backend.outstanding for name, backend in backends.items()},
        healthy={name: backend.healthy for name, backend in backends.items()},
    )
