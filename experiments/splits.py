"""Cutting a trace in time: the first part to train on, the next to tune on, the last to report on."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from ..envs.scenario import Scenario
from ..envs.traces import read_trace, with_trace
from ..simulator.errors import InputError
from ..simulator.units import to_ps
from ..simulator.workload.table import COLUMNS, RequestTable

Part = Literal["training", "validation", "held_out"]
SHARES: dict[Part, tuple[float, float]] = {"training": (0.0, 0.6), "validation": (0.6, 0.8), "held_out": (0.8, 1.0)}


class Split:
    """A trace in three parts, written as files beside the results so that environments can play them.

    Each episode starts at a random place of its part. Where the last two parts are shorter than the scenario's horizon,
    episodes are as long as these parts.

    Args:
        scenario: The scenario whose workload the trace replaces.
        source: Path of the trace, or the name of a fetched one.
        folder: Where the parts go.

    Raises:
        InputError: The trace does not hold, or is too short for even one tick in each part.
    """

    def __init__(self, scenario: Scenario, source: str, folder: Path) -> None:
        table = read_trace(source)
        self.name = Path(source).name
        digest = hashlib.sha256(b"".join(getattr(table, name).tobytes() for name in COLUMNS)).hexdigest()[:12]
        self._folder = folder / "workload" / digest
        total_s = table.duration_s
        shortest_s = min(stop - start for start, stop in SHARES.values()) * total_s
        tick = scenario.tick_s
        self.horizon_s = min(scenario.horizon_s, int(shortest_s // tick) * tick)
        if self.horizon_s < tick:
            raise InputError(source, f"covers only {total_s:.0f} s", f"Give a trace of at least {5 * tick} s")
        pieces: dict[Part, RequestTable] = {}
        for part, (start, stop) in SHARES.items():
            pieces[part] = table.between(to_ps(start * total_s), to_ps(stop * total_s) + int(stop == 1.0))
            if len(pieces[part]) < 2:
                when = f"between {start * total_s:.0f} s and {stop * total_s:.0f} s"
                raise InputError(source, f"has too few requests {when}", "Give a trace with traffic all along")
        self._scenario, self._training = scenario, pieces["training"]
        self._folder.mkdir(parents=True, exist_ok=True)
        for part, piece in pieces.items():
            piece.to_parquet(self._path(part))

    def _path(self, part: Part) -> Path:
        return self._folder / f"{part}.parquet"

    def scenario(self, part: Part) -> Scenario:
        """The scenario with one part of the trace as its workload."""
        # All parts share the scale of the first; the path, made of the content, is what two runs have in common.
        scenario = with_trace(self._scenario, self._path(part), self._training)
        return scenario.model_copy(update={"horizon_s": self.horizon_s})
