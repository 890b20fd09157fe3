"""How many requests the engine simulates in a second, and where the time goes."""

from __future__ import annotations

import cProfile
import pstats
import statistics
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...simulator.cluster import Cluster
from ...simulator.errors import InputError
from ...simulator.kernels.state import FINISHED
from ...simulator.workload.table import RequestTable
from .setup import Cost, Setup, play

PACKAGE = Path(__file__).parents[2]
SHOWN_SHARE = 0.005


def measure(setup: Setup, requests: RequestTable, rounds: int, tick: Callable[[], None]) -> dict[str, Any]:
    """Simulates the same run several times over.

    Only the simulation is timed: not the reading of the workload, nor laying out its rows for the engine.

    Args:
        setup: The cluster.
        requests: The workload, all of which is played, to the last token.
        rounds: Runs; the fastest counts, for what slows one down is not the engine's.
        tick: Called after each round.

    Returns:
        What was simulated and how fast, as plain values.

    Raises:
        InputError: There are no requests, the cluster does not hold, or it does not get through them.
    """
    if not len(requests):
        raise InputError("workload", "holds no requests", "Give a trace with at least one")
    blueprint = setup.blueprint()
    costs: list[Cost] = []
    for _ in range(rounds):
        cluster = None  # lets go of the last round's memory first
        cluster = setup.cluster(blueprint, requests)
        costs.append(play(cluster, int(requests.arrival_ps[-1])))
        tick()
    assert cluster is not None
    if not cluster.finished:
        left = len(requests) - len(cluster.done)
        remedy = "Lower the rate factor, add replicas, or take another router"
        raise InputError("workload", f"{left:,} requests are still there a day after the last arrival", remedy)
    wall_s = [cost.wall_s for cost in costs]
    best_s = min(wall_s)
    return {
        **_outcome(cluster),
        "rounds": rounds,
        "wall_s": best_s,
        "wall_s_median": statistics.median(wall_s),
        "wall_s_rounds": wall_s,
        "cpu_s": min(cost.cpu_s for cost in costs),
        "requests_per_s": len(requests) / best_s,
        "events_per_s": cluster.events / best_s,
        "simulated_s_per_s": len(cluster.history) / best_s,
    }


def _outcome(cluster: Cluster) -> dict[str, Any]:
    rows, history = cluster.engine.requests, cluster.history
    done = rows[rows["status"] == FINISHED]
    return {
        "requests": len(rows),
        "requests_completed": len(done),
        "prompt_tokens": int(done["prompt"].sum()),
        "output_tokens": int(done["output"].sum()),
        "preemptions": int(rows["preemptions"].sum()),
        "energy_j": float(history.column("energy_j").sum()),
        "simulated_s": len(history),
        "events": cluster.events,
        "busy_slot_s": int((history.column("prompt_tokens") + history.column("output_tokens") > 0).sum()),
    }


def bytes_per_request(setup: Setup, requests: RequestTable) -> float:
    """Memory that a request takes in its table and in the engine, bytes; what does not grow with them is left out."""
    blueprint = setup.blueprint()

    def held(table: RequestTable) -> int:
        tracemalloc.start()
        cluster = setup.cluster(blueprint, table, requests.duration_s)
        size = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        del cluster
        return size

    engine = held(requests) - held(requests.rows(0, 0))
    return (engine + requests.nbytes) / len(requests)


def profile(setup: Setup, requests: RequestTable) -> dict[str, Any]:
    """Where the time of one run goes.

    Python's profiler does not see into compiled code: a kernel that Python calls has the time of all that it calls.

    Args:
        setup: The cluster.
        requests: The workload.

    Returns:
        ``functions``: those with half a percent at least of their own, with seconds and share; ``idle_s``: the time
        that the same stretch takes with no request in it, which is what meters, heat and history cost at the least.
    """
    blueprint = setup.blueprint()
    last_ps = int(requests.arrival_ps[-1])
    profiler = cProfile.Profile()
    profiler.runcall(play, setup.cluster(blueprint, requests), last_ps)
    own_s = {
        _place(*key): figures[2]
        for key, figures in pstats.Stats(profiler).stats.items()  # type: ignore[attr-defined]
    }
    total_s = sum(own_s.values())
    shown = sorted(((s, name) for name, s in own_s.items() if s > SHOWN_SHARE * total_s), reverse=True)
    idle_s = play(setup.cluster(blueprint, requests.rows(0, 0), requests.duration_s), last_ps).wall_s
    functions = [{"function": name, "seconds": s, "share": s / total_s} for s, name in shown]
    return {"functions": functions, "idle_s": idle_s}


def _place(file: str, line: int, function: str) -> str:
    path = Path(file)
    inside = path.is_relative_to(PACKAGE)
    return f"{path.relative_to(PACKAGE) if inside else path.name}:{line} {function}" if line else function
