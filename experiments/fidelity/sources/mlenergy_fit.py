"""Figures of the catalogue from runs of the ML.ENERGY benchmark: times and power of each GPU, a factor of each cut.

What is measured says which runs tell nothing of GPUs. They are left out of the fit, by name, and validated like all.

- Stalls of client or host: tokens arrive in bursts, the 90th percentile of inter-token latencies far above the median,
  although too few requests start in an iteration for their prompts to be the reason. On several GPUs and on H100 this
  hardly happens. A configuration where it does in any batch up to 16 (all on one B200) is left out whole, else the row.
- Another batch: where the mean batch is not that of the simulated run, which depends on what is assumed of the lengths
  and hardly on times, so that the two are under different pressure on their KV cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....simulator.catalog import Cut, Scale
from ..demand import Demand, Served, squeezed
from ..governed_fit import Found, Runs, fit_governed
from ..places import spans
from ..roofline_fit import START, Seen, mean_batch, needs
from ..source import Advance, Fitted, Row

SMALL_BATCH = 16
BURSTY = 1.25
FEW_STARTS = 0.1
"""Requests that start in an iteration, such that less than one in ten latencies holds a prompt."""
OTHER_BATCH = 0.05
RESAMPLES = 20
DIGITS = 4
MS_PER_S = 1e3
SOURCE = "ml-energy/leaderboard v3 (2026-02), vLLM 0.11.1"
QUANTITIES = ("itl", "throughput", "power", "energy_per_token")


def bursty(row: Row) -> bool:
    """Whether client or host stall; not known to where the latencies or the batch were not measured."""
    if not row.measured.keys() >= {"batch", "itl", "itl_p90"}:
        return False
    few = row.measured["batch"] < FEW_STARTS * row.given["avg_output_len"]
    return few and row.measured["itl_p90"] > BURSTY * row.measured["itl"]


def stalled(rows: Sequence[Row]) -> set[str]:
    """Configurations in which they do so in a small batch."""
    return {row.configuration for row in rows if row.given["max_num_seqs"] <= SMALL_BATCH and bursty(row)}


def fit(
    rows: Sequence[Row],
    served: Sequence[Served | None],
    rng: np.random.Generator,
    advance: Advance,
    resamples: int = RESAMPLES,
) -> Fitted:
    """Fits the figures of every GPU.

    Args:
        rows: What was measured.
        served: The run of each row; none where it cannot be simulated.
        rng: Draws the resamples of the intervals.
        advance: Is told how many rows are done.
        resamples: How often configurations are drawn anew for the intervals; without any there are none.

    Returns:
        Timing and power of each GPU and a scale for each cut; residuals of the rows that were used.
    """
    silent = stalled(rows)
    residuals = {quantity: np.full(len(rows), np.nan) for quantity in QUANTITIES}
    centre: Mapping[str, float] = START
    gpus: dict[str, Any] = {}
    scales: list[dict[str, Any]] = []
    intervals: dict[str, tuple[float, float]] = {}
    done = 0
    for kept, part in parts(rows, served):
        found = fit_governed(part.runs, centre, part.counts)
        intervals |= part.intervals(found, centre, rng, resamples)
        centre = found.timing.figures
        gpu = part.runs.gpu.name
        gpus[gpu] = part.tables(found, sorted({row.configuration for row in rows if row.groups["gpu"] == gpu} & silent))
        scales += part.scales(found)
        for quantity, values in part.residuals(found).items():
            residuals[quantity][kept] = values
        advance(done := done + len(kept))
    return Fitted(
        {"gpus": gpus, "scales": scales},
        intervals,
        {quantity: values.tolist() for quantity, values in residuals.items()},
    )


def parts(rows: Sequence[Row], served: Sequence[Served | None]) -> list[tuple[list[int], Part]]:
    """The rows of each GPU that tell something of it, by their indices.

    The GPU with most of them comes first: its figures are where those of the others start.
    """
    silent = stalled(rows)
    by_gpu: dict[str, list[int]] = {}
    for i, (row, run) in enumerate(zip(rows, served, strict=True)):
        if run is not None and row.configuration not in silent:
            by_gpu.setdefault(run.gpu.name, []).append(i)
    return [
        (kept, Part([rows[i] for i in kept], [run for i in kept if (run := served[i]) is not None]))
        for kept in sorted(by_gpu.values(), key=len, reverse=True)
    ]


class Part:
    """Rows of one GPU."""

    def __init__(self, rows: Sequence[Row], served: Sequence[Served]) -> None:
        self.rows, gpu = rows, served[0].gpu
        cuts = [Cut(run.model.name, gpu.name, run.tp, 1, run.ep) for run in served]
        self.cuts = sorted(set(cuts))
        measured = {quantity: np.array([row.measured[quantity] for row in rows]) for quantity in QUANTITIES}
        tp = np.array([run.tp for run in served])
        small = {id(run.work): squeezed(run.work) for run in served}
        self.runs = Runs(
            gpu=gpu,
            demand=Demand.of([Served(small[id(r.work)], r.model, r.gpu, r.tp, r.ep) for r in served]),
            key=np.array([self.cuts.index(cut) for cut in cuts]),
            seen=Seen(measured["itl"] / MS_PER_S, measured["throughput"]),
            power_w=measured["power"] / tp,
            models=[run.model for run in served],
            resident=np.array([run.model.weight_bytes / run.tp / gpu.memory_bytes for run in served]),
        )

        batch = mean_batch(self.runs.demand, needs(self.runs.demand, START).at(1.0).length)
        other = np.abs(batch / np.array([row.measured["batch"] for row in rows]) - 1) > OTHER_BATCH
        self.counts = np.where(other | np.array([bursty(row) for row in rows]), 0.0, 1.0)

    def tables(self, found: Found, left_out: Sequence[str]) -> dict[str, Any]:
        """The entry of the GPU."""
        used = [row for row, count in zip(self.rows, self.counts, strict=True) if count]
        source = f"{SOURCE}: {len(used)} rows of {len({row.configuration for row in used})} configurations"
        if single := [row.place for row in self.rows if row not in used]:
            source += f"; left out because of another batch or stalls: {spans(single)}"
        if left_out:
            source += f"; left out because client or host stalls: {', '.join(left_out)}"
        gpu = self.runs.gpu
        fitted = {"calibrated": True, "source": source}
        return {
            "like": gpu.name,
            "timing": fitted | {name: _short(value) for name, value in found.timing.figures.items()},
            "power": fitted | {name: _short(value) for name, value in found.watts.shared.items()},
        }

    def scales(self, found: Found) -> list[dict[str, Any]]:
        """The factor of power of each cut."""
        return [
            Scale(
                **cut._asdict(),
                power=_short(float(found.watts.factor[i])),
                source=f"{SOURCE}: {count:.0f} rows",
            ).model_dump(exclude={"time", "step_s", "compute"})
            for i, cut in enumerate(self.cuts)
            if (count := self.counts[self.runs.key == i].sum())
        ]

    def residuals(self, found: Found) -> dict[str, NDArray[np.float64]]:
        """Relative errors."""
        simulated = {"itl": found.seen.itl_s, "throughput": found.seen.throughput, "power": found.power_w}
        measured = {"itl": self.runs.seen.itl_s, "throughput": self.runs.seen.throughput, "power": self.runs.power_w}
        errors = {quantity: simulated[quantity] / measured[quantity] - 1 for quantity in simulated}
        return errors | {"energy_per_token": (1 + errors["power"]) / (1 + errors["throughput"]) - 1}

    def intervals(
        self, found: Found, centre: Mapping[str, float], rng: np.random.Generator, resamples: int
    ) -> dict[str, tuple[float, float]]:
        """95 % intervals over resampled configurations, each fitted from ``found`` on."""
        names, member = np.unique([row.configuration for row in self.rows], return_inverse=True)
        drawn: dict[str, list[float]] = {}
        for counts in rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples):
            times_drawn = self.counts * counts[member]
            other = fit_governed(self.runs, centre, times_drawn, found)
            for name, value in self._named(other, set(self.runs.key[times_drawn > 0].tolist())).items():
                drawn.setdefault(name, []).append(value)
        bounds = {name: np.quantile(values, (0.025, 0.975)) for name, values in drawn.items()}
        return {name: (float(low), float(high)) for name, (low, high) in bounds.items()}

    def _named(self, found: Found, present: set[int]) -> dict[str, float]:
        """Every figure by its dotted name; of the cuts only those of which a row was drawn."""
        gpu = f"gpus.{self.runs.gpu.name}"
        named = {f"{gpu}.timing.{name}": value for name, value in found.timing.figures.items()}
        named |= {f"{gpu}.power.{name}": value for name, value in found.watts.shared.items()}
        for i in present:
            entry = {key: value for key, value in self.cuts[i]._asdict().items()}
            prefix = ".".join(("scales", *(str(value) for value in entry.values())))
            named[f"{prefix}.power"] = float(found.watts.factor[i])
        return named


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
