"""One simulated day of a large cluster, server by server, with every result in Parquet."""

from __future__ import annotations

import math
import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...simulator.blueprint import Blueprint
from ...simulator.cluster import Cluster
from ...simulator.errors import InputError
from ...simulator.playback import DRAIN_S
from ...simulator.results import Names, ResultsWriter
from ...simulator.topology import ClusterSpec, RackSpec, RowSpec, ServerSpec, lay_out
from ...simulator.units import PS_PER_S
from ...simulator.workload.arrivals import Poisson
from ...simulator.workload.fitted import FittedLengths
from ...simulator.workload.modulation import Diurnal
from ...simulator.workload.stream import RequestStream
from ...simulator.workload.table import RequestTable

TROUGH, PEAK = 0.4, 1.6
"""Rate over the day relative to its mean, lowest and highest (assumed)."""
LENGTHS = FittedLengths(kind="azure-2023-conv")
MARGIN = 5.0
"""Standard deviations by which the expected number of requests lies above the one that is asked for."""
STEP_S = 3600
"""Simulated time between two helpings of results."""


@dataclass(frozen=True)
class Day:
    """The day of a cluster whose servers each get a share of the requests.

    A Poisson stream that is dealt to servers at random is an independent Poisson stream at each of them: servers can be
    simulated one after the other or side by side, and the outcome is the whole cluster's, exactly. Within a server,
    requests go round its GPUs, each of which holds the model.

    Attributes:
        servers: Number of servers.
        gpus: GPUs per server.
        requests: Requests of the day, at least.
        out: Folder of the results.
        seed: Seed of all that is drawn.
        gpu: Name of the GPU in the catalogue.
        model: Name of the model in the catalogue.
        every_s: Seconds to a row of the slots' record.
        length_s: Length of the day.
    """

    servers: int
    gpus: int
    requests: int
    out: Path
    seed: int = 0
    gpu: str = "H100-80GB"
    model: str = "Llama-3.1-8B"
    every_s: int = 60
    length_s: int = 86_400

    def spec(self, servers: int) -> ClusterSpec:
        """A row of so many of the servers."""
        server = ServerSpec(gpu=self.gpu, gpus=self.gpus, model=self.model, count=servers)
        return ClusterSpec(rows=(RowSpec(racks=(RackSpec(servers=(server,)),)),))

    def traffic(self, server: int) -> RequestStream:
        """What arrives at one server."""
        rng = np.random.default_rng(self.seed).spawn(self.servers)[server]
        expected = (self.requests + MARGIN * math.sqrt(self.requests)) / self.servers
        arrivals = Poisson(rate_per_s=expected / self.length_s)
        swing = Diurnal(period_s=self.length_s, low=TROUGH, high=PEAK)
        return RequestStream.generated(arrivals, LENGTHS, self.length_s, rng, swing)


@dataclass(frozen=True)
class Share:
    """What one server did, and what simulating it cost.

    Attributes:
        counts: Figures that add up over servers.
        phases: Processor's time by phase, seconds.
        process: Number of the process that did it.
        peak_bytes: The most memory that process has held.
    """

    counts: dict[str, float]
    phases: dict[str, float]
    process: int
    peak_bytes: int


class _Stopwatch:
    """Adds up the processor's time of phases, all threads of this process together."""

    def __init__(self) -> None:
        self.phases: dict[str, float] = {}
        self._last = time.process_time()

    def lap(self, phase: str) -> None:
        """Counts the time since the last call towards a phase."""
        now = time.process_time()
        self.phases[phase] = self.phases.get(phase, 0.0) + now - self._last
        self._last = now


