"""Looks at all sources once a second: what each said last, and what is wrong with it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

from .polling import Poll
from .readings import EngineReading, GatewayClient, GatewayReading, GpuReading, GpuSource, ReadingError
from .readings import EngineSource as Engine

R = TypeVar("R")


@dataclass(frozen=True)
class Held(Generic[R]):
    """What a source said last.

    Attributes:
        reading: The last reading that holds; `None` before the first.
        at_s: When it came, by the loop's clock.
        fault: Why there is no newer one; empty where it is of the last look.
    """

    reading: R | None
    at_s: float
    fault: str = ""

    def fresh(self, now_s: float, stale_s: float) -> R | None:
        """The reading, unless it is older than ``stale_s``."""
        return self.reading if now_s - self.at_s <= stale_s else None


@dataclass(frozen=True)
class Look:
    """All sources at one instant.

    Attributes:
        time_s: When, by the loop's clock.
        gpus: By the GPU's name in the configuration.
        engines: By slot.
        gateway: The gateway.
    """

    time_s: float
    gpus: Mapping[str, Held[GpuReading]]
    engines: Mapping[str, Held[EngineReading]]
    gateway: Held[GatewayReading]


class Sampler:
    """Reads all sources side by side, each within a time limit, and holds what they said last.

    Args:
        gpus: Reads the GPUs.
        names: The GPUs that there are.
        engines: Reads the inference server of each slot.
        gateway: Reads the gateway; a recorder may have none.
        timeout_s: A source that takes longer has not answered.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        gpus: GpuSource,
        names: tuple[str, ...],
        engines: Mapping[str, Engine],
        gateway: GatewayClient | None,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._timeout_s, self._clock = timeout_s, clock
        self._gpus = Poll("the GPUs", gpus.read)
        self._engines = {slot: Poll(f"the server of {slot}", engine.read) for slot, engine in engines.items()}
        self._gateway = None if gateway is None else Poll("the gateway", gateway.read)
        never = -math.inf
        self._held_gpus: dict[str, Held[GpuReading]] = dict.fromkeys(names, Held(None, never, "was never read"))
        self._held_engines: dict[str, Held[EngineReading]] = dict.fromkeys(engines, Held(None, never, "was never read"))
        self._held_gateway: Held[GatewayReading] = Held(None, never, "was never read")

    def look(self) -> Look:
        """Looks at everything now; it takes no longer than the time limit."""
        polls: list[Poll[Any]] = [self._gpus, *self._engines.values(), *([self._gateway] if self._gateway else [])]
        # An answer that comes after its time is of no use, for nobody knows how old it is: the source is asked anew.
        late = [poll for poll in polls if not poll.ask()]
        until_s = time.monotonic() + self._timeout_s
        try:
            if self._gpus in late:
                raise ReadingError(f"{self._gpus.name} do not answer since an earlier look")
            seen, fault = self._gpus.take(until_s), "is lost"
        except ReadingError as problem:
            seen, fault = {}, str(problem)
        for name, held in self._held_gpus.items():
            self._held_gpus[name] = self._renewed(held, seen.get(name), fault)
        for slot, engine in self._engines.items():
            self._held_engines[slot] = self._taken(self._held_engines[slot], engine, engine in late, until_s)
        if self._gateway is not None:
            self._held_gateway = self._taken(self._held_gateway, self._gateway, self._gateway in late, until_s)
        return Look(self._clock(), dict(self._held_gpus), dict(self._held_engines), self._held_gateway)

    def _taken(self, held: Held[R], poll: Poll[R], late: bool, until_s: float) -> Held[R]:
        try:
            if late:
                raise ReadingError(f"{poll.name} does not answer since an earlier look")
            return self._renewed(held, poll.take(until_s), "")
        except ReadingError as problem:
            return Held(held.reading, held.at_s, str(problem))

    def _renewed(self, held: Held[R], reading: R | None, fault: str) -> Held[R]:
        if reading is not None and (lie := impossible(reading)):
            reading, fault = None, lie
        return Held(held.reading, held.at_s, fault) if reading is None else Held(reading, self._clock())


def impossible(reading: object) -> str:
    """What cannot be true of a reading: numbers that are none, are negative, or are shares above 1; else nothing."""
    for field in fields(reading):  # type: ignore[arg-type]
        value = getattr(reading, field.name)
        if isinstance(value, bool | str) or not isinstance(value, int | float):
            continue
        if not math.isfinite(value) or (value < 0 and field.name != "temperature_c"):
            return f"says {field.name} = {value}, which cannot be"
        if field.name in ("kv_used", "utilisation") and value > 1:
            return f"says {field.name} = {value}, which is more than all"
    return ""
