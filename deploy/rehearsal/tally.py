"""What the simulator's telemetry leaves out and meters of a real machine tell."""

from __future__ import annotations

from dataclasses import dataclass

from ...simulator.reference.observer import Observer


class Tally(Observer):
    """Counts what telemetry does not tell.

    Attributes:
        preemptions: By slot.
        busy_ps: Time in iterations that have ended, by slot.
        iterations: Iterations that have ended, by slot.
    """

    def __init__(self, slots: int) -> None:
        self.preemptions = [0] * slots
        self.busy_ps = [0] * slots
        self.iterations = [0] * slots

    def iteration(
        self, slot: int, start_ps: int, end_ps: int, decodes: int, prefill_tokens: int, step: int, energy: int
    ) -> None:
        """See :class:`Observer`."""
        self.busy_ps[slot] += end_ps - start_ps
        self.iterations[slot] += 1

    def preempted(self, slot: int, request: int, t: int) -> None:
        """See :class:`Observer`."""
        self.preemptions[slot] += 1


@dataclass(frozen=True)
class Counts:
    """Counters of one slot since the start, up to now.

    Attributes:
        energy: Units of 1e-14 J.
        prompt_tokens: Computed.
        output_tokens: Generated.
        busy_ps: Time with an iteration under way.
        power_w: Power of this instant, which is no counter.
    """

    energy: int
    prompt_tokens: int
    output_tokens: int
    busy_ps: int
    power_w: float
