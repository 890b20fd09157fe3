"""One request while it lives."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..kernels.state import C_UNIT_TOKENS, Engine, Records
from .block_pool import Unit


@dataclass(slots=True, eq=False)
class Request:
    """A request from its arrival to its end; what others read goes into its row of the request table at once.

    Attributes:
        row: Its number.
        record: Its row of the request table.
        prompt: Tokens of its prompt.
        output: Tokens that it is to have in the end, which the scheduler never reads.
        model: The model that it names, -1 if any will do.
        level: Priority, 0 is served first.
        arrival_ps: When it first arrived.
        timeout_ps: Patience of its client, -1 if endless.
        hashes: Of the leading units of its prompt.
        sent_ps: When its client last sent it.
        attempts: How often its client has sent it again.
        generated: Tokens generated so far.
        target: Tokens to be cached before the next one is generated; prompt and those generated before admission.
        cached: Tokens in the KV cache.
        blocks: KV blocks held.
        units: Leading ones of these blocks, as far as they are full and hashed.
        transferred: Whether its prompt has been cached by a prefill slot and sent on.
    """

    row: int
    record: Records
    prompt: int
    output: int
    model: int
    level: int
    arrival_ps: int
    timeout_ps: int
    hashes: list[int]
    sent_ps: int = 0
    attempts: int = 0
    generated: int = 0
    target: int = 0
    cached: int = 0
    blocks: int = 0
    units: list[Unit] = field(default_factory=list)
    transferred: bool = False

    @classmethod
    def of(cls, engine: Engine, row: int, now_ps: int) -> Request:
        """The request of a row of the table, which arrives now."""
        record = engine.requests[row]
        record["arrival_ps"] = now_ps
        first, units = record["prefix"], record["units"] if engine.cursor[C_UNIT_TOKENS] else 0
        return cls(
            row=row,
            record=record,
            prompt=int(record["prompt"]),
            output=int(record["output"]),
            model=int(record["model"]),
            level=int(record["level"]),
            arrival_ps=now_ps,
            timeout_ps=int(record["timeout_ps"]),
            hashes=engine.hashes[first : first + units].tolist(),
        )

    @property
    def prefilling(self) -> bool:
        """Whether tokens are missing in the cache before the next one can be generated."""
        return self.cached < self.target

    def impatient(self, now_ps: int) -> bool:
        """Whether its client has given up: no token has come in time."""
        return self.generated == 0 and self.timeout_ps >= 0 and now_ps > self.sent_ps + self.timeout_ps

    def give_up_cache(self) -> None:
        """Forgets what was cached, whose blocks are no longer its own."""
        self.target = self.cached = self.blocks = 0
        self.units = []
