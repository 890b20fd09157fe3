"""What one slot does under steady work, as the simulator has it: the tables that planning agents are built on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..simulator.blueprint import Blueprint
from ..simulator.catalog import Catalog
from ..simulator.cluster import Cluster
from ..simulator.host import host_power_w
from ..simulator.topology import ClusterSpec, EngineSpec, RackSpec, RowSpec, ServerSpec
from ..simulator.units import PS_PER_S
from ..simulator.workload.closed_loop import FASTEST_TOKEN_S
from ..simulator.workload.table import RequestTable

SETTLING_S = 15
SPANS_S = (30, 120, 480)
"""Time that is measured: the shortest in which a batch is served several times over, for there are steps in between."""
TIMES_OVER = 6
SIDES = ("prompt", "output")


@dataclass(frozen=True)
class SteadyState:
    """A slot with always as many requests of one length in flight.

    Attributes:
        requests_per_s: Requests that it serves.
        residence_s: Mean time from the start of a request to its last token, by Little's law.
        gpu_w: Power of its GPUs.
        idle_w: Power of its GPUs at rest, weights resident.
        cpu_w: Power of the host's CPUs that the instance and its requests add.
    """

    requests_per_s: float
    residence_s: float
    gpu_w: float
    idle_w: float
    cpu_w: float


def alone(server: ServerSpec) -> ServerSpec:
    """One slot of a server by itself, by which equal slots of any cluster share their measurements."""
    same = {name: getattr(server, name) for name in ("gpu", "tp", "pp", "ep", "model")}
    return ServerSpec(gpus=server.tp * server.pp, **same)


@lru_cache(maxsize=256)
def _blueprint(slot: ServerSpec, engine: EngineSpec) -> Blueprint:
    row = RowSpec(racks=(RackSpec(servers=(slot,)),))
    return Blueprint.of(ClusterSpec(rows=(row,), engine=engine))


@lru_cache(maxsize=4096)
def steady_state(
    slot: ServerSpec, engine: EngineSpec, prompt: int, output: int, in_flight: int, cap_share: float = 1.0
) -> SteadyState:
    """Measures a slot in the simulator, after it has settled.

    Args:
        slot: The slot, see :func:`alone`; it must hold a model.
        engine: Limits of the engine.
        prompt: Prompt tokens of every request.
        output: Output tokens of every request.
        in_flight: Requests in flight at any time.
        cap_share: Power limit as a share of the range that the driver accepts.

    Returns:
        Means over the measured time.
    """
    blueprint = _blueprint(slot, engine)
    fastest_per_s = in_flight / (output * FASTEST_TOKEN_S)
    count = in_flight + int(fastest_per_s * (SETTLING_S + SPANS_S[0]))
    lengths = (np.full(count, tokens) for tokens in (prompt, output))
    requests = RequestTable.from_columns(np.zeros(count), *lengths)
    cluster = Cluster(blueprint, requests, np.random.default_rng(0), SETTLING_S + SPANS_S[0])
    cluster.limit(in_flight)
    cluster.cap(blueprint.cap_min_w + cap_share * (blueprint.cap_max_w - blueprint.cap_min_w))
    served = 0.0
    for span_s in SPANS_S:
        cluster.advance((SETTLING_S + span_s) * PS_PER_S)
        seconds = cluster.history.column("energy_j", span_s)
        prompts, outputs = (float(cluster.history.column(f"{side}_tokens", span_s).sum()) for side in SIDES)
        served = (prompts + outputs) / (prompt + output)
        if served >= TIMES_OVER * in_flight or served == 0:
            break
    requests_per_s = served / len(seconds)
    power = blueprint.deployments[blueprint.initial[0]].power
    host = Catalog.builtin().gpu(slot.gpu).host
    return SteadyState(
        requests_per_s=requests_per_s,
        residence_s=in_flight / requests_per_s if requests_per_s else np.inf,
        gpu_w=float(seconds.mean()),
        idle_w=power.idle_w,
        cpu_w=host_power_w(host, 1.0, in_flight) - host.idle_w,
    )
