"""What happens when something fails: the table that docs/deploy.md shows, and the action in place of the agent's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..envs.actions import ClusterAction
from ..envs.telemetry import Fleet

ROUTER = "least-outstanding"


@dataclass(frozen=True)
class Response:
    """What the loop does about a failure.

    Attributes:
        when: What has failed.
        does: What the loop does.
        grave: Whether it falls back, which is to do without the agent.
    """

    when: str
    does: str
    grave: bool


RESPONSES: dict[str, Response] = {
    "gpu": Response(
        "A GPU is lost, or silent for `telemetry.stale_s`",
        "Its slot counts as failed: no requests go there and no limit is written to it; the agent goes on with the "
        "others",
        False,
    ),
    "engine": Response(
        "An inference server is silent for `telemetry.stale_s`, or its metrics cannot be true",
        "Its slot counts as failed and gets no requests; the agent goes on with the others",
        False,
    ),
    "start": Response(
        "A server does not sleep, wake, load or stop as it was told to",
        "The slot is what its server says it is; the command is tried again after 30 s",
        False,
    ),
    "limits": Response(
        "The keeper cannot be reached, refuses, or the driver does (no permission)",
        "Limits stay as the keeper has restored or left them; the agent goes on with routing; tried again at every "
        "decision",
        False,
    ),
    "steer": Response(
        "The gateway refuses or does not take what it is told",
        "Tried again every second; if it fails for `gateway.lease_s`, the gateway falls back by itself: equal weights, "
        "least-outstanding, no in-flight limits",
        False,
    ),
    "site": Response(
        "A file of `[site]` cannot be read",
        "Its last value holds, and the audit log says so",
        False,
    ),
    "telemetry": Response(
        "No GPU at all, or no server at all, tells anything for `telemetry.stale_s`", "Falls back", True
    ),
    "gateway": Response("The gateway tells nothing for `telemetry.stale_s`", "Falls back", True),
    "budget": Response(
        "The file of the budget cannot be read for `telemetry.stale_s`",
        "Falls back, under the lowest budget there has been",
        True,
    ),
    "forecast": Response("The forecaster fails, or forecasts what is no number", "Falls back for this decision", True),
    "agent": Response(
        "The agent fails, gives what is no action, or takes longer than half a tick",
        "Falls back for this decision",
        True,
    ),
    "audit": Response(
        "The audit log cannot be written (the disk is full)",
        "Every limit is restored and none is written until lines can be written again; the gateway falls back",
        True,
    ),
}
"""By kind, as the audit log names it."""


@dataclass(frozen=True)
class Trouble:
    """Something that has failed.

    Attributes:
        kind: A key of :data:`RESPONSES`.
        what: Which part.
        text: What is known of it.
    """

    kind: str
    what: str
    text: str

    @property
    def grave(self) -> bool:
        """Whether the loop falls back."""
        return RESPONSES[self.kind].grave


def fallback(fleet: Fleet, default_w: NDArray[np.float64]) -> ClusterAction:
    """Default limits, equal weights, least outstanding; every slot's target stays as it is.

    The guards hold for it as for any action, so that the default limits come down to the budget where it is lower.

    Args:
        fleet: The slots.
        default_w: Default limit of each, watts (R,).
    """
    size = len(fleet)
    return ClusterAction(
        router=ROUTER,
        route_weight=np.ones(size),
        cap_w=default_w.copy(),
        clock_ratio=np.ones(size),
        concurrency=np.full(size, fleet.max_num_seqs, np.int64),
    )


def table() -> str:
    """The responses as rows of Markdown: what, what the loop does, what of the agent."""
    return "\n".join(
        f"| {one.when} | {one.does} | {'is not asked' if one.grave else 'goes on'} |" for one in RESPONSES.values()
    )
