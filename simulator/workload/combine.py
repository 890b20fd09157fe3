"""Tables out of tables: several streams merged into one, one trace repeated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..units import MAX_TIME_S, PS_PER_S
from .table import COLUMNS, NO_SESSION, RequestTable


def concatenate(tables: Sequence[RequestTable]) -> RequestTable:
    """One table of the rows of all in the order given; a session keeps its number, so that tables may share it.

    Args:
        tables: At least one table, all with the same ``models``, ``slo_classes`` and ``prefix_block_tokens`` (a table
            without hashes fits any).

    Returns:
        All rows. That they ascend in time is up to the caller.

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
    blocks = np.concatenate([np.diff(t.prefix_offset) for t in tables])
    return replace(
        first,
        **columns,
        prefix_offset=np.concatenate([[0], np.cumsum(blocks)]),
        prefix_hash=np.concatenate([t.prefix_hash for t in tables]),
        prefix_block_tokens=granularity.pop() if granularity else first.prefix_block_tokens,
    )


def merge(tables: Sequence[RequestTable]) -> RequestTable:
    """One table of all requests in order of arrival; ties keep the order of ``tables``.

    Args:
        tables: As :func:`concatenate` takes them. Their sessions are renumbered so that none is shared.

    Returns:
        The merged table.

    Raises:
        InputError: The names or the hash granularity differ.
    """
    joined = concatenate(tables)
    if len(tables) == 1:
        return joined
    distinct = replace(joined, session=np.concatenate(_distinct_sessions(tables)))
    return distinct.take(np.argsort(joined.arrival_ps, kind="stable"))


def repeat(table: RequestTable, times: int) -> RequestTable:
    """The table played ``times`` times over, a mean inter-arrival time apart; sessions of each turn are new ones."""
    if times < 1:
        raise InputError("repeat", f"{times} is not positive", "Repeat at least once")
    if times == 1:
        return table
    turns = Turns(
        len(table), int(table.arrival_ps[-1]) if len(table) else 0, int(table.session.max(initial=NO_SESSION))
    )
    turns.check(int(table.arrival_ps[0]) if len(table) else 0, times)
    return concatenate([turns.shifted(table, turn) for turn in range(times)])


@dataclass(frozen=True)
class Turns:
    """How the turns of a repeated workload follow one another.

    Attributes:
        requests: Requests of one turn.
        last_ps: Its last arrival, picoseconds.
        last_session: The highest number of a session in it, -1 if there is none.
    """

    requests: int
    last_ps: int
    last_session: int

    @property
    def period_ps(self) -> int:
        """Time from the beginning of one turn to that of the next."""
        return self.last_ps + self.last_ps // (self.requests - 1)

    def check(self, first_ps: int, times: int) -> None:
        """Raises `InputError` if a workload whose first arrival is at ``first_ps`` cannot be repeated so often."""
        if self.requests < 2 or first_ps == self.last_ps:
            raise InputError("repeat", "all requests arrive at once", "Repeat a trace that takes time")
        if (times - 1) * self.period_ps + self.last_ps > MAX_TIME_S * PS_PER_S:
            raise InputError("repeat", f"{times} turns take more than 106 days", "Repeat it less often, or speed it up")

    def shifted(self, part: RequestTable, turn: int) -> RequestTable:
        """Requests of one turn (or a part of them) as the given turn has them, the first being 0."""
        sessions = turn * (self.last_session + 1)
        return replace(
            part,
            arrival_ps=part.arrival_ps + turn * self.period_ps,
            session=np.where(part.session == NO_SESSION, NO_SESSION, part.session + sessions),
        )


def _distinct_sessions(tables: Sequence[RequestTable]) -> list[NDArray[np.int64]]:
    shifted, used = [], 0
    for table in tables:
        shifted.append(np.where(table.session == NO_SESSION, NO_SESSION, table.session + used))
        used += int(table.session.max(initial=NO_SESSION)) + 1
    return shifted
