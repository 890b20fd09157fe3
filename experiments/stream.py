"""A workload larger than memory through a scenario's cluster, with the results in Parquet as they come."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.progress import Progress

from ..envs.plant import slo_limits
from ..envs.scenario import Scenario
from ..simulator.blueprint import Blueprint
from ..simulator.cluster import Cluster
from ..simulator.errors import InputError
from ..simulator.kernels.state import EXTERNAL, ROUTER_NAMES
from ..simulator.playback import play
from ..simulator.results import Names, ResultsWriter
from ..simulator.units import PS_PER_S
from ..simulator.workload.stream import RequestStream
from ..simulator.workload.table import RequestTable
from ..simulator.workload.traces import resolve
from .simulate import for_scenario


def simulate_stream(
    scenario: Scenario, workload: str, router: str, seed: int, out: Path, progress: Progress
) -> dict[str, Any]:
    """Plays a trace through the scenario's cluster, whose slots all stay as they are.

    Args:
        scenario: Gives the cluster and the SLO classes.
        workload: A trace, or the name of a fetched one.
        router: The router, all slots with equal weight.
        seed: Seed of all that is drawn.
        out: Folder of ``requests.parquet`` and ``seconds.parquet``.
        progress: Shows how far it is.

    Returns:
        Counts and speed as plain values.

    Raises:
        InputError: The trace does not hold, or there is no such router.
    """
    if router not in ROUTER_NAMES[:EXTERNAL]:
        raise InputError("router", f"'{router}' is unknown", f"Use one of {', '.join(ROUTER_NAMES[:EXTERNAL])}")
    blueprint = Blueprint.of(scenario.cluster)
    source = RequestStream.from_file(resolve(workload))
    classes = tuple(scenario.slo)

    def named(chunk: RequestTable) -> RequestTable:
        return for_scenario(chunk, blueprint.models, classes)

    stream = replace(source, chunks=lambda: (named(chunk) for chunk in source))
    if not len(next(iter(stream))):
        raise InputError(workload, "holds no requests", "Give a trace with at least one")
    bar = progress.add_task("requests", total=None)
    played = 0

    def prepare(cluster: Cluster) -> None:
        cluster.route(np.ones(len(blueprint.slots)), router)

    def told(requests: int) -> None:
        nonlocal played
        played += requests
        progress.advance(bar, requests)

    began = time.perf_counter()
    names = Names([slot.name for slot in blueprint.slots], blueprint.models, classes)
    with ResultsWriter(out, names, limits=slo_limits(scenario)) as writer:
        cluster = play(blueprint, stream, np.random.default_rng(seed), writer, prepare, told)
    return {
        "scenario": scenario.name,
        "workload": workload,
        "router": router,
        "seed": seed,
        "requests": played,
        "simulated_s": cluster.now_ps / PS_PER_S,
        **_sums(writer.requests_path, writer.seconds_path),
        "wall_s": time.perf_counter() - began,
    }


def _sums(requests: Path, seconds: Path) -> dict[str, Any]:
    """Sums over the written files, a row group at a time."""
    completed = met = tokens = 0
    for batch in pq.ParquetFile(requests).iter_batches(columns=["status", "met_slo", "output_tokens"]):
        finished = pc.equal(batch["status"], "finished")
        completed += pc.sum(finished).as_py() or 0
        met += pc.sum(batch["met_slo"]).as_py() or 0
        tokens += pc.sum(batch.filter(finished)["output_tokens"]).as_py() or 0
    energy_j = sum(
        pc.sum(b["energy_j"]).as_py() or 0.0 for b in pq.ParquetFile(seconds).iter_batches(columns=["energy_j"])
    )
    return {
        "requests_completed": completed,
        "requests_met_slo": met,
        "output_tokens": tokens,
        "energy_j": energy_j,
    }
