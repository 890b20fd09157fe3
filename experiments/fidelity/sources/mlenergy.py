"""Runs of the ML.ENERGY leaderboard: vLLM with its batch kept full, on H100 and B200."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np

from ....simulator.catalog import Catalog, Cut, ModelSpec
from ....simulator.errors import InputError
from ....simulator.parallelism import check_ep
from ....simulator.performance import iteration_cost, kv_capacity_tokens
from ....simulator.power import power_coefficients
from ..batches import governed
from ..compositions import Compositions, Run, check, compositions_of
from ..csv_rows import Line, read_lines
from ..demand import Served
from ..names import gpu_called
from ..prediction import steady_power_w, summarise
from ..skipped import Skipped, missing
from ..source import Advance, Fitted, Outcome, Row
from .mlenergy_fit import RESAMPLES, fit, stalled
from .mlenergy_tasks import MAX_BATCHED_TOKENS, TASKS, Task, lengths, requests_sent, task_named

MEASURED = {
    "itl": "median_itl_ms",
    "itl_p90": "p90_itl_ms",
    "itl_p99": "p99_itl_ms",
    "power": "avg_power_watts",
    "energy_per_token": "energy_per_token_joules",
    "throughput": "output_throughput",
    "batch": "avg_batch_size",
}
GIVEN_TEXT = ("model", "task", "architecture", "weight_precision", "gpu_model")
GIVEN_WHOLE = ("num_gpus", "tp", "ep", "dp", "max_num_seqs")
GIVEN_REAL = ("params_b", "activated_params_b", "avg_output_len")
WEIGHT_BYTES = {"bfloat16": 2.0, "float16": 2.0, "fp8": 1.0, "mxfp4": 17 / 32}
FOLDER = "LLMCLUSTER_COMPOSITIONS"
"""Environment variable that names a folder for what the scheduler does in each run."""
FIT_SEED = 0
STALLS, FLOWS = "stalls", "without stalls"
SEVERAL = Skipped(
    "dp is above 1: several engines, of which the data do not tell how they share the requests",
    "Leave it out, or give a row of one engine",
)
SETUP = ("model", "task", "weight_precision", "gpu_model", "num_gpus", "tp", "ep", "dp")


class MlEnergy:
    """See the module.

    Args:
        folder: Where to keep what the scheduler does in each run, which takes a second to find and depends on no fitted
            figure; by default where the environment variable LLMCLUSTER_COMPOSITIONS says, else in memory alone.
        tasks: What is assumed of each task.
        once: The requests of a data set are sent once, however large the batch.
    """

    name = "mlenergy"
    title = "vLLM 0.11.1 with a full batch on H100 and B200 (ML.ENERGY leaderboard v3, 2026-02)"
    quantities: Mapping[str, str] = {
        "itl": "ms",
        "itl_p90": "ms",
        "itl_p99": "ms",
        "power": "W",
        "energy_per_token": "J",
        "throughput": "tokens/s",
        "batch": "requests",
    }
    assumed: Sequence[str] = (
        "all requests are sent at once, as mlenergy/llm/benchmark.py does: latencies are over the whole run with "
        "ramp-up and drain; power, energy, throughput and batch from the moment that as many requests have started as "
        "run at once to that at which no more than these and one are left",
        "1,024 requests (GPQA: 198), repeated as often as fits the batch and the denominator of avg_output_len",
        "max_num_batched_tokens 8192, max_model_len 20480, gpu_memory_utilization 0.9; the prefix cache (models with "
        "Mamba layers have none) finds prompts that are sent again, and nothing else",
        "tp = 1 with ep = N is attention tensor-parallel over N GPUs and experts spread whole",
        *(
            f"{name}: prompts of {task.prompt_mean:.0f} tokens on the average, standard deviation "
            f"{task.prompt_spread:g} of that; outputs around avg_output_len, standard deviation "
            f"{task.output_spread:g} of it, {task.output_most} at most; both lognormal"
            for name, task in TASKS.items()
        ),
        "any other task has prompts and spreads as lm-arena-chat",
        "a model that the catalogue lacks has the dimensions usual for its params_b and activated_params_b",
    )

    def __init__(self, folder: Path | None = None, tasks: Mapping[str, Task] = TASKS, once: bool = False) -> None:
        named = os.environ.get(FOLDER)
        self._folder = folder or (Path(named) if named else None)
        self._tasks, self._once = tasks, once
        self._works: dict[str, Compositions] = {}
        self._resamples = RESAMPLES

    def read(self, files: Sequence[Path], catalog: Catalog) -> list[Row]:
        """Reads files with the columns of ``vllm_steady_state.csv``; measured cells may be empty.

        The group ``server`` says where client or server stalls, by :func:`~.mlenergy_fit.stalled`; such configurations
        are simulated like all others, and compared with and without.
        """
        columns = (*GIVEN_TEXT, *GIVEN_WHOLE, *GIVEN_REAL, *MEASURED.values())
        rows = [_row(line, catalog) for path in files for line in read_lines(path, columns)]
        silent = stalled(rows)
        return [replace(r, groups={**r.groups, "server": STALLS if r.configuration in silent else FLOWS}) for r in rows]

    def simulate(self, rows: Sequence[Row], catalog: Catalog, seed: int, advance: Advance) -> list[Outcome]:
        """Simulates every row; skips it where the model does not fit, or more than one engine serves it."""
        outcomes: list[Outcome] = []
        for row in rows:
            outcomes.append(self._simulate(row, catalog, seed))
            advance(len(outcomes))
        return outcomes

    def fit(self, rows: Sequence[Row], catalog: Catalog, rng: np.random.Generator, advance: Advance) -> Fitted:
        """Fits times and power of the GPUs, and a factor of power for each model, GPU and parallelism."""
        return fit(rows, self.served(rows, catalog), rng, advance, self._resamples)

    def served(self, rows: Sequence[Row], catalog: Catalog) -> list[Served | None]:
        """The run of each row as it is fitted to; none where it cannot be simulated, or not all of it was measured."""
        full = (row.measured.keys() >= MEASURED.keys() for row in rows)
        served = (
            self._serve(row, catalog, FIT_SEED) if all_there else None
            for row, all_there in zip(rows, full, strict=True)
        )
        return [None if isinstance(one, Skipped) else one for one in served]

    def without_intervals(self) -> Self:
        """The same, whose fits are quicker because they have no intervals."""
        other = copy(self)
        other._resamples = 0
        return other

    def run_of(self, row: Row, kv_tokens: int, seed: int, caches: bool = True) -> Run:
        """The requests of a row and the engine's limits; ``caches`` tells whether it has a prefix cache."""
        mean, places = row.given["avg_output_len"], row.given["max_num_seqs"]
        task = task_named(row.given["task"], mean, self._tasks)
        number = task.requests if self._once else requests_sent(task, mean, places)
        prompt, output = lengths(task, mean, number, np.random.default_rng(seed))
        repeats = number // task.requests if caches else 1
        return Run(prompt.tolist(), output.tolist(), places, kv_tokens, MAX_BATCHED_TOKENS, repeats)

    def _serve(self, row: Row, catalog: Catalog, seed: int) -> Served | Skipped:
        """The run of a row, or why it cannot be simulated."""
        tp, ep = row.given["num_gpus"], row.given["ep"] > 1
        if row.given["dp"] > 1:
            return SEVERAL
        if (precision := row.given["weight_precision"]) not in WEIGHT_BYTES:
            return Skipped(f"weight_precision {precision!r} is unknown", f"Known are {', '.join(WEIGHT_BYTES)}")
        if (lacks := missing(catalog, gpu=row.groups["gpu"])) is not None:
            return lacks
        gpu, model = catalog.gpu(row.groups["gpu"]), _model(row, catalog)
        try:
            if ep:
                check_ep(model, tp)
            run = self.run_of(row, kv_capacity_tokens(model, gpu, tp), seed, model.mamba is None)
            check(run)
        except InputError as fault:
            return Skipped.of(fault)
        if run.key not in self._works:
            self._works[run.key] = compositions_of(run, self._folder)
        return Served(self._works[run.key], model, gpu, tp, ep)

    def _simulate(self, row: Row, catalog: Catalog, seed: int) -> Outcome:
        if isinstance(served := self._serve(row, catalog, seed), Skipped):
            return served
        work, model, gpu, tp, ep = served.work, served.model, served.gpu, served.tp, served.ep
        scale = catalog.scale(model.name, gpu.name, tp, 1, ep)
        cost = iteration_cost(model, gpu, tp, MAX_BATCHED_TOKENS, 1, ep, scale)
        ran = governed(cost, power_coefficients(model, gpu, tp, 1, scale), work.batches)
        seen = summarise(work, ran.times)
        mean_w = steady_power_w(work, ran)
        return {
            "itl": seen.itl_ms,
            "itl_p90": seen.itl_p90_ms,
            "itl_p99": seen.itl_p99_ms,
            "power": mean_w,
            "energy_per_token": mean_w / seen.throughput,
            "throughput": seen.throughput,
            "batch": seen.batch,
        }


