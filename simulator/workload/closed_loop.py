"""Closed-loop clients: each sends its next request a think time after the last one was answered."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from ..errors import InputError
from ..units import PS_PER_S
from .arrivals import ARRIVALS, Arrivals
from .lengths import Lengths
from .modulation import Modulation
from .table import OPEN_LOOP, RequestTable

FASTEST_TOKEN_S = 0.002
"""Time per output token that no server modelled here beats, seconds: it bounds how many requests a client can send."""


@ARRIVALS.register("closed-loop")
class ClosedLoop(Arrivals):
    """A fixed number of clients with one request in flight each, every client one session.

    When a request is released is for the engine to find out (``think_ps`` of the table). The table holds enough
    requests per client for a server that answers a token every 2 ms.

    Attributes:
        clients: Number of clients.
        think_s: Mean pause between an answer and the next request, seconds.
        think: Distribution of the pause.
    """

    kind: Literal["closed-loop"] = "closed-loop"
    clients: int = Field(ge=1, le=1_000_000)
    think_s: float = Field(0.0, ge=0)
    think: Literal["exponential", "fixed"] = "exponential"

    def requests(
        self, duration_s: float, lengths: Lengths, modulation: Modulation | None, rng: np.random.Generator
    ) -> RequestTable:
        """Draws every client's requests; a client's first one comes after a pause drawn from the think time."""
        if modulation is not None:
            remedy = "Leave modulation out, or use open-loop arrivals"
            raise InputError("workload.modulation", "a closed loop has no rate to modulate", remedy)
        for_think, for_lengths = rng.spawn(2)
        mean_output = float(lengths.sample(1024, rng)[1].mean())
        cycle_s = self.think_s + mean_output * FASTEST_TOKEN_S
        per_client = int(1.2 * duration_s / cycle_s + 4 * np.sqrt(duration_s / cycle_s)) + 2
        shape = (self.clients, per_client)
        pause = np.full(shape, self.think_s) if self.think == "fixed" else for_think.exponential(self.think_s, shape)
        if self.think == "fixed":  # clients in step would be an artefact
            pause[:, 0] *= for_think.random(self.clients)
        think_ps = np.rint(pause * PS_PER_S).astype(np.int64)
        earliest = np.cumsum(think_ps, axis=1)
        think_ps[:, 0] = OPEN_LOOP
        session = np.broadcast_to(np.arange(self.clients)[:, None], shape)
        order = np.argsort(earliest, axis=None, kind="stable")
        order = order[: np.searchsorted(earliest.ravel()[order], round(duration_s * PS_PER_S))]
        prompt, output = lengths.sample(len(order), for_lengths)
        return RequestTable.from_columns(
            earliest.ravel()[order],
            prompt,
            output,
            session=session.ravel()[order],
            think_ps=think_ps.ravel()[order],
        )
