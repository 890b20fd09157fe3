"""``splitwise``: prompt and token times of Llama-2-70B and BLOOM-176B on A100 and H100 servers.

The file is the union of three sweeps over each model, GPU and tensor parallelism: of the prompt (128 to 8192 tokens,
one request), of the batch (1 to 64 requests of 512 tokens) and of the output (128 to 8192 tokens, one request of 512).
The point they share stands there three times over, with the very same five repeats.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....simulator.catalog import Catalog, Scale
from ....simulator.errors import InputError
from ....simulator.performance import GPU_MEMORY_UTILIZATION, iteration_cost, kv_capacity_tokens
from ....simulator.power import power_coefficients
from .. import scalars
from ..iteration import decodes, prompts, run
from ..source import Advance, Fitted, Row, Simulated

WHOLE = ("tensor_parallel", "prompt_size", "batch_size", "token_size")
MEASURED = {"prompt_time": "prompt_time", "token_time": "token_time", "average_power": "power"}
NAMES = {"llama2-70b": "Llama-2-70B", "bloom-176b": "BLOOM-176B", "a100-80gb": "A100-80GB", "h100-80gb": "H100-80GB"}
SYNTHETIC = "-pcap"
APART = 0.10
FITTED = ("prompt_time", "token_time")
MS_PER_S = 1e3

Slot = tuple[str, str, int]
"""Model, GPU, tensor parallelism."""


class Splitwise:
    """Prompt time, token time and power of a fixed batch. Satisfies ``Calibrated``."""

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
        "The engine launched its kernels one by one (no CUDA graphs), which hides the GPU behind the host in most "
        "decodes. The catalogue describes an engine with CUDA graphs: the fitted `time` stands for the difference.",
        "power is the mean over prompt and output, and 0 means that it was not recorded.",
        f"Not simulated: rows of a GPU named *{SYNTHETIC}, whose prompt times are those of the uncapped GPU times 1.30 "
        "and whose token times are the same, and rows whose batch does not fit the KV cache at once, which were "
        "measured in several batches.",
        "The split's unit is model, GPU, parallelism and prompt length: the output sweep measures one prompt time time "
        "and again, and must not lie on both sides.",
    )

    def read(self, files: Sequence[Path]) -> list[Row]:
        """Reads ``perf_model.csv`` and files of its layout.

        Raises:
            InputError: A file cannot be read, lacks a column, has no row or a value that does not hold.
        """
        return [row for path in files for row in _read(path)]

    def simulate(self, rows: Sequence[Row], catalog: Catalog, seed: int, advance: Advance) -> list[Simulated]:
        """Simulates every row that can be; nothing is drawn at random, so that the seed does not matter."""
        found: list[Simulated] = [{} for _ in rows]
        done = 0
        for members in _by_slot(rows).values():
            kept = [i for i in members if _refusal(rows[i], catalog) is None]
            if kept:
                bench = _Bench([rows[i] for i in kept], catalog)
                simulated = bench.run(catalog.scale(bench.model.name, bench.gpu.name, bench.tp))
                for n, i in enumerate(kept):
                    found[i] = {quantity: float(simulated[quantity][n]) for quantity in self.quantities}
            done += len(members)
            advance(done)
        return found

    def fit(self, rows: Sequence[Row], catalog: Catalog, rng: np.random.Generator, advance: Advance) -> Fitted:
        """Fits ``time`` and ``compute`` of each model, GPU and parallelism to both times, each point counting once."""
        scales: list[Scale] = []
        intervals: dict[str, tuple[float, float]] = {}
        residuals = {quantity: np.full(len(rows), np.nan) for quantity in self.quantities}
        done = 0
        for members in _by_slot(rows).values():
            kept = [i for i in members if _refusal(rows[i], catalog) is None]
            if kept:
                bench = _Bench([rows[i] for i in kept], catalog)
                logs, weights = bench.logs(), np.tile(bench.weights(), len(FITTED))
                best = bench.scale(*scalars.fit(logs, weights))
                found = scalars.intervals(logs, weights, [row.configuration for row in bench.rows] * len(FITTED), rng)
                name = ".".join(("scales", *map(str, best.cut)))
                intervals |= {f"{name}.time": found[0], f"{name}.compute": found[1]}
                scales.append(best)
                for quantity, values in bench.run(best).items():
                    measured = np.array([row.measured.get(quantity, np.nan) for row in bench.rows])
                    residuals[quantity][kept] = values / measured - 1
            done += len(members)
            advance(done)
        tables = {"scales": [scale.model_dump(exclude={"power"}) for scale in scales]}
        return Fitted(tables, intervals, {name: values.tolist() for name, values in residuals.items()})

    def outliers(self, rows: Sequence[Row], catalog: Catalog) -> dict[str, str]:
        """Names what is not simulated, and repeats more than 10 % from the median of their point.

        Args:
            rows: As read.
            catalog: Says what fits.

        Returns:
            The reason of each, by place.
        """
        reasons = {row.place: reason for row in rows if (reason := _refusal(row, catalog)) is not None}
        points: dict[tuple[Any, ...], list[Row]] = {}
        for row in rows:
            points.setdefault(tuple(row.given.values()), []).append(row)
        for repeats in points.values():
            for quantity in FITTED:
                middle = float(np.median([row.measured[quantity] for row in repeats]))
                for row in repeats:
                    if abs(apart := row.measured[quantity] / middle - 1) > APART:
                        reasons.setdefault(row.place, f"{quantity} is {apart:+.0%} from the median of its repeats")
        return reasons


class _Bench:
    """Rows of one model, GPU and parallelism, ready to be run with any factors."""

    def __init__(self, rows: Sequence[Row], catalog: Catalog) -> None:
        self.rows = rows
        first = rows[0]
        self.model, self.gpu = catalog.model(first.groups["model"]), catalog.gpu(first.groups["gpu"])
        self.tp = int(first.given["tp"])
        batch, prompt, self._output = (
            np.array([row.given[name] for row in rows], np.int64) for name in ("batch", "prompt", "output")
        )
        self._prompts, self._decodes = prompts(batch, prompt), decodes(batch, prompt + self._output // 2)

    def scale(self, time: float, compute: float) -> Scale:
        """These factors as a table of the catalogue."""
        told = f"splitwise-sim perf_model.csv (Patel et al., ISCA 2024), {len(self.rows)} rows; kernels launched singly"
        return Scale(
            model=self.model.name,
            gpu=self.gpu.name,
            tp=self.tp,
            time=round(time, 4),
            compute=round(compute, 4),
            source=told,
        )

    def run(self, scale: Scale) -> dict[str, NDArray[np.float64]]:
        """Simulated values of all rows, by quantity."""
        cost = iteration_cost(self.model, self.gpu, self.tp, int(self._prompts.tokens.max()), scale=scale)
        power = power_coefficients(self.model, self.gpu, self.tp, scale=scale)
        prompt, token = run(cost, power, self._prompts), run(cost, power, self._decodes)
        length_s = prompt.length_s + (self._output - 1) * token.length_s
        energy_j = prompt.energy_j + (self._output - 1) * token.energy_j
        return {
            "prompt_time": prompt.length_s * MS_PER_S,
            "token_time": token.length_s * MS_PER_S,
            "power": energy_j / length_s / power.cap_max_w,
        }

    def logs(self) -> NDArray[np.float64]:
        """log(measured / simulated) of both times at each of ``scalars.COMPUTE``."""
        measured = np.log([row.measured[quantity] for quantity in FITTED for row in self.rows])
        runs = (self.run(self.scale(1.0, compute)) for compute in scalars.COMPUTE.tolist())
        return np.array([measured - np.log(np.concatenate([found[name] for name in FITTED])) for found in runs])

    def weights(self) -> NDArray[np.float64]:
        """How much each row counts, so that repeats make one point together; a row drawn twice counts twice."""
        points = Counter(point for _, point in {(row.place, tuple(row.given.values())) for row in self.rows})
        return np.array([1 / points[tuple(row.given.values())] for row in self.rows])


def _by_slot(rows: Sequence[Row]) -> dict[Slot, list[int]]:
    slots: dict[Slot, list[int]] = {}
    for i, row in enumerate(rows):
        slots.setdefault((row.groups["model"], row.groups["gpu"], row.given["tp"]), []).append(i)
    return slots


def _refusal(row: Row, catalog: Catalog) -> str | None:
    """Why a row is not simulated."""
    if row.groups["gpu"].endswith(SYNTHETIC):
        return "synthetic: the prompt time of the uncapped GPU times 1.30, its token time unchanged"
    model, gpu = catalog.model(row.groups["model"]), catalog.gpu(row.groups["gpu"])
    try:
        capacity = kv_capacity_tokens(model, gpu, row.given["tp"], GPU_MEMORY_UTILIZATION)
    except InputError as refusal:
        return str(refusal)
    needed = row.given["batch"] * (row.given["prompt"] + row.given["output"])
    return f"its batch needs {needed} tokens of KV cache, {capacity} fit" if needed > capacity else None


def _read(path: Path) -> list[Row]:
    needed = ("model", "hardware", *WHOLE, *MEASURED)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [name for name in needed if name not in (reader.fieldnames or ())]
            if missing:
                raise InputError(str(path), f"lacks the column {missing[0]}", f"Give a file with {', '.join(needed)}")
            rows = [_row(f"{path}:{reader.line_num}", line) for line in reader]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(str(path), f"cannot be read ({error})", "Give splitwise-sim's perf_model.csv") from error
    if not rows:
        raise InputError(str(path), "has no row", "Give splitwise-sim's perf_model.csv")
    return rows


def _row(place: str, line: Mapping[str, str | None]) -> Row:
    tp, prompt, batch, output = (int(_number(place, name, line[name], at_least=1, whole=True)) for name in WHOLE)
    measured = {quantity: _number(place, name, line[name]) for name, quantity in MEASURED.items()}
    for quantity in FITTED:
        if measured[quantity] == 0:
            raise InputError(f"{place}: {quantity}", "is 0", "Give a time above 0, or leave the row out")
    if measured["power"] == 0:
        del measured["power"]
    model, gpu = (NAMES.get(text, text) for text in (line["model"] or "", line["hardware"] or ""))
    return Row(
        place=place,
        configuration=f"{model}/{gpu}/tp{tp}/prompt{prompt}",
        measured=measured,
        groups={"gpu": gpu, "model": model, "tp": str(tp)},
        given={"model": model, "gpu": gpu, "tp": tp, "batch": batch, "prompt": prompt, "output": output},
    )


def _number(place: str, name: str, text: str | None, at_least: float = 0, whole: bool = False) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= at_least) or (whole and value != int(value)):
        kind = "a whole number" if whole else "a number"
        raise InputError(f"{place}: {name}", f"is {text!r}", f"Give {kind} of at least {at_least}")
    return value
