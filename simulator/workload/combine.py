"""Tables out of tables: several streams merged into one, one trace repeated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .table import COLUMNS, NO_SESSION, RequestTable


def merge(tables: Sequence[RequestTable]) -> RequestTable:
    """One table of all requests in order of arrival; ties keep the order of ``tables``.

    Args:
        tables: At least one table, all with the same ``models``, ``slo_classes`` and ``prefix_block_tokens`` (a table
            without hashes fits any). Their sessions are renumbered so that none is shared.

    Returns:
        The merged table.

    Raises:
        InputError: The names or the hash granularity differ.
    """
    first = tables[0]
    if any((t.models, t.slo_classes) != (first.models, first.slo_classes) for t in tables):
        raise InputError("workload.streams", "the streams name other models or SLO classes", "Give all the same lists")
    granularity = {t.prefix_block_tokens for t in tables if len(t.prefix_hash)}
    if len(granularity) > 1:
        raise InputError(
            "workload.streams",
            f"prefixes are hashed per {' and per '.join(map(str, sorted(granularity)))} tokens",
            "Merge traces whose prefix blocks have one size",
        )
    if len(tables) == 1:
        return first
    columns: dict[str, Any] = {name: np.concatenate([getattr(t, name) for t in tables]) for name in COLUMNS}
    columns["session"] = np.concatenate(_distinct_sessions(tables))
    order = np.argsort(columns["arrival_ps"], kind="stable")
    rows: dict[str, Any] = {name: column[order] for name, column in columns.items()}
    starts = np.cumsum([0, *(len(t.prefix_hash) for t in tables)])
    begin = np.concatenate([t.prefix_offset[:-1] + s for t, s in zip(tables, starts, strict=False)])[order]
    length = np.concatenate([np.diff(t.prefix_offset) for t in tables])[order]
    offset = np.concatenate([[0], np.cumsum(length)])
    gather = np.repeat(begin - offset[:-1], length) + np.arange(offset[-1])
    return replace(
        first,
        **rows,
        prefix_offset=offset,
        prefix_hash=np.concatenate([t.prefix_hash for t in tables])[gather],
        prefix_block_tokens=granularity.pop() if granularity else first.prefix_block_tokens,
    )


def repeat(table: RequestTable, times: int) -> RequestTable:
    """The table played ``times`` times over, a mean inter-arrival time apart; sessions of each turn are new ones."""
    if times < 1:
        raise InputError("repeat", f"{times} is not positive", "Repeat at least once")
    if times == 1:
        return table
    if len(table) < 2 or table.arrival_ps[0] == table.arrival_ps[-1]:
        raise InputError("repeat", "all requests arrive at once", "Repeat a trace that takes time")
    last = int(table.arrival_ps[-1])
    period = last + last // (len(table) - 1)
    return merge([replace(table, arrival_ps=table.arrival_ps + turn * period) for turn in range(times)])


def _distinct_sessions(tables: Sequence[RequestTable]) -> list[NDArray[np.int64]]:
    shifted, used = [], 0
    for table in tables:
        shifted.append(np.where(table.session == NO_SESSION, NO_SESSION, table.session + used))
        used += int(table.session.max(initial=NO_SESSION)) + 1
    return shifted
