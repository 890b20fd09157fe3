"""A trace in place of a scenario's own workload."""

from __future__ import annotations

from pathlib import Path

from ..simulator.workload.formats import read_workload
from ..simulator.workload.spec import WorkloadSpec
from ..simulator.workload.table import RequestTable
from ..simulator.workload.traces import resolve
from .scenario import Scenario

REFERENCE_LOAD = 2.0
"""The rate at which the reward counts requests and tokens as 1, relative to the mean; as in the default scenario."""


def read_trace(source: str | Path) -> RequestTable:
    """A trace by path, or by the name of a fetched one."""
    return read_workload(resolve(source))


def scaled_to(scenario: Scenario, table: RequestTable) -> Scenario:
    """The scenario with the references of its reward taken from ``table``.

    Otherwise serving a trace with little traffic would gain less than it costs, and doing nothing would be best.
    """
    references = {
        "requests_per_s": REFERENCE_LOAD * len(table) / max(table.duration_s, 1.0),
        "tokens_per_request": float(table.output_tokens.mean()) if len(table) else scenario.reward.tokens_per_request,
    }
    return scenario.model_copy(update={"reward": scenario.reward.model_copy(update=references)})


def with_trace(scenario: Scenario, path: Path, table: RequestTable) -> Scenario:
    """The scenario with a trace as its workload, and the reward scaled to it.

    Every episode starts at a random place, and the trace goes on from its beginning at its end. The patience of clients
    is the scenario's, since traces do not tell it.

    Args:
        scenario: The scenario.
        path: File of the trace.
        table: Its content, by which the reward is scaled; it may be another part of the same trace.

    Returns:
        The new scenario.
    """
    streams = scenario.workload.streams or (scenario.workload,)
    workload = WorkloadSpec(file=str(path.absolute()), start_s="random", repeat=True, timeout_s=streams[0].timeout_s)
    return scaled_to(scenario, table).model_copy(update={"workload": workload})