def _row(line: Line, known: Catalog) -> Row:
    texts = {name: line.text(name) for name in GIVEN_TEXT}
    wholes = {name: line.whole(name) for name in GIVEN_WHOLE}
    reals = {name: line.positive(name) for name in GIVEN_REAL}
    given: dict[str, str | int | float] = {**texts, **wholes, **reals}
    if wholes["num_gpus"] % max(wholes["tp"], wholes["ep"]):
        problem = f"{wholes['num_gpus']} GPUs do not hold tp {wholes['tp']} and ep {wholes['ep']}"
        raise InputError(line.place, problem, "Correct the line: the larger of the two must divide num_gpus")
    model = _known(known, texts["model"])
    precision = texts["weight_precision"]
    own = _in_precision(model, precision).name if model and precision in WEIGHT_BYTES else ""
    gpu = gpu_called(known, texts["gpu_model"])
    groups = {
        "gpu": gpu,
        "model": model.name if model else texts["model"],
        "task": texts["task"],
        "architecture": texts["architecture"],
        "calibrated": "yes" if _cut(own, gpu, wholes) in known.scales else "no",
    }
    measured = {quantity: line.positive(column) for quantity, column in MEASURED.items() if line.cells[column]}
    return Row(line.place, "|".join(str(given[name]) for name in SETUP), measured, groups, given)


