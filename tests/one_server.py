"""A cluster of one server of single-GPU slots, requests for it, and a look at the states of its slots."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmcluster.simulator.blueprint import Blueprint
from llmcluster.simulator.cluster import Cluster
from llmcluster.simulator.lifecycle import Target
from llmcluster.simulator.topology import ClusterSpec
from llmcluster.simulator.units import PS_PER_S, to_ps
from llmcluster.simulator.workload.table import RequestTable

GPU, MODEL, OTHER = "H100-80GB", "Llama-3.1-8B", "Qwen3-8B"
SERVE, SERVE_OTHER = int(Target.SERVE), int(Target.SERVE) + 1
SLEEP, OFF = int(Target.SLEEP), int(Target.OFF)


def blueprint(gpus: int = 1, engine: dict[str, Any] | None = None, **server: Any) -> Blueprint:
    """One server of single-GPU slots; both models may be loaded."""
    fields = {"gpu": GPU, "gpus": gpus, "model": MODEL, **server}
    spec = {"rows": [{"racks": [{"servers": [fields]}]}], "models": [MODEL, OTHER], "engine": engine or {}}
    return Blueprint.of(ClusterSpec.model_validate(spec))


ONE, TWO = blueprint(), blueprint(2)
ASLEEP, BARE = blueprint(initial="sleeping"), blueprint(initial="empty")
NOTHING = RequestTable.from_columns([], [], [])


def table(arrival_s: list[float], prompt: int = 200, output: int = 100, **optional: Any) -> RequestTable:
    n = len(arrival_s)
    return RequestTable.from_columns([to_ps(t) for t in arrival_s], [prompt] * n, [output] * n, **optional)


def crowd(n: int, rate: float, prompt: int = 800, output: int = 200, seed: int = 0) -> RequestTable:
    rng = np.random.default_rng(seed)
    arrival_s = rng.exponential(1 / rate, n).cumsum()
    lengths = rng.integers(1, 2 * prompt, n), rng.integers(1, 2 * output, n)
    return RequestTable.from_columns((arrival_s * PS_PER_S).astype(np.int64), *lengths)


def cluster(plan: Blueprint = ONE, requests: RequestTable = NOTHING, seed: int = 0) -> Cluster:
    return Cluster(plan, requests, np.random.default_rng(seed), 8)


def run_to(world: Cluster, second: float) -> None:
    world.advance(to_ps(second))


def states(world: Cluster, slot: int = 0) -> list[int]:
    return [t.status for t in world.lifecycle.transitions if t.slot == slot]


def status(world: Cluster, slot: int = 0) -> int:
    return int(world.engine.slots["status"][slot])
