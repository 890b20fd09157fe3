"""The request table as the engine's rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .kernels.state import FOREVER, REQUEST, Records
from .workload.table import ANY_MODEL, RequestTable


def rows_of(
    requests: RequestTable, models: Sequence[str], priorities: NDArray[np.int16] | None, *, prefixes: bool
) -> Records:
    """Rows for the engine.

    Args:
        requests: The workload.
        models: Names of the cluster's models.
        priorities: All that may occur, ascending, where they count; else all requests are one level.
        prefixes: Whether prefix hashes count.

    Returns:
        (N,) REQUEST.

    Raises:
        InputError: The workload names a model that the cluster does not have, or has a priority not among these.
    """
    unknown = [m for m in requests.models if m not in models]
    if unknown:
        problem = f"the cluster does not have model '{unknown[0]}'"
        raise InputError("workload", problem, f"Use one of {', '.join(models)}")
    numbers = np.array([models.index(m) for m in requests.models] + [ANY_MODEL])
    rows = np.zeros(len(requests), REQUEST)
    for name in ("slot", "admit_ps", "first_token_ps", "finish_ps", "link", "back"):
        rows[name] = -1
    rows["arrival_ps"] = rows["sent_ps"] = requests.arrival_ps
    rows["prompt"] = requests.prompt_tokens
    rows["output"] = requests.output_tokens
    rows["timeout_ps"] = np.minimum(requests.timeout_ps, FOREVER // 2)  # patience without end, added to any time
    rows["model"] = numbers[requests.model]
    rows["follower"], rows["think_ps"] = _followers(requests)
    if priorities is not None:
        strange = np.setdiff1d(requests.priority, priorities)
        if len(strange):
            problem = f"priority {strange[0]} occurs late, and the first chunk has only {priorities.tolist()}"
            raise InputError("workload", problem, "Play it whole, or let the first chunk have all priorities")
        rows["level"] = np.searchsorted(priorities, requests.priority)
    if prefixes:
        rows["prefix"] = requests.prefix_offset[:-1]
        full = requests.prompt_tokens // requests.prefix_block_tokens
        rows["units"] = np.minimum(np.diff(requests.prefix_offset), full)
    return rows


def _followers(requests: RequestTable) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The next request of each one's session, and the think times that have a predecessor to wait for."""
    think_ps = requests.think_ps.copy()
    follower = np.full(len(requests), -1, np.int64)
    if (think_ps >= 0).any():
        order = np.argsort(requests.session, kind="stable")
        same = requests.session[order[1:]] == requests.session[order[:-1]]
        follower[order[:-1][same]] = order[1:][same]
        first = np.ones(len(requests), bool)
        first[order[1:][same]] = False
        think_ps[first] = -1
    return follower, think_ps