def simulate_server(day: Day, server: int) -> Share:
    """Simulates one server's day and writes its results.

    Args:
        day: The day.
        server: Number of the server.

    Returns:
        What it did.
    """
    watch = _Stopwatch()
    requests = day.traffic(server).table()
    watch.lap("generation_s")
    blueprint = Blueprint.of(day.spec(1))
    cluster = Cluster(blueprint, requests, np.random.default_rng(day.seed), day.length_s + STEP_S)
    cluster.route(np.ones(day.gpus), "round-robin")
    watch.lap("preparation_s")
    slots = [slot.name for slot in lay_out(day.spec(day.servers))[server * day.gpus :][: day.gpus]]
    names = Names(slots, blueprint.models)
    written, seconds = 0, 0
    with ResultsWriter(day.out, names, f"server{server:04}", day.every_s) as writer:
        for _ in _hours(day, cluster):
            watch.lap("engine_s")
            done = cluster.done[written:]
            writer.requests(done, cluster.engine.requests[done])
            history = cluster.history
            writer.seconds(history.records[seconds:], history.column("status")[seconds:])
            written, seconds = written + len(done), len(history)
            watch.lap("writing_s")
    watch.lap("writing_s")
    sizes = [path.stat().st_size for path in (writer.requests_path, writer.seconds_path)]
    return Share(
        counts=_counts(cluster, requests) | {"result_bytes": sum(sizes)},
        phases=watch.phases,
        process=os.getpid(),
        peak_bytes=peak_bytes(),
    )


def _hours(day: Day, cluster: Cluster) -> Iterator[None]:
    """Runs the day hour by hour, and then to the last token."""
    for stop_s in [*range(STEP_S, day.length_s, STEP_S), day.length_s]:
        cluster.advance(stop_s * PS_PER_S)
        yield
    cluster.drain(DRAIN_S)
    yield


def _counts(cluster: Cluster, requests: RequestTable) -> dict[str, float]:
    history = cluster.history
    return {
        "requests": len(requests),
        "requests_completed": len(cluster.done),
        "prompt_tokens": int(history.column("prompt_tokens").sum()),
        "output_tokens": int(history.column("output_tokens").sum()),
        "energy_j": float(history.column("energy_j").sum()),
        "slot_s": len(history) * len(cluster.blueprint.slots),
    }


def simulate_day(day: Day, workers: int, tick: Callable[[], None]) -> dict[str, Any]:
    """Simulates all servers in ``workers`` processes.

    Args:
        day: The day.
        workers: Processes; 1 is this one.
        tick: Called after each server.

    Returns:
        What was simulated and what it cost, as plain values. ``phases`` is the processor's time, which adds up over
        processes; ``peak_memory_bytes`` is the sum of the most that each process has held, this one included.

    Raises:
        InputError: The folder holds results already, or the cluster does not hold.
    """
    for kind in ("requests", "seconds"):
        if (day.out / kind).exists() and any((day.out / kind).iterdir()):
            raise InputError(str(day.out / kind), "holds the results of another run", "Give another folder")
    Blueprint.of(day.spec(1))  # refuses what does not hold before any process begins
    began = time.perf_counter()
    shares = []
    for share in _shares(day, workers):
        shares.append(share)
        tick()
    wall_s = time.perf_counter() - began
    counts, phases = (_added([getattr(share, name) for share in shares]) for name in ("counts", "phases"))
    held = {share.process: share.peak_bytes for share in sorted(shares, key=lambda share: share.peak_bytes)}
    held[os.getpid()] = peak_bytes()
    return {
        "servers": day.servers,
        "gpus": day.servers * day.gpus,
        "workers": workers,
        **counts,
        "simulated_s": day.length_s,
        "wall_s": wall_s,
        "requests_per_s": counts["requests"] / wall_s,
        "phases": phases,
        "peak_memory_bytes": sum(held.values()),
    }


def _shares(day: Day, workers: int) -> Iterator[Share]:
    if workers == 1:
        yield from (simulate_server(day, server) for server in range(day.servers))
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        try:
            futures = [pool.submit(simulate_server, day, server) for server in range(day.servers)]
            yield from (future.result() for future in as_completed(futures))
        finally:
            pool.shutdown(cancel_futures=True)


def _added(figures: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(each[name] for each in figures) for name in figures[0]}


def peak_bytes() -> int:
    """The most memory that this process has held, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB
