"""Workloads larger than memory: request tables that follow one another in time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..units import PS_PER_S
from .arrivals import Renewal
from .combine import Turns, concatenate
from .formats import read_parts
from .lengths import Lengths
from .modulation import Modulation
from .table import NO_SESSION, OPEN_LOOP, RequestTable

ROWS = 262_144
"""Rows of a chunk at most, by default: 14 MB of columns."""


@dataclass(frozen=True, eq=False)
class RequestStream:
    """Requests in order of arrival, in chunks; every iteration plays it anew from the beginning.

    Chunks share ``models``, ``slo_classes`` and ``prefix_block_tokens``; arrival times, sessions and prefix hashes
    mean the same in all of them. There is at least one chunk.

    Attributes:
        chunks: Begins the chunks anew.
        source: What error messages name as the place of a fault.
        closed_loop: Whether requests that wait for the preceding one of their session may pass. Only what does not
            run them can take them, for a chunk may end before the request that releases one of the next.
    """

    chunks: Callable[[], Iterator[RequestTable]]
    source: str = "workload"
    closed_loop: bool = False

    @classmethod
    def from_file(
        cls, path: Path, format: str | None = None, rows: int = ROWS, closed_loop: bool = False
    ) -> RequestStream:
        """Reads a trace, or a request table in Parquet, as it is played.

        Args:
            path: The file; only a few chunks of it are in memory at a time.
            format: As in :func:`read_parts`.
            rows: Rows of a chunk at most.
            closed_loop: See the class.

        Returns:
            The stream; faults in the file are found when they are reached.

        Raises:
            InputError: The file is absent or of no known format.
        """
        read_parts(path, format, rows)
        return cls(partial(read_parts, path, format, rows), str(path), closed_loop)

    @classmethod
    def from_table(cls, table: RequestTable, rows: int = ROWS) -> RequestStream:
        """Cuts a table in memory into chunks of ``rows`` at most."""
        return cls(lambda: _cut(table, rows))

    @classmethod
    def generated(
        cls,
        arrivals: Renewal,
        lengths: Lengths,
        duration_s: float,
        rng: np.random.Generator,
        modulation: Modulation | None = None,
        rows: int = ROWS,
    ) -> RequestStream:
        """Draws requests as they are played, the same ones every time and whatever ``rows`` is.

        Args:
            arrivals: When requests are sent.
            lengths: Draws prompt and output lengths.
            duration_s: Length of the stream, seconds.
            rng: Source of randomness; the stream keeps children of it.
            modulation: Multiplies the rate, or None.
            rows: Rows of a chunk at most; never more than 262,144.

        Returns:
            Requests that arrive in ``[0, duration_s)``.
        """
        children = rng.spawn(3)

        def chunks() -> Iterator[RequestTable]:
            for block in _draw(arrivals, lengths, duration_s, modulation, deepcopy(children)):
                yield from _cut(block, rows)

        return cls(chunks)

    def __iter__(self) -> Iterator[RequestTable]:
        """Plays the chunks; raises `InputError` where one does not follow on the one before, or is a closed loop."""
        rows, last_ps = 0, 0
        for chunk in self.chunks():
            if len(chunk):
                if chunk.arrival_ps[0] < last_ps:
                    raise InputError(
                        self.source, f"row {rows} arrives before row {rows - 1}", "Sort the rows by arrival"
                    )
                if not self.closed_loop and (chunk.think_ps != OPEN_LOOP).any():
                    row = rows + int(np.flatnonzero(chunk.think_ps != OPEN_LOOP)[0])
                    problem = f"row {row} waits for the preceding request of its session (closed loop)"
                    raise InputError(self.source, problem, "Load the table whole: a stream is open loop")
                last_ps = int(chunk.arrival_ps[-1])
            rows += len(chunk)
            yield chunk

    @cached_property
    def _head(self) -> RequestTable:
        return next(iter(self)).rows(0, 0)

    @property
    def models(self) -> tuple[str, ...]:
        """Names that ``model`` points to."""
        return self._head.models

    @property
    def slo_classes(self) -> tuple[str, ...]:
        """Names that ``slo_class`` points to."""
        return self._head.slo_classes

    @property
    def prefix_block_tokens(self) -> int:
        """Tokens under one prefix hash."""
        return self._head.prefix_block_tokens

    def table(self) -> RequestTable:
        """All requests as one table, in memory."""
        return concatenate(list(self))

    def scaled(self, rate_factor: float) -> RequestStream:
        """The same requests arriving ``rate_factor`` times as fast."""
        self._head.scaled(rate_factor)  # refuses a bad factor now
        return RequestStream(lambda: (chunk.scaled(rate_factor) for chunk in self), self.source, self.closed_loop)


def repeated(requests: RequestStream | RequestTable, times: int) -> RequestStream:
    """Plays requests ``times`` times over, row for row like :func:`combine.repeat`, one chunk at a time.

    Raises:
        InputError: ``times`` is not positive; while it is played, that the requests take no time, or that all turns
            take more than 106 days.
    """
    if times < 1:
        raise InputError("repeat", f"{times} is not positive", "Repeat at least once")
    stream = RequestStream.from_table(requests) if isinstance(requests, RequestTable) else requests
    return RequestStream(lambda: _turns(stream, times), stream.source, stream.closed_loop)


def _turns(stream: RequestStream, times: int) -> Iterator[RequestTable]:
    requests, first_ps, last_ps, last_session = 0, 0, 0, NO_SESSION
    for chunk in stream:
        if len(chunk):
            first_ps = first_ps if requests else int(chunk.arrival_ps[0])
            last_ps = int(chunk.arrival_ps[-1])
            last_session = max(last_session, int(chunk.session.max()))
        requests += len(chunk)
        yield chunk
    if times > 1:
        turns = Turns(requests, last_ps, last_session)
        turns.check(first_ps, times)
        for turn in range(1, times):
            yield from (turns.shifted(chunk, turn) for chunk in stream)


def _cut(table: RequestTable, rows: int) -> Iterator[RequestTable]:
    for first in range(0, max(len(table), 1), rows):
        yield table.rows(first, min(first + rows, len(table)))


def _draw(
    arrivals: Renewal,
    lengths: Lengths,
    duration_s: float,
    modulation: Modulation | None,
    children: list[np.random.Generator],
) -> Iterator[RequestTable]:
    for_times, for_lengths, for_clock = children
    clock = None if modulation is None else modulation.clock(duration_s, for_clock)
    last_ps = 0
    for times in arrivals.blocks_s(duration_s if clock is None else clock.operational_s, ROWS, for_times):
        real_s = times if clock is None else clock.real(times)
        arrival_ps = np.rint(real_s * PS_PER_S).astype(np.int64)
        # Interpolation may step back by a rounding error where two of its lines meet.
        arrival_ps = np.maximum.accumulate(np.maximum(arrival_ps, last_ps))
        last_ps = int(arrival_ps[-1]) if len(arrival_ps) else last_ps
        prompt, output = lengths.sample(len(times), for_lengths)
        yield RequestTable.from_columns(arrival_ps, prompt, output)
