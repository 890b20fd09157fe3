"""The cluster that benchmarks run on, and one run of it against the clock."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ...simulator.blueprint import Blueprint
from ...simulator.cluster import Cluster
from ...simulator.playback import DRAIN_S
from ...simulator.topology import ClusterSpec, RackSpec, RowSpec, ServerSpec
from ...simulator.workload.table import RequestTable

GPUS_PER_SERVER = 8


@dataclass(frozen=True)
class Setup:
    """Replicas of one model, all alike.

    Attributes:
        gpu: Name of the GPU in the catalogue.
        model: Name of the model in the catalogue.
        tp: GPUs of one replica.
        replicas: Number of replicas.
        router: How requests are dealt to them.
    """

    gpu: str = "H100-80GB"
    model: str = "Llama-3.1-8B"
    tp: int = 1
    replicas: int = 8
    router: str = "round-robin"

    def blueprint(self) -> Blueprint:
        """The replicas in servers of eight GPUs, as far as they fill them; raises `InputError` if they do not fit."""
        per_server = max(1, GPUS_PER_SERVER // self.tp)
        full, rest = divmod(self.replicas, per_server)
        sizes = [(per_server, full)] * (full > 0) + [(rest, 1)] * (rest > 0)
        servers = tuple(
            ServerSpec(gpu=self.gpu, gpus=slots * self.tp, tp=self.tp, model=self.model, count=count)
            for slots, count in sizes
        )
        return Blueprint.of(ClusterSpec(rows=(RowSpec(racks=(RackSpec(servers=servers),)),)))

    def cluster(self, blueprint: Blueprint, requests: RequestTable, expected_s: float | None = None) -> Cluster:
        """A cluster at the start of a run; power caps are open, meters and heat are on as always."""
        length_s = requests.duration_s if expected_s is None else expected_s
        cluster = Cluster(blueprint, requests, np.random.default_rng(0), math.ceil(length_s) + 64)
        cluster.route(np.ones(len(blueprint.slots)), self.router)
        return cluster


class Cost(NamedTuple):
    """What a run took.

    Attributes:
        wall_s: Time on the clock, seconds.
        cpu_s: Time of the processor, seconds: where others share it, this shows what the run itself costs.
    """

    wall_s: float
    cpu_s: float


def play(cluster: Cluster, until_ps: int) -> Cost:
    """Runs to ``until_ps`` and on until every request has left."""
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    cluster.advance(until_ps)
    cluster.drain(DRAIN_S)
    return Cost(time.perf_counter() - wall_s, time.process_time() - cpu_s)
