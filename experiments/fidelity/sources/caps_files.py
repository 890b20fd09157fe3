"""Readers of the three layouts in which speed and power under caps are published."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....simulator.catalog import Catalog
from ....simulator.errors import InputError
from ..csv_rows import Line, read_lines
from ..names import gpu_called, mentioned
from ..source import Row

BENCHES = {"babelstream": "memory-bound", "pi-solver": "compute-bound"}
RUNGS = {
    **dict.fromkeys(("locked-clocks", "prec-bf16", "soak-30min"), "gemm"),
    **dict.fromkeys(("dram-only", "unit-dram"), "memory-bound"),
    **dict.fromkeys(("idle", "infer-idle"), "idle"),
}
GPUS = {"a100": "A100-80GB-PCIe", "h100": "H100-80GB", "rtxpro6000": "RTX-PRO-6000", "v100": "V100-32GB"}
"""What files call GPUs that the catalogue has under longer names, or not at all."""
STEADY = 0.95
"""Mean power below this share of the peak is that of a run which the meter had not caught up with."""

CLOCK_X_CAP = ("bench", "gpu", "variant", "max_clock_mhz", "power_cap_w", "time_s", "avg_power_w")
RUNG_SWEEP = ("rung", "enforced_limit_w", "avg_w", "peak_w", "delay_per_work_s")
TRAINING = ("dataset", "network", "batch_size", "optimizer", "power_limit", "time_per_epoch", "average_power")


@dataclass(frozen=True)
class Reading:
    """One line of a file.

    Attributes:
        place: File and line.
        configuration: As in ``Row``.
        peers: Readings whose speeds can be compared.
        work: Kind of work.
        gpu: Name in the catalogue.
        cap_w: Power limit, watts.
        clock_mhz: Clock lock, if any.
        time_s: Time of a fixed amount of work; none where it was not fixed.
        power_w: Mean power, watts; none where it was not steady.
    """

    place: str
    configuration: str
    peers: str
    work: str
    gpu: str
    cap_w: float
    clock_mhz: float | None
    time_s: float | None
    power_w: float | None


def read_clock_x_cap(path: Path, catalog: Catalog) -> list[Reading]:
    """Clock lock times power limit, of giordano/gpu-power-frequency-benchmarks."""
    return [_clock_x_cap(line, catalog) for line in read_lines(path, CLOCK_X_CAP)]


def _clock_x_cap(line: Line, catalog: Catalog) -> Reading:
    bench, gpu = line.text("bench"), _gpu(line.text("gpu"), catalog)
    peers = f"{gpu}/{bench}/{line.cells['variant']}"
    return Reading(
        line.place,
        f"{peers}/{line.positive('max_clock_mhz'):g}",
        peers,
        BENCHES.get(bench, bench),
        gpu,
        line.positive("power_cap_w"),
        line.positive("max_clock_mhz"),
        line.positive("time_s"),
        line.positive("avg_power_w"),
    )


def read_rungs(path: Path, catalog: Catalog) -> list[Reading]:
    """Sweep of sinkers/gpu-power-lab; of its other kernels nobody knows how busy they keep compute and memory."""
    readings = []
    for line in read_lines(path, RUNG_SWEEP):
        gpu = _gpu_of_line(line, path, catalog)
        rung = line.text("rung")
        swept = rung.startswith("cap-")
        work = "gemm" if swept else RUNGS.get(rung)
        if work is None:
            continue
        mean_w, peak_w = line.positive("avg_w"), line.positive("peak_w")
        peers = f"{gpu}/{work}"
        time_s = line.positive("delay_per_work_s") if swept else None
        power_w = mean_w if mean_w >= STEADY * peak_w else None
        cap_w = line.positive("enforced_limit_w")
        readings.append(Reading(line.place, peers, peers, work, gpu, cap_w, None, time_s, power_w))
    return readings


def read_training(path: Path, catalog: Catalog) -> list[Reading]:
    """Training runs of ml-energy/zeus."""
    readings = []
    for line in read_lines(path, TRAINING):
        gpu = _gpu_of_line(line, path, catalog)
        peers = "/".join([gpu, *(line.text(name) for name in TRAINING[:4])])
        cap_w, time_s = line.positive("power_limit"), line.positive("time_per_epoch")
        power_w = line.positive("average_power")
        readings.append(Reading(line.place, peers, peers, "training", gpu, cap_w, None, time_s, power_w))
    return readings


LAYOUTS: Mapping[tuple[str, ...], Callable[[Path, Catalog], list[Reading]]] = {
    CLOCK_X_CAP: read_clock_x_cap,
    RUNG_SWEEP: read_rungs,
    TRAINING: read_training,
}


def read_caps(path: Path, catalog: Catalog) -> list[Row]:
    """Rows of a file in any of the layouts, told apart by their headers; its name matters only for the GPU.

    The GPU stands in the column ``gpu``, else it is a word of the file's name; one that neither the catalogue nor
    ``GPUS`` knows goes by these.

    Speeds are relative to the reading of the same work at the highest cap and clock, whose own speed is left out; of
    training its power too, for that is taken as known.

    Raises:
        InputError: The file is of no known layout, or a line does not hold.
    """
    names = set(read_lines(path, ())[0].cells)
    for columns, reader in LAYOUTS.items():
        if names.issuperset(columns):
            return list(_rows(reader(path, catalog)))
    wanted = "; or ".join(", ".join(columns) for columns in LAYOUTS)
    raise InputError(f"{path}:1", "is of no known layout of power caps", f"The header must name {wanted}")


def _rows(readings: Sequence[Reading]) -> Iterable[Row]:
    best: dict[str, Reading] = {}
    for reading in sorted((r for r in readings if r.time_s is not None), key=_rank):
        best[reading.peers] = reading
    for reading in readings:
        reference = best.get(reading.peers)
        training = reading.work == "training"
        measured: dict[str, float] = {}
        given: dict[str, Any] = {"work": reading.work, "cap_w": reading.cap_w, "clock_mhz": reading.clock_mhz}
        if reading.power_w is not None and not (training and reading is reference):
            measured["power"] = reading.power_w
        if reading.time_s is not None and reference is not None and reference.time_s is not None:
            given |= {"reference_cap_w": reference.cap_w, "reference_clock_mhz": reference.clock_mhz}
            given |= {"level_w": reference.power_w} if training else {}
            if reading is not reference:
                measured["speed"] = reference.time_s / reading.time_s
        if measured:
            groups = {"gpu": reading.gpu, "work": reading.work, "cap": f"{reading.gpu} {reading.cap_w:g} W"}
            yield Row(reading.place, reading.configuration, measured, groups, given)


def _rank(reading: Reading) -> tuple[float, float, float]:
    """The higher the cap, then the clock, then the speed, the better a reference."""
    return reading.cap_w, reading.clock_mhz or 0.0, -(reading.time_s or 0.0)


def _gpu_of_line(line: Line, path: Path, catalog: Catalog) -> str:
    """The GPU of a layout without a column for it, which a file may have nevertheless."""
    return _gpu(line.cells.get("gpu") or path.stem, catalog)


def _gpu(text: str, catalog: Catalog) -> str:
    if (known := gpu_called(catalog, text, {})) in catalog.gpus:
        return known
    return mentioned(text, catalog.gpus) or GPUS.get(mentioned(text, GPUS) or "", text)
