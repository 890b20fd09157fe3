"""A request that somebody has sent to a live machine, and how those who wait hear of its tokens."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from ...simulator.kernels.state import FINISHED, LOST, TIMED_OUT
from ...simulator.reference.request import Request

OVER = (FINISHED, LOST, TIMED_OUT)


class NotServingError(Exception):
    """A slot takes no requests at present; the message says why."""


@dataclass(eq=False)
class LiveRequest:
    """A request that somebody has sent.

    Attributes:
        slot: Where to.
        prompt_tokens: Length of its prompt.
        output_tokens: Tokens that it is to have in the end.
    """

    slot: int
    prompt_tokens: int
    output_tokens: int
    request: Request
    _moved: asyncio.Event = field(default_factory=asyncio.Event)
    _seen: tuple[int, int] = (0, -1)

    @property
    def generated(self) -> int:
        """Tokens generated so far."""
        return self.request.generated

    @property
    def status(self) -> int:
        """WAITING, RUNNING, FINISHED, LOST (its slot has failed) or TIMED_OUT (its client has gone)."""
        return int(self.request.record["status"])

    @property
    def is_over(self) -> bool:
        """Whether it has left."""
        return self.status in OVER

    async def move(self, seen: int) -> int:
        """Waits until it has more tokens than ``seen`` or has left; gives its tokens."""
        while self.generated <= seen and not self.is_over:
            self._moved.clear()
            await self._moved.wait()
        return self.generated

    def notice(self) -> None:
        """Wakes whoever waits, if there is anything new."""
        now = self.generated, self.status
        if now != self._seen:
            self._seen = now
            self._moved.set()
