"""``splitwise``: prompt and token times of Llama-2-70B and BLOOM-176B on A100 and H100 servers.

The file is the union of three sweeps over each model, GPU and tensor parallelism: of the prompt (128 to 8192 tokens,
one request), of the batch (1 to 64 requests of 512 tokens) and of the output (128 to 8192 tokens, one request of 512).
The point they share stands there three times over, with the very same five repeats.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....simulator.catalog import Catalog, Scale
from ....simulator.errors import InputError
from ....simulator.kernels.tables import PowerCoefficients
from ....simulator.performance import GPU_MEMORY_UTILIZATION, iteration_cost, kv_capacity_tokens
from ....simulator.power import power_coefficients
from ....simulator.units import PS_PER_S
from .. import eager, scalars
from ..batches import Batches, decodes, governed, prompts
from ..csv_rows import read_lines
from ..eager import LARGE_TOKENS, Eager, Figures, Waits
from ..iteration import Governed
from ..names import called, gpu_called
from ..skipped import Skipped, missing
from ..source import Advance, Fitted, Outcome, Row

FIGURES = Path(__file__).with_suffix(".toml")
SOURCE = "splitwise-sim, data/perf_model.csv (Patel et al., ISCA 2024)"
WHOLE = ("tensor_parallel", "prompt_size", "batch_size", "token_size")
MEASURED = {"prompt_time": "prompt_time", "token_time": "token_time", "average_power": "power"}
NAMES = {"llama2-70b": "Llama-2-70B", "bloom-176b": "BLOOM-176B"}
SYNTHETIC = "-pcap"
INVENTED = Skipped(
    "synthetic: the prompt time of the uncapped GPU times 1.30, its token time unchanged",
    "Leave it out: nothing was measured",
)
TOO_LARGE = Skipped(
    "its batch does not fit the KV cache at once, so that it was measured in several",
    "Leave it out, or give rows of more GPUs or smaller batches",
)
APART = 0.10
TIMES = ("prompt_time", "token_time")
MS_PER_S = 1e3


class Splitwise:
    """Prompt time, token time and power of a fixed batch. Satisfies ``Calibrated`` and has figures of its own."""

    name = "splitwise"
    title = (
        "Prompt and token times of Llama-2-70B and BLOOM-176B on A100 and H100 servers, 2023 (splitwise-sim, Patel et "
        "al., ISCA 2024; the version of the engine is not told)"
    )
    quantities: Mapping[str, str] = {"prompt_time": "ms", "token_time": "ms", "power": "share of the TDP"}
    assumed: Sequence[str] = (
        "All prompts of a batch are one iteration, unchunked: the measured time shows no step at any token budget.",
        "The token time is that of an iteration over the whole batch at its mean context, prompt + output / 2.",
        "float16 weights and KV cache; GPUs joined by NVLink; no limit below the TDP.",
        "The engine launched its kernels one by one, without CUDA graphs: the token time of Llama-2-70B is the same on "
        "4 and on 8 GPUs. Its figures (see eager.py) are shared by both models and are none of the catalogue's. Which "
        "figures there are was chosen with all rows in view; their values come from the fit part.",
        "A GPU that nothing was fitted to has an engine that launches at once, as with CUDA graphs.",
        "power is the mean over prompt and output, and 0 means that it was not recorded.",
        f"Not simulated: rows of a GPU named *{SYNTHETIC}, whose prompt times are those of the uncapped GPU times 1.30 "
        "and whose token times are the same, and rows whose batch does not fit the KV cache at once, which were "
        "measured in several batches.",
        "The split's unit is model, GPU, parallelism and prompt length: the output sweep measures one prompt time time "
        "and again, and must not lie on both sides.",
    )

    def __init__(self, figures: Figures | None = None) -> None:
        self._figures = Figures.read(FIGURES) if figures is None else figures

    def with_figures(self, path: Path) -> Splitwise:
        """This source with the figures of a file that ``calibrate`` wrote."""
        return Splitwise(Figures.read(path))

    def read(self, files: Sequence[Path], catalog: Catalog) -> list[Row]:
        """Reads ``perf_model.csv`` and files of its layout.

        Raises:
            InputError: A file cannot be read, lacks a column, has no row or a value that does not hold.
        """
        return [row for path in files for row in _read(path, catalog)]

    def simulate(self, rows: Sequence[Row], catalog: Catalog, seed: int, advance: Advance) -> list[Outcome]:
        """Simulates every row that can be; nothing is drawn at random, so that the seed does not matter."""
        benches, refused = _benches(rows, catalog)
        found: list[Outcome] = [refused.get(i, {}) for i in range(len(rows))]
        for bench, kept in benches:
            simulated = bench.run(self._figures.engine(bench.gpu.name), self._figures.scale(*bench.slot))
            for n, i in enumerate(kept):
                found[i] = {quantity: float(simulated[quantity][n]) for quantity in self.quantities}
        advance(len(rows))
        return found

    def fit(self, rows: Sequence[Row], catalog: Catalog, rng: np.random.Generator, advance: Advance) -> Fitted:
        """Fits the engine to both times on each GPU, then ``time`` and ``compute`` to what is left.

        Repeats of a point count as one together.
        """
        benches, _ = _benches(rows, catalog)
        points = [_Points.of(bench.rows, catalog) for bench, _ in benches]
        intervals: dict[str, tuple[float, float]] = {}
        engines: dict[str, Eager] = {}
        for gpu in sorted({bench.gpu.name for bench, _ in benches}):
            figures, found = _engine([p for p in points if p.bench.gpu.name == gpu], rng)
            engines[gpu] = Eager(**figures, source=SOURCE)
            intervals |= {f"engines.{gpu}.{name}": interval for name, interval in found.items()}
        scales: list[Scale] = []
        residuals = {quantity: np.full(len(rows), np.nan) for quantity in self.quantities}
        for (bench, kept), some in zip(benches, points, strict=True):
            engine = engines[bench.gpu.name]
            logs = some.logs(engine)
            scales.append(bench.scale(*scalars.fit(logs, some.weights)))
            name = ".".join(("scales", *map(str, scales[-1].cut)))
            time, compute = scalars.intervals(logs, some.weights, some.configurations, rng)
            intervals |= {f"{name}.time": time, f"{name}.compute": compute}
            for quantity, values in bench.run(engine, scales[-1]).items():
                measured = np.array([row.measured.get(quantity, np.nan) for row in bench.rows])
                residuals[quantity][kept] = values / measured - 1
        advance(len(rows))
        tables = {
            "engines": {gpu: engine.model_dump() for gpu, engine in engines.items()},
            "scales": [scale.model_dump(exclude={"power"}) for scale in scales],
        }
        return Fitted(tables, intervals, {name: values.tolist() for name, values in residuals.items()})

    def outliers(self, rows: Sequence[Row]) -> dict[str, list[str]]:
        """Repeats more than 10 % from the median of their point; they are compared like the others."""
        points: dict[tuple[Any, ...], list[Row]] = {}
        for row in rows:
            points.setdefault(tuple(row.given.values()), []).append(row)
        found: dict[str, list[str]] = {}
        for repeats in points.values():
            for quantity in TIMES:
                middle = float(np.median([row.measured[quantity] for row in repeats]))
                apart = [row.place for row in repeats if abs(row.measured[quantity] / middle - 1) > APART]
                if apart:
                    found.setdefault(f"{quantity} is over {APART:.0%} from the median of its repeats", []).extend(apart)
        return found


class _Bench:
    """Rows of one model, GPU and parallelism, ready to be run; prompts come first, then output tokens."""

    def __init__(self, rows: Sequence[Row], catalog: Catalog) -> None:
        self.rows = rows
        first = rows[0]
        self.model, self.gpu = catalog.model(first.groups["model"]), catalog.gpu(first.groups["gpu"])
        self.tp = int(first.given["tp"])
        self.slot = (self.model.name, self.gpu.name, self.tp)
        batch, prompt, self._output = (
            np.array([row.given[name] for row in rows], np.int64) for name in ("batch", "prompt", "output")
        )
        halves = zip(prompts(batch, prompt), decodes(batch, prompt + self._output // 2), strict=True)
        self._batches = Batches(*(np.concatenate(half) for half in halves))

    def scale(self, time: float, compute: float) -> Scale:
        """These factors as a table."""
        model, gpu, tp = self.slot
        return Scale(model=model, gpu=gpu, tp=tp, time=round(time, 4), compute=round(compute, 4), source=SOURCE)

    def run(self, engine: Eager, scale: Scale) -> dict[str, NDArray[np.float64]]:
        """Simulated values of all rows, by quantity."""
        ran, waits, power = self.work(scale.compute)
        length_s = waits.length_s(engine.figures)
        energy_j = ran.power_w * ran.times.length + power.idle_w * (length_s - ran.times.length)
        energy_j += power.active_w * engine.slow_link * waits.large_s
        length_s, energy_j = scale.time * length_s.reshape(2, -1), scale.time * energy_j.reshape(2, -1)
        tokens = np.array([np.ones_like(self._output), self._output - 1])
        mean_w = (tokens * energy_j).sum(axis=0) / (tokens * length_s).sum(axis=0)
        return dict(zip(TIMES, length_s * MS_PER_S, strict=True)) | {"power": mean_w / power.cap_max_w}

    def work(self, compute: float) -> tuple[Governed, Waits, PowerCoefficients]:
        """How the catalogue has the iterations run, and what the engine is told of them."""
        scale = self.scale(1.0, compute)
        cost = iteration_cost(self.model, self.gpu, self.tp, int(self._batches.tokens.max()), scale=scale)
        power = power_coefficients(self.model, self.gpu, self.tp, scale=scale)
        # What kernels and sampling take whatever the batch is among the engine's own figures, see eager.py.
        ran, tokens = governed(cost._replace(gap_ps=0, sample_ps=0), power, self._batches), self._batches.tokens
        large_ps = cost.link_ps[tokens] - cost.link_ps[np.minimum(tokens, LARGE_TOKENS)]
        prompt = np.arange(len(tokens)) < len(self.rows)
        host_s, works_s = ran.times.host, ran.times.length - ran.times.host
        waits = Waits(host_s, works_s, large_ps / PS_PER_S, self._batches.sequences, prompt)
        return ran, waits, power


@dataclass(frozen=True)
class _Points:
    """Rows with repeats taken together, for a fit: the times of prompts come first, then those of output tokens."""

    bench: _Bench
    measured_s: NDArray[np.float64]
    weights: NDArray[np.float64]

    @classmethod
    def of(cls, rows: Sequence[Row], catalog: Catalog) -> _Points:
        """Medians of repeats. A point counts once, or more often where a resample drew its rows more often."""
        repeats: dict[tuple[Any, ...], list[Row]] = {}
        for row in rows:
            repeats.setdefault(tuple(row.given.values()), []).append(row)
        medians = [[np.median([row.measured[name] for row in some]) for some in repeats.values()] for name in TIMES]
        weights = [len(some) / len({row.place for row in some}) for some in repeats.values()] * len(TIMES)
        bench = _Bench([some[0] for some in repeats.values()], catalog)
        return cls(bench, np.concatenate(medians) / MS_PER_S, np.array(weights))

    @property
    def configurations(self) -> list[str]:
        """That of each time."""
        return [row.configuration for row in self.bench.rows] * len(TIMES)

    def logs(self, engine: Eager) -> NDArray[np.float64]:
        """log(measured / simulated) at each of ``scalars.COMPUTE``."""
        lengths_s = (self.bench.work(compute)[1].length_s(engine.figures) for compute in scalars.COMPUTE.tolist())
        return np.array([np.log(self.measured_s / length_s) for length_s in lengths_s])


def _engine(
    points: Sequence[_Points], rng: np.random.Generator
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Figures of the engine that all models on a GPU share, and their intervals."""
    parts = zip(*(some.bench.work(1.0)[1] for some in points), strict=True)
    measured_s = np.concatenate([some.measured_s for some in points])
    weights = np.concatenate([some.weights for some in points])
    configurations = [name for some in points for name in some.configurations]
    return eager.fit(Waits(*(np.concatenate(part) for part in parts)), measured_s, weights, configurations, rng)


