"""Greedy energy: requests go where a token costs least at the margin, as far as that keeps the SLO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..envs.actions import ClusterAction
from ..simulator.workload.table import ANY_MODEL
from .base import Agent, Heuristic, Task, View
from .kinds import Kind, cap_shares, kinds_of, serve, usable
from .sweep import steady_state
from .traffic import Stream, Traffic

if TYPE_CHECKING:
    from ..envs.cluster_env import LLMClusterEnv

BATCHES = (4, 8, 16, 32, 64)
LOADS = (0.65, 0.8, 0.95)
MARGINS = (0.6, 0.8)
PATIENCES = (3, 12, 30)
CAP_LEVELS = 5


@dataclass(frozen=True)
class OperatingPoint:
    """How a slot of a kind is to be run.

    Attributes:
        in_flight: Requests in flight.
        cap_share: Power limit as a share of its range.
        requests_per_s: Requests that it then serves.
        j_per_token: Energy per output token beyond what the slot draws at rest: what one more costs.
    """

    in_flight: int
    cap_share: float
    requests_per_s: float
    j_per_token: float


def thriftiest_point(task: Task, kind: Kind, stream: Stream, margin: float) -> OperatingPoint:
    """The operating point with the least marginal energy per token among those that keep the TPOT, by sweep.

    Where none does, that with the shortest time per token: as near to the SLO as can be.

    Args:
        task: The task.
        kind: The slots.
        stream: What they serve.
        margin: Share of the TPOT limit that the mean may take: single requests and bursts take longer.
    """
    engine = task.blueprint.spec.engine
    prompt, output = round(max(stream.prompt_tokens, 1)), round(max(stream.output_tokens, 1))
    best: tuple[tuple[bool, float], OperatingPoint] | None = None
    for in_flight in sorted({min(batch, engine.max_num_seqs) for batch in BATCHES}):
        for share in cap_shares(task, CAP_LEVELS):
            steady = steady_state(kind.slot, engine, prompt, output, in_flight, share)
            tpot_s = steady.residence_s / output
            late = tpot_s > margin * stream.slo.tpot_s
            tokens_per_s = max(steady.requests_per_s * output, 1e-9)
            j_per_token = (steady.gpu_w + steady.cpu_w - steady.idle_w) / tokens_per_s
            rank = (late, tpot_s if late else j_per_token)
            if best is None or rank < best[0]:
                best = rank, OperatingPoint(in_flight, share, steady.requests_per_s, j_per_token)
    assert best is not None
    return best[1]


class GreedyEnergy(Heuristic):
    """Fills the slots with the lowest marginal joules per token first, each up to the batch that keeps the SLO.

    What a token costs at which batch and cap comes from sweeps of the simulator; slots that are not needed sleep.

    Args:
        task: What may be known beforehand.
        load: Share of what a slot serves at its operating point that is planned with: the rest is for bursts.
        patience: Ticks of low traffic before a slot sleeps.
        margin: Share of the TPOT limit that the mean may take.
    """

    def __init__(self, task: Task, load: float = 0.8, patience: int = 3, margin: float = 0.8) -> None:
        super().__init__(task)
        self._kinds, self._load = kinds_of(task), load
        self._traffic = Traffic(task, patience)
        streams = {stream.model: c for c, stream in enumerate(self._traffic.streams)}
        self._class = [streams.get(kind.model, streams.get(ANY_MODEL, 0)) for kind in self._kinds]
        self._points = [
            thriftiest_point(task, kind, self._traffic.streams[c], margin)
            for kind, c in zip(self._kinds, self._class, strict=True)
        ]
        self._order = sorted(range(len(self._kinds)), key=lambda k: self._points[k].j_per_token)

    def watch(self, env: LLMClusterEnv) -> None:
        """Forgets the last episode."""
        self._traffic.forget()

    def forget(self, row: int) -> None:
        """Forgets the last episode of one row of a batch."""
        self._traffic.forget(row)

    def decide(self, view: View) -> ClusterAction:
        """Slots for the traffic to be ready for; see :class:`Heuristic`."""
        left = self._traffic.demand(view).requests_per_s.copy()
        chosen: list[list[int]] = [[] for _ in self._kinds]
        for k in self._order:
            each = self._load * self._points[k].requests_per_s
            slots = usable(view, self._kinds[k])
            count = min(int(np.ceil(left[self._class[k]] / max(each, 1e-9) - 1e-9)), len(slots))
            chosen[k] = slots[:count]
            left[self._class[k]] = max(left[self._class[k]] - count * each, 0.0)
        rate = np.array([point.requests_per_s for point in self._points])
        share = np.array([point.cap_share for point in self._points])
        return serve(self.task, view, chosen, self._kinds, rate, share)


def candidates(task: Task) -> dict[str, Agent]:
    """Every load with every patience and margin, by names that say so."""
    return {
        f"load {load:g}, patience {patience} ticks, margin {margin:g}": GreedyEnergy(task, load, patience, margin)
        for load in LOADS
        for patience in PATIENCES
        for margin in MARGINS
    }
