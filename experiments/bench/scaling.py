"""How the engine's cost grows with the number of requests and with their output lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...simulator.workload.table import RequestTable
from .engine import measure
from .setup import Setup

SIZES = (8, 4, 2, 1)
FACTORS = (1, 2, 4, 8)
KEPT = (
    "requests",
    "requests_completed",
    "output_tokens",
    "preemptions",
    "simulated_s",
    "busy_slot_s",
    "wall_s",
    "cpu_s",
)


def runs(requests: RequestTable) -> Iterator[tuple[str, str, RequestTable]]:
    """Series, name and workload of each run.

    ``requests``: the first eighth, quarter, half and all of them. ``outputs``: an eighth of them, arriving at an eighth
    of their rate, with outputs once, twice, four and eight times as long; the last of these puts the load of the
    workload itself on the cluster, and all take the same simulated time.
    """
    for part in SIZES:
        yield "requests", f"1/{part}", requests.rows(0, max(2, len(requests) // part))
    slow = requests.rows(0, max(2, len(requests) // SIZES[0])).scaled(1 / FACTORS[-1])
    for factor in FACTORS:
        yield "outputs", f"x{factor}", replace(slow, output_tokens=slow.output_tokens * np.int32(factor))


def scaling(setup: Setup, requests: RequestTable, rounds: int, tick: Callable[[], None]) -> dict[str, Any]:
    """Runs both series and fits lines to the processor's time.

    Args:
        setup: The cluster.
        requests: The workload.
        rounds: Rounds of each run; the fastest counts.
        tick: Called after each round.

    Returns:
        ``runs``; ``per_request``: the line of the time against the requests; ``per_output_token``: that of the time per
        request against the output tokens per request; ``per_slot_second``: least squares of all times on requests and
        on the seconds of slots that worked and that did not, none of which can cost less than nothing. Residuals are
        root mean squares relative to the values.
    """
    made = []
    for series, name, table in runs(requests):
        outcome = measure(setup, table, rounds, tick)
        made.append({"series": series, "run": name} | {key: outcome[key] for key in KEPT})
    sizes, outputs = ([run for run in made if run["series"] == series] for series in ("requests", "outputs"))
    n, tokens, busy, cpu_s = (_column(made, key) for key in ("requests", "output_tokens", "busy_slot_s", "cpu_s"))
    idle = _column(made, "simulated_s") * setup.replicas - busy
    of_sizes, of_outputs = slice(0, len(sizes)), slice(len(sizes), None)
    line = _fit(cpu_s[of_sizes], n[of_sizes], np.ones(len(sizes)))
    by_tokens = _fit((cpu_s / n)[of_outputs], (tokens / n)[of_outputs], np.ones(len(outputs)))
    every = _fit_costs(cpu_s, n, busy, idle)
    return {
        "runs": made,
        "per_request": {"slope_s": line[0], "intercept_s": line[1], "residual": line[2]},
        "per_output_token": {"slope_s": by_tokens[0], "intercept_s": by_tokens[1], "residual": by_tokens[2]},
        "per_slot_second": dict(zip(("request_s", "busy_slot_s", "idle_slot_s", "residual"), every, strict=True)),
    }


def _column(made: list[dict[str, Any]], key: str) -> NDArray[np.float64]:
    return np.array([run[key] for run in made], np.float64)


def _fit(values: NDArray[np.float64], *columns: NDArray[np.float64]) -> tuple[float, ...]:
    """Coefficients of the columns by least squares of relative errors, and the root mean square of those."""
    weighted = np.stack(columns, axis=1) / values[:, None]
    found = np.linalg.lstsq(weighted, np.ones(len(values)), rcond=None)[0]
    residual = float(np.sqrt(np.mean((weighted @ found - 1) ** 2)))
    return (*map(float, found), residual)


def _fit_costs(values: NDArray[np.float64], *columns: NDArray[np.float64]) -> tuple[float, ...]:
    """The same with coefficients of at least 0: a column that the runs do not tell from the others gets 0."""
    kept = list(range(len(columns)))
    while True:
        *found, residual = _fit(values, *(columns[i] for i in kept))
        if min(found) >= 0 or len(kept) == 1:
            costs = dict(zip(kept, found, strict=True))
            return (*(costs.get(i, 0.0) for i in range(len(columns))), residual)
        kept.pop(int(np.argmin(found)))