def _benches(rows: Sequence[Row], catalog: Catalog) -> tuple[list[tuple[_Bench, list[int]]], dict[int, Skipped]]:
    """What can be simulated, with the places in ``rows``, and why the others cannot, by their places."""
    slots: dict[tuple[str, str, int], list[int]] = {}
    refused: dict[int, Skipped] = {}
    for i, row in enumerate(rows):
        if (why := _refusal(row, catalog)) is not None:
            refused[i] = why
        else:
            slots.setdefault((row.groups["model"], row.groups["gpu"], row.given["tp"]), []).append(i)
    return [(_Bench([rows[i] for i in kept], catalog), kept) for kept in slots.values()], refused


def _refusal(row: Row, catalog: Catalog) -> Skipped | None:
    """Why a row is not simulated."""
    gpu, model, tp = row.groups["gpu"], row.groups["model"], row.given["tp"]
    if gpu.endswith(SYNTHETIC):
        return INVENTED
    if (lacks := missing(catalog, gpu=gpu, model=model)) is not None:
        return lacks
    try:
        capacity = kv_capacity_tokens(catalog.model(model), catalog.gpu(gpu), tp, GPU_MEMORY_UTILIZATION)
    except InputError as fault:
        return Skipped.of(fault)
    needed = row.given["batch"] * (row.given["prompt"] + row.given["output"])
    return TOO_LARGE if needed > capacity else None


