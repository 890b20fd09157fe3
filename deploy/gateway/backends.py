"""A backend as the gateway sees it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ...errors import InputError
from .config import BackendSpec, HealthSpec
from .prefixes import PrefixCache

_log = logging.getLogger(__name__)


class Backend:
    """One inference server: what it is told to take, what it has, and whether it answers.

    Args:
        spec: Where and what it is.
        health: When it counts as healthy.
        prefix_units: How many units of prompts it is believed to have cached.

    Attributes:
        credit: What the smooth weighted round robin owes it.
        outstanding: Requests in flight.
        weight: Routing weight.
        limit: Requests in flight at most; 0 for no limit.
        closed: It takes no new request, whatever others have room for.
        healthy: Whether it answers.
        asleep: Whether it says that it sleeps: then it holds or fails whatever it gets, and its health is good.
        cache: What it is believed to have in its prefix cache.
        api_key: What it asks for.
    """

    def __init__(self, spec: BackendSpec, health: HealthSpec, prefix_units: int) -> None:
        self.spec, self._health = spec, health
        self.credit, self.outstanding = 0.0, 0
        self.weight, self.limit, self.closed = 1.0, 0, False
        self.healthy, self.asleep, self._streak = True, False, 0
        self.cache = PrefixCache(prefix_units)
        self.api_key = _key(spec)

    @property
    def has_room(self) -> bool:
        """Whether it takes one more request."""
        return not self.limit or self.outstanding < self.limit

    @property
    def usable(self) -> bool:
        """Whether it may get requests at all."""
        return self.healthy and not self.closed and not self.asleep

    def answered(self) -> bool:
        """It gave a sign of health; true where it thereby gets requests again."""
        self._streak = max(self._streak, 0) + 1
        if self.healthy or self._streak < self._health.healthy_after:
            return False
        self.healthy = True
        _log.warning("backend %s answers again", self.spec.name)
        return True

    def failed(self, certain: bool = False) -> None:
        """It did not answer as it should; if that is certain, as when it refuses connections, once is enough."""
        self._streak = min(self._streak, 0) - 1
        if self.healthy and (certain or -self._streak >= self._health.unhealthy_after):
            self.healthy = False
            _log.warning("backend %s does not answer", self.spec.name)

    def hits(self, prefix: Sequence[int]) -> int:
        """How many units of a prompt's beginning it is believed to have cached."""
        return self.cache.hits(prefix)


def _key(spec: BackendSpec) -> str | None:
    if spec.api_key_file is None:
        return None
    try:
        key = spec.api_key_file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as fault:
        raise InputError(str(spec.api_key_file), f"cannot be read ({fault})", "Give a file with the key") from fault
    if not key or not key.isascii() or not key.isprintable():
        raise InputError(str(spec.api_key_file), "holds no key", "Write the key into it, in ASCII, on one line")
    return key
