"""What can be watched while the reference engine runs."""

from __future__ import annotations

from ..kernels.state import Records


class Observer:
    """Is told of everything as it happens; override what you want to see.

    Times are picoseconds, requests are rows of the request table.
    """

    def iteration(
        self, slot: int, start_ps: int, end_ps: int, decodes: int, prefill_tokens: int, step: int, energy: int
    ) -> None:
        """An iteration has ended, or was lost when its slot failed at ``end_ps``; its energy in units of 1e-14 J."""

    def queued(self, slot: int, request: int, t: int) -> None:
        """The gateway has sent a request to a slot."""

    def admitted(self, slot: int, request: int, t: int, hit_tokens: int) -> None:
        """A request runs from now on, its first ``hit_tokens`` being cached."""

    def preempted(self, slot: int, request: int, t: int) -> None:
        """A request has lost its cache and waits again."""

    def first_token(self, slot: int, request: int, t: int) -> None:
        """A request has its first token."""

    def left(self, slot: int, request: int, t: int, status: int) -> None:
        """A request leaves a slot, or the gateway (slot -1), for good or to come again, as the status tells.

        For good: FINISHED, REJECTED, TIMED_OUT, LOST. To come again: IN_TRANSFER, PENDING (its client will try again),
        AT_GATEWAY (its slot has failed).
        """

    def second(self, slot: int, edge_ps: int, record: Records) -> None:
        """A second of a slot has ended; its tokens still lack those of an iteration that ends at ``edge_ps``."""
