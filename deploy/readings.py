"""What a real cluster tells, source by source, before it becomes telemetry; every reading says when it was taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


class ReadingError(Exception):
    """A source did not answer, or not in time; it may do so again. The message says what to look at."""


@dataclass(frozen=True)
class GpuReading:
    """One GPU at one instant; `None` is what it does not tell.

    Attributes:
        time_s: When it was read, seconds of a monotonic clock.
        power_w: Power at this instant, watts.
        mean_power_w: Power as NVML averages it, watts.
        energy_j: Energy since the driver was loaded, joules.
        temperature_c: Die temperature, °C.
        slowdown_c: Die temperature at which the GPU slows down, °C.
        clock_mhz: SM clock.
        max_clock_mhz: Highest SM clock.
        utilisation: Share of time with a kernel running.
        memory_used_bytes: Memory in use.
        memory_bytes: Memory that there is.
        throttle: Names of the reasons why the clock is held back, such as ``sw_power_cap``, ``hw_thermal_slowdown``,
            ``hw_power_brake``.
        limit_w: Power limit that was asked for, watts.
        enforced_w: Power limit in force, watts.
    """

    time_s: float
    power_w: float | None = None
    mean_power_w: float | None = None
    energy_j: float | None = None
    temperature_c: float | None = None
    slowdown_c: float | None = None
    clock_mhz: float | None = None
    max_clock_mhz: float | None = None
    utilisation: float | None = None
    memory_used_bytes: int | None = None
    memory_bytes: int | None = None
    throttle: frozenset[str] = frozenset()
    limit_w: float | None = None
    enforced_w: float | None = None


@dataclass(frozen=True)
class EngineReading:
    """One inference server at one instant. Counters go on from where they were when the server starts anew.

    Attributes:
        time_s: When it was read, seconds of a monotonic clock.
        running: Requests in the batch.
        waiting: Requests in the queue.
        kv_used: Share of the KV cache in use.
        prompt_tokens: Prompt tokens computed so far.
        output_tokens: Tokens generated so far.
        preemptions: Requests that lost their cache so far.
        iterations: Iterations so far, 0 where the server does not tell.
        asleep: Whether the server sleeps.
    """

    time_s: float
    running: float = 0.0
    waiting: float = 0.0
    kv_used: float = 0.0
    prompt_tokens: float = 0.0
    output_tokens: float = 0.0
    preemptions: float = 0.0
    iterations: float = 0.0
    asleep: bool = False


@dataclass(frozen=True)
class GatewayReading:
    """The gateway at one instant; counters since it started.

    Attributes:
        time_s: When it was read, seconds of a monotonic clock.
        arrivals: Requests that have come in.
        arriving_tokens: Their prompt tokens, counted where the prompt comes as token ids, estimated where as text.
        held: Requests that wait here for a backend.
        left: Requests that have ended.
        met_slo: Those of them that met their SLO.
        router: Router in force.
        weights: Routing weight in force, by backend.
        limits: In-flight limit in force, by backend; 0 for none.
        in_flight: Requests under way, by backend.
        healthy: Whether each backend answers.
    """

    time_s: float
    arrivals: int
    arriving_tokens: float
    held: int
    left: int
    met_slo: int
    router: str
    weights: Mapping[str, float]
    limits: Mapping[str, int]
    in_flight: Mapping[str, int]
    healthy: Mapping[str, bool]


class GpuSource(Protocol):
    """Reads GPUs: NVML itself, or DCGM-exporter's metrics."""

    def read(self) -> dict[str, GpuReading]:
        """Readings by the GPU's name in the configuration; GPUs that are lost are not among them.

        Raises:
            ReadingError: None can be read.
        """


class EngineSource(Protocol):
    """Reads one inference server."""

    def read(self) -> EngineReading:
        """The reading of now.

        Raises:
            ReadingError: It does not answer in time.
        """


class GatewayClient(Protocol):
    """The gateway, as the control loop sees it."""

    def read(self) -> GatewayReading:
        """The reading of now.

        Raises:
            ReadingError: It does not answer in time.
        """

    def steer(
        self,
        router: str | None,
        weights: Mapping[str, float],
        limits: Mapping[str, int],
        closed: Sequence[str] | None = None,
    ) -> None:
        """Sets router, routing weights and in-flight limits (0 for none); they lapse unless set again in time.

        Backends that are ``closed`` take no new request; where it is not given, those of weight 0.

        Raises:
            ReadingError: It does not answer in time, or refuses.
        """


@dataclass(frozen=True)
class Limits:
    """Power limits of one GPU after a write, watts: as asked for and as read back."""

    requested_w: float
    enforced_w: float


class LimitWriter(Protocol):
    """Whoever may write power limits: the keeper. What was written is undone when this side falls silent."""

    def set_power_limit(self, gpu: str, watts: float) -> Limits:
        """Sets a GPU's power limit, and reads it back."""

    def lock_clock(self, gpu: str, highest_mhz: float | None) -> None:
        """Bounds the SM clock of a GPU; `None` sets it free."""

    def beat(self) -> None:
        """Says that this side lives."""

    def restore(self) -> None:
        """Sets every GPU back to what it was."""