def _cut(model: str, gpu: str, wholes: Mapping[str, int]) -> Cut:
    return Cut(model, gpu, wholes["num_gpus"], 1, wholes["ep"] > 1)


def _known(catalog: Catalog, name: str) -> ModelSpec | None:
    try:
        return catalog.model(name)
    except InputError:
        return None


def _model(row: Row, catalog: Catalog) -> ModelSpec:
    """The model of a row; one of usual dimensions where the catalogue lacks it."""
    given = row.given
    if (known := _known(catalog, given["model"])) is not None:
        return _in_precision(known, given["weight_precision"])
    parameters, active = (round(given[name] * 1e9) for name in ("params_b", "activated_params_b"))
    return ModelSpec.generic(given["model"], parameters, active, WEIGHT_BYTES[given["weight_precision"]])


def _in_precision(model: ModelSpec, precision: str) -> ModelSpec:
    """A model of the catalogue; under another name, for which nothing was fitted, where its weights are narrower."""
    mixed = model.expert_dtype_bytes is not None or model.mlp_dtype_bytes is not None
    if mixed or WEIGHT_BYTES[precision] >= model.dtype_bytes:
        return model
    return model.model_copy(update={"name": f"{model.name} in {precision}", "dtype_bytes": WEIGHT_BYTES[precision]})
