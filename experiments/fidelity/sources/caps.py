"""Speed and power under power caps and clock locks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from ....simulator.catalog import Catalog, GpuSpec
from ..operating import Phase, Work, power_w
from ..skipped import Skipped
from ..source import Advance, Fitted, Outcome, Row
from .caps_files import BENCHES, read_caps
from .caps_fit import fit_gpus

WORKS: Mapping[str, Work] = {
    "compute-bound": Work(host=0, compute=1, memory=0),
    "memory-bound": Work(host=0, compute=0, memory=1),
    "gemm": Work(host=0, compute=1, memory=0.45),
    "training": Work(host=0, compute=1, memory=0.5),
    "idle": Work(host=1, compute=0, memory=0),
}
LEAST_BUSY = 0.01


class Caps:
    """Steady kernels and training runs under power caps."""

    name = "caps"
    title = (
        "Speed and power under power caps and clock locks: A100 PCIe (giordano/gpu-power-frequency-benchmarks), B300 "
        "(sinkers/gpu-power-lab), training on A40 and V100 (ml-energy/zeus)"
    )
    quantities: ClassVar[Mapping[str, str]] = {
        "speed": "of the same work at the highest cap and clock",
        "power": "W",
    }
    assumed = (
        "babelstream and the DRAM kernels keep memory busy all the time and compute units never; the pi solver the "
        "reverse; the matrix products of the B300 keep compute units busy all the time and memory for 45 % of it, "
        "as nvidia-smi reports; what other kernels of that sweep keep busy is not known: left out",
        "a training run works in phases, compute-bound with memory busy for half of the time, and waits for its host "
        "in between, longer than the governor takes to act: for that part of the time which makes it draw, at the "
        "highest cap, the mean power measured there. So of training only the caps below the highest are compared",
        "power whose mean is below 95 % of its peak is of a run too short for the meter: left out",
        "the RTX PRO 6000 has no entry in the catalogue (its memory clock follows the core clock, which no entry "
        "describes): not simulated",
    )

    def read(self, files: Sequence[Path], catalog: Catalog) -> list[Row]:
        """Reads files of any of the three layouts."""
        return [row for path in files for row in read_caps(path, catalog)]

    def simulate(self, rows: Sequence[Row], catalog: Catalog, seed: int, advance: Advance) -> list[Outcome]:
        """Lets the governor settle at each row's cap and clock; nothing is random."""
        outcomes: list[Outcome] = []
        for done, row in enumerate(rows, start=1):
            outcomes.append(_simulate(row, catalog))
            advance(done)
        return outcomes

    def fit(self, rows: Sequence[Row], catalog: Catalog, rng: np.random.Generator, advance: Advance) -> Fitted:
        """Fits each GPU's clock curve and power; see :mod:`.caps_fit`."""
        return fit_gpus(rows, catalog, phase_of, rng, advance)


def phase_of(row: Row, gpu: GpuSpec) -> Phase | None:
    """What a row's work keeps busy, and for how much of its time; none where nobody knows."""
    if (work := WORKS.get(row.given["work"])) is None:
        return None
    if row.given["work"] != "training":
        return Phase(work, 1.0)
    busy_w = power_w(gpu, work, 1.0, 1.0) - gpu.power.idle_w
    return Phase(work, float(np.clip((row.given["level_w"] - gpu.power.idle_w) / busy_w, LEAST_BUSY, 1.0)))


def _simulate(row: Row, catalog: Catalog) -> Outcome:
    given = row.given
    if (gpu := catalog.gpus.get(row.groups["gpu"])) is None:
        remedy = "Give its entry with --catalog FILE; or the GPU in a column gpu, or as a word of the file's name"
        return Skipped(f"no GPU of the catalogue goes by {row.groups['gpu']}", remedy)
    if (phase := phase_of(row, gpu)) is None:
        return Skipped(f"nobody knows what {given['work']} keeps busy", f"Give rows of {', '.join(BENCHES)}")
    point = phase.settle(gpu, given["cap_w"], given["clock_mhz"])
    if "reference_cap_w" not in given:
        return {"power": point.power_w}
    reference = phase.settle(gpu, given["reference_cap_w"], given["reference_clock_mhz"])
    return {"power": point.power_w, "speed": point.speed / reference.speed}
