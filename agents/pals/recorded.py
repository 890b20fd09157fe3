"""Tables from telemetry: what was recorded of slots at known caps takes the place of a sweep."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ...simulator.errors import InputError
from ...simulator.kernels.state import SERVING, STATUS_NAMES
from .table import I64, PowerTable, Seconds

COLUMNS = ("second", "slot", "status", "running", "output_tokens", "energy_j")


def recorded(
    at_cap_w: Mapping[float, Path], batch: I64, slots: Collection[str] | None = None, from_s: int = 0
) -> PowerTable:
    """Table of slots that are alike, from runs at one cap each.

    Nobody knows what limited the requests in flight while it was recorded, so each second counts to those that ran.
    That is right where clients wait for their answers: a slot that stands still for part of a second looks slow.

    Args:
        at_cap_w: Power limit of the slots in a run, watts, and its ``seconds.parquet`` (`llmcluster simulate --out`).
        batch: Requests in flight of the table, ascending (B,).
        slots: Names of the slots; all by default.
        from_s: Leaves out the seconds before, in which batches fill.

    Returns:
        The table.

    Raises:
        InputError: A file cannot be read or is no such record, or nothing ran at a cap.
    """
    parts = [_seconds(cap_w, path, slots, from_s) for cap_w, path in at_cap_w.items()]
    columns = ("cap_w", "in_flight", "running", "tokens", "power_w")
    rows = Seconds(*(np.concatenate([getattr(part, name) for part in parts]) for name in columns))
    return PowerTable.of_seconds(rows, np.sort(np.array(list(at_cap_w), np.float64)), batch)


def _seconds(cap_w: float, path: Path, slots: Collection[str] | None, from_s: int) -> Seconds:
    try:
        table = pq.read_table(path, columns=list(COLUMNS))
    except (OSError, pa.ArrowException) as fault:
        remedy = "Give the seconds.parquet that `llmcluster simulate --out` writes"
        raise InputError(str(path), f"cannot be read ({fault})", remedy) from fault
    if missing := [name for name in COLUMNS if name not in table.column_names]:
        raise InputError(str(path), f"has no column {missing[0]}", "Give a record of slots, seconds.parquet")
    keep = pc.and_(
        pc.equal(table["status"].cast(pa.string()), STATUS_NAMES[SERVING]), pc.greater_equal(table["second"], from_s)
    )
    if slots is not None:
        keep = pc.and_(keep, pc.is_in(table["slot"].cast(pa.string()), pa.array(sorted(slots), pa.string())))
    rows = table.filter(keep)
    running, tokens, power_w = (
        rows[name].to_numpy().astype(np.float64) for name in ("running", "output_tokens", "energy_j")
    )
    return Seconds(np.full(len(running), cap_w), running, running, tokens, power_w)
