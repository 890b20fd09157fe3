"""Power over time from the counters of the engine that caused it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ....simulator.catalog import Catalog
from ....simulator.errors import InputError
from ..iteration import Activity, Watts
from ..series import LAGS_S, second_means, with_intervals
from ..skipped import Skipped
from ..source import Advance, Fitted, Outcome, Row, Simulated
from .power_trace_features import features
from .power_trace_files import read_traces
from .power_trace_fit import fit_power

F64 = NDArray[np.float64]


class Predicted(dict[str, float]):
    """What was simulated of a row, with the power of its seconds.

    Attributes:
        power_w: Mean power of each second.
    """

    def __init__(self, power_w: F64, energy_j: float) -> None:
        super().__init__(energy=energy_j)
        self.power_w = power_w


class PowerTrace:
    """Pairs of a power trace and an engine trace."""

    name = "power-trace"
    title = (
        "GPU power at 4 Hz beside vLLM's counters on one clock: A100-80GB, Qwen3-8B, vLLM 0.10.1, 2.5 requests/s "
        "(grantwilkins/powertrace-sim)"
    )
    quantities: ClassVar[Mapping[str, str]] = {"energy": "J"}
    assumed = (
        "the engine works all the time between two looks if requests run at both; else as long as the catalogue says "
        "its iterations take, at the end that has requests",
        "prompt tokens that the counter gained were computed since the last look, in as few iterations as the token "
        "budget of 8192 allows, and are of one request",
        "a request that leaves had the mean context of those that ran; how many leave follows from the change of the "
        "number that run and one arrival in every look that shows new prompt tokens",
        "before the first and after the last look of the engine's the GPU idles with its weights resident",
        "no cap below the TDP, no clock lock; the power of an engine on several GPUs is that of all of them",
    )

    def read(self, files: Sequence[Path], catalog: Catalog) -> list[Row]:
        """Reads files in pairs; GPU, model and GPUs of the engine are told from their names."""
        rows = []
        for trace in read_traces(files, catalog):
            measured_w = second_means(*trace.power.T)
            groups = {"gpu": trace.gpu, "model": trace.model}
            given = {"trace": trace, "power_w": measured_w, "tp": trace.tp}
            name = f"{trace.gpu}/{trace.model}/tp{trace.tp}/{trace.name}"
            rows.append(Row(trace.place, name, {"energy": float(np.nansum(measured_w))}, groups, given))
        return rows

    def simulate(self, rows: Sequence[Row], catalog: Catalog, seed: int, advance: Advance) -> list[Outcome]:
        """Predicts each second's power; nothing is random."""
        outcomes: list[Outcome] = []
        for done, row in enumerate(rows, start=1):
            try:
                shares, power = features(row, catalog)
            except InputError as fault:
                outcomes.append(Skipped.of(fault))
            else:
                power_w = power.idle_w + Watts.of(power).above_idle(Activity(*shares.T))
                outcomes.append(Predicted(power_w, float(np.nansum(power_w))))
            advance(done)
        return outcomes

    def summary(self, rows: Sequence[Row], simulated: Sequence[Simulated]) -> dict[str, float]:
        """Energy error, NRMSE and R² of the autocorrelation to lags of 20 s, with block-bootstrap intervals.

        Several traces are laid end to end, with as many empty seconds in between as the longest lag.
        """
        series = [
            (row.given["power_w"], one.power_w)
            for row, one in zip(rows, simulated, strict=True)
            if isinstance(one, Predicted)
        ]
        if not series:
            return {}
        apart = np.full(LAGS_S, np.nan)
        measured_w, predicted_w = (
            np.concatenate([part for pair in series for part in (apart, pair[k])][1:]) for k in (0, 1)
        )
        return with_intervals(measured_w, predicted_w, np.random.default_rng(0))

    def fit(self, rows: Sequence[Row], catalog: Catalog, rng: np.random.Generator, advance: Advance) -> Fitted:
        """Fits idle, active, compute and memory power; see :mod:`.power_trace_fit`."""
        return fit_power(rows, catalog, rng, advance)
