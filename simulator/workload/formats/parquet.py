"""Request tables as Parquet: the package's own format, which keeps every column."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ...files import whole
from ..table import RequestTable, not_a_table


def read_parquet(path: Path, rows: int | None = None) -> Iterator[RequestTable]:
    """Reads what :func:`write_parquet` or :meth:`RequestTable.to_parquet` wrote."""
    if rows is None:
        yield RequestTable.from_parquet(path)
        return
    first_row = 0
    for batch in _batches(path, rows):
        yield RequestTable.from_arrow(batch, str(path), first_row)
        first_row += batch.num_rows


def write_parquet(parts: Iterable[RequestTable], path: Path) -> None:
    """Writes parts of a table, at least one, as row groups of one file."""
    later = iter(parts)
    first = next(later)
    with whole(path) as partial, pq.ParquetWriter(partial, first.to_arrow().schema) as writer:
        for part in chain([first], later):
            writer.write_table(part.to_arrow())


def _batches(path: Path, rows: int) -> Iterator[pa.Table]:
    """The file as parts of so many rows; one without rows if there are none."""
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:  # a buffer would hold whole row groups
            for batch in file.iter_batches(rows, use_threads=False):
                yield pa.Table.from_batches([batch])
            if file.metadata.num_rows == 0:
                yield file.schema_arrow.empty_table()
    except (OSError, pa.ArrowInvalid) as fault:
        raise not_a_table(str(path), fault) from fault
