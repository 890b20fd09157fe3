"""The request table: every workload, generated or measured, as columns."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ..files import whole
from ..units import MAX_TIME_S, PS_PER_S

ANY_MODEL = -1
NO_SESSION = -1
NO_TIMEOUT = -1
OPEN_LOOP = -1


def spans(first: NDArray[np.integer[Any]], length: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """The whole numbers ``[first, first + length)`` of each pair, one after the other."""
    before = np.cumsum(length) - length
    return np.repeat(first - before, length) + np.arange(length.sum())


@dataclass(frozen=True, eq=False)
class RequestTable:
    """Requests in order of arrival, one row each; all columns have length N.

    Attributes:
        arrival_ps: Arrival time since the start of the run, int64 picoseconds, ascending.
        prompt_tokens: Prompt length in tokens, int32, at least 1.
        output_tokens: Generated length in tokens, int32, at least 1. The schedulers never read it ahead.
        model: Index into ``models``, int16; -1 means that any model will do.
        slo_class: Index into ``slo_classes``, int16.
        priority: Smaller is served first under priority scheduling, int16.
        session: Conversation id, int64; -1 means none.
        timeout_ps: Client patience from arrival to the first token, int64 picoseconds; -1 means endless.
        think_ps: Closed loop: the pause between the end of the session's preceding request and the release of this one,
            int64 picoseconds; ``arrival_ps`` is then a lower bound. -1 means open loop: released at ``arrival_ps``.
        prefix_offset: Start of each request's block hashes in ``prefix_hash``, int64, length N + 1.
        prefix_hash: Hashes of the prompt's leading blocks, int64, one per full block, ragged.
        models: Names that ``model`` points to.
        slo_classes: Names that ``slo_class`` points to.
        prefix_block_tokens: Tokens under one prefix hash; Mooncake's traces hash 512 at a time.
    """

    arrival_ps: NDArray[np.int64]
    prompt_tokens: NDArray[np.int32]
    output_tokens: NDArray[np.int32]
    model: NDArray[np.int16]
    slo_class: NDArray[np.int16]
    priority: NDArray[np.int16]
    session: NDArray[np.int64]
    timeout_ps: NDArray[np.int64]
    think_ps: NDArray[np.int64]
    prefix_offset: NDArray[np.int64]
    prefix_hash: NDArray[np.int64]
    models: tuple[str, ...] = ()
    slo_classes: tuple[str, ...] = ("default",)
    prefix_block_tokens: int = 16

    @classmethod
    def from_columns(
        cls,
        arrival_ps: ArrayLike,
        prompt_tokens: ArrayLike,
        output_tokens: ArrayLike,
        *,
        source: str = "workload",
        first_row: int = 0,
        models: tuple[str, ...] = (),
        slo_classes: tuple[str, ...] = ("default",),
        prefix_block_tokens: int = 16,
        **optional: ArrayLike,
    ) -> RequestTable:
        """Builds a table and checks it.

        Args:
            arrival_ps: Arrival times, picoseconds, ascending.
            prompt_tokens: Prompt lengths, tokens.
            output_tokens: Output lengths, tokens.
            source: What error messages name as the place of a fault.
            first_row: What they count rows from: the number of the first one, where these are a part of something.
            models: Names that ``model`` points to.
            slo_classes: Names that ``slo_class`` points to.
            prefix_block_tokens: Tokens under one prefix hash.
            **optional: Any further column of the class, by name.

        Returns:
            The table.

        Raises:
            InputError: A column has the wrong length, times descend, or a count is not positive.
        """
        arrival = np.ascontiguousarray(arrival_ps, dtype=np.int64)
        n = len(arrival)
        defaults: dict[str, tuple[Any, int]] = {
            "model": (np.int16, ANY_MODEL),
            "slo_class": (np.int16, 0),
            "priority": (np.int16, 0),
            "session": (np.int64, NO_SESSION),
            "timeout_ps": (np.int64, NO_TIMEOUT),
            "think_ps": (np.int64, OPEN_LOOP),
        }
        columns: dict[str, Any] = {
            "arrival_ps": arrival,
            "prompt_tokens": np.ascontiguousarray(prompt_tokens, dtype=np.int32),
            "output_tokens": np.ascontiguousarray(output_tokens, dtype=np.int32),
        }
        for name, (dtype, value) in defaults.items():
            given = optional.pop(name, None)
            columns[name] = np.full(n, value, dtype) if given is None else np.ascontiguousarray(given, dtype=dtype)
        columns["prefix_offset"] = np.ascontiguousarray(optional.pop("prefix_offset", np.zeros(n + 1)), dtype=np.int64)
        columns["prefix_hash"] = np.ascontiguousarray(optional.pop("prefix_hash", np.zeros(0)), dtype=np.int64)
        if optional:
            raise TypeError(f"unknown columns: {sorted(optional)}")
        table = cls(**columns, models=models, slo_classes=slo_classes, prefix_block_tokens=prefix_block_tokens)
        table._check(source, first_row)
        return table

    def _check(self, source: str, first_row: int) -> None:
        n = len(self)
        for field in fields(self):
            column = getattr(self, field.name)
            if not isinstance(column, np.ndarray) or field.name == "prefix_hash":
                continue
            expected = n + 1 if field.name == "prefix_offset" else n
            if column.shape != (expected,):
                raise InputError(source, f"column {field.name} has shape {column.shape}", f"Give it {expected} values")
        if n == 0:
            return
        if (self.think_ps[self.session == NO_SESSION] != OPEN_LOOP).any():
            raise InputError(source, "a request with a think time has no session", "Give it the session it waits for")
        if self.arrival_ps[0] < 0:
            raise InputError(source, "the first arrival is negative", "Count time from the start of the run")
        if self.arrival_ps[-1] > MAX_TIME_S * PS_PER_S:
            raise InputError(source, "the last arrival is past 106 days", "Split the workload")
        back = np.flatnonzero(np.diff(self.arrival_ps) < 0)
        if len(back):
            row = first_row + back[0]
            raise InputError(source, f"row {row + 1} arrives before row {row}", "Sort the rows by arrival")
        for name in ("prompt_tokens", "output_tokens"):
            bad = np.flatnonzero(getattr(self, name) < 1)
            if len(bad):
                value = getattr(self, name)[bad[0]]
                raise InputError(source, f"row {first_row + bad[0]} has {name} {value}", "Token counts are at least 1")

    def __len__(self) -> int:
        """Number of requests."""
        return len(self.arrival_ps)

    @property
    def duration_s(self) -> float:
        """Time of the last arrival, seconds; 0 for an empty table."""
        return float(self.arrival_ps[-1]) / PS_PER_S if len(self) else 0.0

    @property
    def nbytes(self) -> int:
        """Bytes of all columns."""
        return sum(getattr(self, name).nbytes for name in (*COLUMNS, "prefix_offset", "prefix_hash"))

    def rows(self, first: int, last: int) -> RequestTable:
        """The requests of rows ``[first, last)``, a view where that can be."""
        offset = self.prefix_offset[first : last + 1]
        return replace(
            self,
            **{name: getattr(self, name)[first:last] for name in COLUMNS},
            prefix_offset=offset - offset[0],
            prefix_hash=self.prefix_hash[offset[0] : offset[-1]],
        )

    def take(self, rows: NDArray[np.integer[Any]]) -> RequestTable:
        """The requests of these rows, in this order."""
        length = np.diff(self.prefix_offset)[rows]
        offset = np.concatenate([[0], np.cumsum(length)])
        return replace(
            self,
            **{name: getattr(self, name)[rows] for name in COLUMNS},
            prefix_offset=offset,
            prefix_hash=self.prefix_hash[spans(self.prefix_offset[:-1][rows], length)],
        )

    def between(self, start_ps: int, stop_ps: int) -> RequestTable:
        """The requests that arrive in ``[start_ps, stop_ps)``, with time counted from ``start_ps``."""
        first, last = np.searchsorted(self.arrival_ps, [start_ps, stop_ps])
        part = self.rows(int(first), int(last))
        return replace(part, arrival_ps=part.arrival_ps - start_ps)

    def scaled(self, rate_factor: float) -> RequestTable:
        """The same requests arriving ``rate_factor`` times as fast (time is compressed)."""
        if not rate_factor > 0:
            raise InputError("rate_factor", f"{rate_factor} is not positive", "Give a factor above 0")
        if rate_factor == 1:
            return self
        scaled = self.arrival_ps.astype(np.longdouble) / rate_factor  # a double is exact to 2.5 h only
        return replace(self, arrival_ps=np.rint(scaled).astype(np.int64))

    def to_arrow(self) -> pa.Table:
        """The table for Arrow; names of models and SLO classes go into the schema's metadata."""
        hashes = pa.LargeListArray.from_arrays(pa.array(self.prefix_offset), pa.array(self.prefix_hash))
        columns = {name: getattr(self, name) for name in COLUMNS}
        notes = {
            "models": "\n".join(self.models),
            "slo_classes": "\n".join(self.slo_classes),
            "prefix_block_tokens": str(self.prefix_block_tokens),
        }
        return pa.table({**columns, "prefix_hashes": hashes}).replace_schema_metadata(notes)

    @classmethod
    def from_arrow(cls, table: pa.Table, source: str, first_row: int = 0) -> RequestTable:
        """Takes what :meth:`to_arrow` made, or consecutive rows of it from ``first_row`` on.

        Raises:
            InputError: It is something else, or a value of it does not hold.
        """
        try:
            notes = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
            hashes = table["prefix_hashes"].combine_chunks()
            columns = {name: table[name].to_numpy() for name in COLUMNS}
            models, slo_classes = (tuple(filter(None, notes[key].split("\n"))) for key in ("models", "slo_classes"))
            block_tokens = int(notes["prefix_block_tokens"])
            offset = hashes.offsets.to_numpy()
        except (pa.ArrowInvalid, KeyError, AttributeError) as fault:
            raise not_a_table(source, fault) from fault
        return cls.from_columns(
            **columns,
            source=source,
            first_row=first_row,
            prefix_offset=offset - offset[0],
            prefix_hash=hashes.values.to_numpy()[offset[0] : offset[-1]],
            models=models,
            slo_classes=slo_classes,
            prefix_block_tokens=block_tokens,
        )

    def to_parquet(self, path: Path) -> None:
        """Writes the table as Parquet."""
        with whole(path) as partial:
            pq.write_table(self.to_arrow(), partial)

    @classmethod
    def from_parquet(cls, path: Path) -> RequestTable:
        """Reads what :meth:`to_parquet` wrote."""
        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowInvalid) as fault:
            raise not_a_table(str(path), fault) from fault
        return cls.from_arrow(table, str(path))


def not_a_table(source: str, fault: Exception) -> InputError:
    """The error to raise for a file that holds no request table."""
    return InputError(source, f"not a request table ({fault})", "Write it with `llmcluster data convert`")


COLUMNS: tuple[str, ...] = tuple(
    field.name
    for field in fields(RequestTable)
    if str(field.type).startswith("NDArray") and not field.name.startswith("prefix_")
)
"""The columns with one value per request."""
