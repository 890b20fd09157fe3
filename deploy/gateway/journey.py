"""A request's way through the gateway, from its arrival to its end, and whether it met its SLO."""

from __future__ import annotations

from ...envs.spec import SloSpec
from .prompts import Asked
from .sse import Usage


class Journey:
    """What is noted of one request.

    A stream is judged by the time to its first event with content, and by the mean time per token after that; tokens
    are those that `usage` tells, or else the events with content. An answer in one piece tells neither: it met its SLO
    if it came within the time that a stream of its length might have taken at most, TTFT + (tokens - 1) · TPOT, with
    one token where `usage` does not say. A request that the backend refuses as wrong is judged like an answer without
    tokens; one that fails, is refused for lack of room, or whose client goes away, has missed its SLO.

    Args:
        asked: The request.
        slo_class: Name of its SLO class.
        slo: Its SLO.
        began_s: When it came in.

    Attributes:
        usage: What the answer tells.
        status: HTTP status of the answer; 499, as nginx has it, where the client has gone away.
        retries: Attempts after the first one.
        streamed: Whether the answer came as a stream.
        first_s: When the first content came.
        last_s: When the last content came.
    """

    def __init__(self, asked: Asked, slo_class: str, slo: SloSpec, began_s: float) -> None:
        self.asked, self.slo_class, self._slo, self.began_s = asked, slo_class, slo, began_s
        self.usage = Usage()
        self.status, self.retries, self.streamed, self.broken = 0, 0, False, False
        self.first_s: float | None = None
        self.last_s: float | None = None

    def pass_events(self, events: bytes, now_s: float) -> None:
        """Events go to the client."""
        if self.usage.read_events(events):
            self.first_s = now_s if self.first_s is None else self.first_s
            self.last_s = now_s

    @property
    def tokens(self) -> int | None:
        """Tokens of the answer as far as it is known."""
        if self.usage.output_tokens is not None:
            return self.usage.output_tokens
        return self.usage.chunks if self.streamed else None

    @property
    def ttft_s(self) -> float | None:
        """Time to the first content of a stream."""
        return None if self.first_s is None else self.first_s - self.began_s

    @property
    def tpot_s(self) -> float | None:
        """Mean time per output token of a stream after the first."""
        return self._mean(self.tokens)

    @property
    def itl_s(self) -> float | None:
        """Mean time between events with content."""
        return self._mean(self.usage.chunks)

    def met_slo(self, now_s: float) -> bool:
        """Whether a request that ends now has met its SLO."""
        if self.broken or self.status >= 500 or self.status in (429, CLIENT_GONE):
            return False
        if self.ttft_s is not None:
            return self.ttft_s <= self._slo.ttft_s and (self.tpot_s or 0.0) <= self._slo.tpot_s
        after_first = max((self.tokens or 1) - 1, 0)
        return now_s - self.began_s <= self._slo.ttft_s + after_first * self._slo.tpot_s

    def _mean(self, count: int | None) -> float | None:
        if self.first_s is None or self.last_s is None or count is None or count < 2:
            return None
        return (self.last_s - self.first_s) / (count - 1)


CLIENT_GONE = 499