def _read(path: Path, catalog: Catalog) -> list[Row]:
    lines = read_lines(path, ("model", "hardware", *WHOLE, *MEASURED))
    return [_row(line.place, line.cells, catalog) for line in lines]


def _row(place: str, line: Mapping[str, str], catalog: Catalog) -> Row:
    tp, prompt, batch, output = (int(_number(place, name, line[name], at_least=1, whole=True)) for name in WHOLE)
    measured = {quantity: _number(place, name, line[name]) for name, quantity in MEASURED.items()}
    for quantity in TIMES:
        if measured[quantity] == 0:
            raise InputError(f"{place}: {quantity}", "is 0", "Give a time above 0, or leave the row out")
    if measured["power"] == 0:
        del measured["power"]
    model = called(catalog.model, line["model"], NAMES)
    gpu = gpu_called(catalog, line["hardware"])
    return Row(
        place=place,
        configuration=f"{model}/{gpu}/tp{tp}/prompt{prompt}",
        measured=measured,
        groups={"gpu": gpu, "model": model, "tp": str(tp)},
        given={"model": model, "gpu": gpu, "tp": tp, "batch": batch, "prompt": prompt, "output": output},
    )


def _number(place: str, name: str, text: str, at_least: float = 0, whole: bool = False) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= at_least) or (whole and value != int(value)):
        kind = "a whole number" if whole else "a number"
        raise InputError(f"{place}: {name}", f"is {text!r}", f"Give {kind} of at least {at_least}")
    return value
