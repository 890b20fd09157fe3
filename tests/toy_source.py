"""A source small enough to be checked by hand: power is a share of the GPU's idle power, and nothing else."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import numpy as np

from llmcluster.experiments.fidelity.csv_rows import Line, read_lines
from llmcluster.experiments.fidelity.skipped import missing
from llmcluster.experiments.fidelity.source import Advance, Fitted, Outcome, Row
from llmcluster.simulator.catalog import Catalog

HEADER = "gpu,model,setup,share,power"


class Toy:
    name = "toy"
    title = "shares of idle power, engine 1.2.3"
    quantities: Mapping[str, str] = {"power": "W", "double": "W"}
    assumed: Sequence[str] = ("power is a share of idle power",)

    def read(self, files: Sequence[Path], catalog: Catalog) -> list[Row]:
        return [_row(line) for path in files for line in read_lines(path, HEADER.split(","))]

    def simulate(self, rows: Sequence[Row], catalog: Catalog, seed: int, advance: Advance) -> list[Outcome]:
        found: list[Outcome] = []
        for row in rows:
            found.append(missing(catalog, gpu=row.groups["gpu"]) or _simulate(row, catalog))
            advance(len(found))
        return found


class FittedToy(Toy):
    """The toy with a fit: the idle power of each GPU is the median over its rows."""

    name = "fitted-toy"

    def fit(self, rows: Sequence[Row], catalog: Catalog, rng: np.random.Generator, advance: Advance) -> Fitted:
        by_gpu: dict[str, list[float]] = {}
        for row in rows:
            by_gpu.setdefault(row.groups["gpu"], []).append(row.measured["power"] / row.given["share"])
        idle = {gpu: median(watts) for gpu, watts in by_gpu.items()}
        tables = {
            gpu: {"like": gpu, "power": {"idle_w": watts, "calibrated": True, "source": "toy"}}
            for gpu, watts in idle.items()
        }
        residuals = [idle[row.groups["gpu"]] * row.given["share"] / row.measured["power"] - 1 for row in rows]
        intervals = {f"gpus.{gpu}.power.idle_w": (0.5 * watts, 2 * watts) for gpu, watts in idle.items()}
        advance(len(rows))
        return Fitted({"gpus": tables}, intervals, {"power": residuals})


def _simulate(row: Row, catalog: Catalog) -> Outcome:
    power = catalog.gpu(row.groups["gpu"]).power.idle_w * row.given["share"]
    return {"power": power, "double": 2 * power}


def _row(line: Line) -> Row:
    power = line.number("power")
    return Row(
        line.place,
        line.text("setup"),
        {"power": power, "double": 2 * power},
        {"gpu": line.text("gpu"), "model": line.text("model")},
        {"share": line.positive("share")},
    )
