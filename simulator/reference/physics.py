"""Time, energy, clock and heat of a slot: the arithmetic of docs/engine.md on plain numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from ..kernels.state import ACTIVE, CLOCK, COMPUTE, COMPUTING, DECAY, LINK, MEMORY, RESISTANCE, Engine
from .control import Control
from .scheduler import Plan

COARSE = 10
"""The governor judges by times cut to 2^10 ps."""


@dataclass(frozen=True, slots=True)
class Work:
    """What an iteration computes.

    Attributes:
        tokens: Batched tokens.
        sequences: Requests that they belong to.
        pairs: Pairs of a query token and a token that it attends to.
        read: Cached tokens read.
        chunked: Whether a prompt is among it.
    """

    tokens: int
    sequences: int
    pairs: int
    read: int
    chunked: bool

    @classmethod
    def of(cls, plan: Plan) -> Work:
        """The work of a plan."""
        tokens = len(plan.decodes) + plan.prefill_tokens
        # A decode reads and attends what is cached, and its own token.
        pairs = read = sum([request.cached for request in plan.decodes]) + len(plan.decodes)
        for request, chunk in plan.chunks:
            pairs += chunk * request.cached + chunk * (chunk + 1) // 2
            read += request.cached
        return cls(tokens, len(plan.decodes) + len(plan.chunks), pairs, read, bool(plan.chunks))


class Times(NamedTuple):
    """How long an iteration lasts, and its parts, in picoseconds.

    Attributes:
        length: All of it.
        host: GPUs wait.
        link: They communicate.
        compute: They compute.
        memory: They read weights and states, or choose next tokens.
        cache: They read keys and values.
    """

    length: int
    host: int
    link: int
    compute: int
    memory: int
    cache: int


class Physics:
    """Time and energy of iterations of one deployment."""

    def __init__(self, engine: Engine, deployment: int) -> None:
        cost, watt = engine.cost[deployment], engine.watt[deployment]
        record = engine.deployments[deployment]
        self._link_ps, self._compute_ps, self._memory_ps = (cost[i].tolist() for i in (LINK, COMPUTE, MEMORY))
        self._attention_ps, self._kv_read_ps = int(record["attention_ps"]), int(record["kv_read_ps"])
        self._step_ps, self._sequence_ps, self._state_ps = (
            int(record[f"{name}_ps"]) for name in ("step", "sequence", "state")
        )
        self._gap_ps, self._sample_ps = int(record["gap_ps"]), int(record["sample_ps"])
        self._active_cw, self._computing_cw = watt[ACTIVE].tolist(), watt[COMPUTING].tolist()
        self._idle_cw, self._memory_cw, self._cache_cw, self._link_cw = (
            int(record[f"{name}_cw"]) for name in ("idle", "memory", "cache", "link")
        )
        self.clock: list[float] = engine.ladder[deployment, CLOCK].tolist()

    def highest_step(self, work: Work, top: int, cap_cw: int) -> int:
        """The highest clock, ``top`` at most, at which ``work`` keeps under a cap; the lowest if none does."""
        for step in range(top, 0, -1):
            times = self._times(work, self._compute_at_once(work, step))
            cut = Times(*(time_ps >> COARSE for time_ps in times))
            if self._energy(step, cut) <= cap_cw * cut.length:
                return step
        return 0

    def run(self, work: Work, step: int) -> tuple[int, int]:
        """Length and energy of an iteration at a clock."""
        if work.chunked:
            compute_ps = self._compute_at_once(work, step)
        else:
            # Rounded once per batch size and once per pair, so that a leap over many iterations can be exact.
            clock = self.clock[step]
            compute_ps = round(self._compute_ps[work.tokens] / clock) + round(self._attention_ps / clock) * work.pairs
        times = self._times(work, compute_ps)
        return times.length, self._energy(step, times)

    def _compute_at_once(self, work: Work, step: int) -> int:
        at_top: int = self._compute_ps[work.tokens] + self._attention_ps * work.pairs
        return round(at_top / self.clock[step])

    def _times(self, work: Work, compute_ps: int) -> Times:
        host_ps = self._step_ps + self._sequence_ps * work.sequences
        link_ps = self._link_ps[work.tokens]
        memory_ps = self._memory_ps[work.tokens] + self._state_ps * work.sequences
        cache_ps = self._kv_read_ps * work.read
        sample_ps = self._sample_ps * work.sequences
        fixed_ps = host_ps + self._gap_ps + sample_ps + link_ps
        length_ps = fixed_ps + max(compute_ps, memory_ps + cache_ps)
        return Times(length_ps, host_ps, link_ps, compute_ps, memory_ps + sample_ps, cache_ps)

    def _energy(self, step: int, times: Times) -> int:
        clocked: int = self._active_cw[step] * (times.length - times.host) + self._computing_cw[step] * times.compute
        read: int = self._memory_cw * times.memory + self._cache_cw * times.cache
        return self._idle_cw * times.length + clocked + read + self._link_cw * times.link


@dataclass
class Governor:
    """Chooses the clock of one slot.

    Attributes:
        step: The choice.
        holds: Whether decodes keep it: until the batch changes, a second closes or control intervenes.
    """

    step: int = 0
    holds: bool = False

    def choose(self, physics: Physics, work: Work, control: Control, throttled: bool) -> int:
        """The clock for an iteration."""
        if work.chunked or not self.holds:
            quarter = len(physics.clock) // 4
            top = min(control.clock_limit, quarter) if throttled else control.clock_limit
            self.step = physics.highest_step(work, top, control.cap_cw)
            self.holds = True
        return self.step


@dataclass
class Heat:
    """Temperature and thermal throttle of one slot.

    Attributes:
        rise_k: Over each thermal pole.
        throttled: Whether the clock is forced down.
        events: How often that has begun.
    """

    rise_k: list[float] = field(default_factory=lambda: [0.0, 0.0])
    throttled: bool = False
    events: int = 0

    def pass_second(self, engine: Engine, deployment: int, power_w: float, inlet_c: float) -> float:
        """Lets a second at a mean power pass; returns the temperature at its end."""
        record, thermal = engine.deployments[deployment], engine.thermal[deployment]
        gpu_w = power_w / int(record["gpus"])
        temperature_c = inlet_c
        for pole in range(2):
            resistance, decay = float(thermal[RESISTANCE, pole]), float(thermal[DECAY, pole])
            self.rise_k[pole] = self.rise_k[pole] * decay + resistance * gpu_w * (1.0 - decay)
            temperature_c += self.rise_k[pole]
        if not self.throttled and temperature_c >= record["throttle_c"]:
            self.throttled = True
            self.events += 1
        elif self.throttled and temperature_c <= record["resume_c"]:
            self.throttled = False
        return temperature_c
