"""Profiling a slot in the simulator: all caps and batch limits at once, each on a slot of its own."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...envs.scenario import Scenario
from ...simulator.blueprint import Blueprint
from ...simulator.cluster import Cluster
from ...simulator.topology import ClusterSpec, EngineSpec, RackSpec, RowSpec, ServerSpec
from ...simulator.units import PS_PER_S
from ...simulator.workload.fitted import FittedLengths
from ...simulator.workload.lengths import Lengths
from ...simulator.workload.table import RequestTable
from .table import PowerTable, Seconds

WARM_UP_S, MEASURED_S = 150, 400
"""The batches fill with prompts first, which takes the largest at the lowest cap longest."""
REQUESTS_PER_SLOT = 256
MOST_LEVELS = 7
"""Caps and batches that are run; what lies between them is interpolated."""
SEED = 2026
"""Lengths are drawn afresh for the sweep: it knows how long requests are like to be, not those that will come."""


def lengths_of(scenario: Scenario, model: str) -> Lengths:
    """The lengths that a scenario expects of a model's requests; those of the Azure conversations for a trace."""
    workload = scenario.workload
    streams = workload.streams or (workload,)
    known = [s for s in streams if s.requests is not None]
    own = [s for s in known if s.model == model] or known
    return own[0].requests if own and own[0].requests else FittedLengths(kind="azure-2023-conv")


def mean_tokens(lengths: Lengths) -> tuple[float, float]:
    """Prompt and output tokens of a request to be expected."""
    prompt, output = lengths.sample(4096, np.random.default_rng(SEED))
    return float(prompt.mean()), float(output.mean())


def fewer(levels: NDArray[Any]) -> NDArray[Any]:
    """At most :data:`MOST_LEVELS` of some levels, the outermost among them."""
    chosen = np.unique(np.linspace(0, len(levels) - 1, min(len(levels), MOST_LEVELS)).round().astype(int))
    few: NDArray[Any] = levels[chosen]
    return few


@lru_cache(maxsize=64)
def sweep(
    server: ServerSpec, engine: EngineSpec, lengths: Lengths, cap_w: tuple[float, ...], batch: tuple[int, ...]
) -> PowerTable:
    """Table of a model on a kind of slot, from a simulated run in which requests never run out.

    The paper sweeps caps and batch sizes on the machine (section 3.1). Here each pair has a slot of its own in one
    cluster, which a crowd at the gateway keeps full.

    Args:
        server: A server that is that slot, and serves.
        engine: Engine limits.
        lengths: What requests are like.
        cap_w: Power limits, ascending, watts.
        batch: Limits of requests in flight, ascending.
    """
    size = len(cap_w) * len(batch)
    alike = server.model_copy(update={"count": size})
    spec = ClusterSpec(rows=(RowSpec(racks=(RackSpec(servers=(alike,)),)),), engine=engine)
    blueprint = Blueprint.of(spec)
    caps, limits = np.repeat(cap_w, len(batch)), np.tile(batch, len(cap_w))
    count, cluster = REQUESTS_PER_SLOT * size, None
    while cluster is None or cluster.held_at_gateway == 0:
        rng = np.random.default_rng(SEED)
        prompt, output = lengths.sample(count, rng)
        requests = RequestTable.from_columns(np.zeros(count, np.int64), prompt, output)
        cluster = Cluster(blueprint, requests, rng, WARM_UP_S + MEASURED_S)
        cluster.cap(caps)
        cluster.limit(limits)
        cluster.route(np.ones(size), "least-outstanding")
        cluster.advance((WARM_UP_S + MEASURED_S) * PS_PER_S)
        count *= 2
    column = cluster.history.column
    seconds = Seconds(
        cap_w=np.tile(caps, MEASURED_S),
        in_flight=np.tile(limits, MEASURED_S).astype(np.float64),
        running=column("running", MEASURED_S).ravel().astype(np.float64),
        tokens=column("output_tokens", MEASURED_S).ravel().astype(np.float64),
        power_w=column("energy_j", MEASURED_S).ravel(),
    )
    return PowerTable.of_seconds(seconds, np.array(cap_w), np.array(batch, np.int64))
