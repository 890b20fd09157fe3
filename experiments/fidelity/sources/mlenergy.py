"""Runs of the ML.ENERGY leaderboard: vLLM with its batch kept full, on H100 and B200."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ....simulator.catalog import Catalog, ModelSpec
from ....simulator.errors import InputError
from ....simulator.performance import iteration_cost, kv_capacity_tokens
from ....simulator.power import power_coefficients
from ..compositions import Run, compositions_of
from ..csv_rows import Line, read_lines
from ..prediction import Cost, governed, mean_power_w, summarise
from ..source import Advance, Row, Simulated
from .mlenergy_tasks import MAX_BATCHED_TOKENS, TASKS, Task, lengths, requests_sent

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
GPUS = {"H100": "H100-80GB"}
SETUP = ("model", "task", "weight_precision", "gpu_model", "num_gpus", "tp", "ep", "dp")


class MlEnergy:
    """See the module.

    Args:
        folder: Where to keep what the scheduler does in each run, which takes a second to find and depends on no fitted
            figure; nowhere by default.
        tasks: What is assumed of each task.
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
        "max_num_batched_tokens 8192, max_model_len 20480, gpu_memory_utilization 0.9; prefix caching finds nothing",
        "tp = 1 with ep = N is attention tensor-parallel over N GPUs and experts spread whole",
        *(
            f"{name}: prompts of {task.prompt_mean:.0f} tokens on the average, standard deviation "
            f"{task.prompt_spread:g} of that; outputs around avg_output_len, standard deviation "
            f"{task.output_spread:g} of it, {task.output_most} at most; both lognormal"
            for name, task in TASKS.items()
        ),
    )

    def __init__(self, folder: Path | None = None, tasks: Mapping[str, Task] = TASKS) -> None:
        self._folder, self._tasks = folder, tasks

    def read(self, files: Sequence[Path]) -> list[Row]:
        """Reads files with the columns of ``vllm_steady_state.csv``."""
        columns = (*GIVEN_TEXT, *GIVEN_WHOLE, *GIVEN_REAL, *MEASURED.values())
        known = Catalog.builtin()
        return [_row(line, known) for path in files for line in read_lines(path, columns)]

    def simulate(self, rows: Sequence[Row], catalog: Catalog, seed: int, advance: Advance) -> list[Simulated]:
        """Simulates every row; none where the model is unknown or does not fit."""
        simulated: list[Simulated] = []
        for row in rows:
            simulated.append(self._simulate(row, catalog, seed))
            advance(len(simulated))
        return simulated

    def run_of(self, row: Row, kv_tokens: int, seed: int) -> Run:
        """The requests of a row and the engine's limits."""
        return _run(row, self._task(row), kv_tokens, seed)

    def _task(self, row: Row) -> Task:
        name = row.given["task"]
        if name not in self._tasks:
            problem = f"nothing is known of the prompts of task {name!r}"
            raise InputError(row.place, problem, f"Remove the line, or use one of {', '.join(self._tasks)}")
        return self._tasks[name]

    def _simulate(self, row: Row, catalog: Catalog, seed: int) -> Simulated:
        task, model = self._task(row), _known(catalog, row.given["model"])
        if model is None or row.given["dp"] > 1:
            return {}
        gpu, tp, ep = catalog.gpu(row.groups["gpu"]), row.given["num_gpus"], row.given["ep"] > 1
        scale = catalog.scale(model.name, gpu.name, tp, 1, ep)
        try:
            kv_tokens = kv_capacity_tokens(model, gpu, tp)
            cost = Cost.of(iteration_cost(model, gpu, tp, MAX_BATCHED_TOKENS, 1, ep, scale))
            power = power_coefficients(model, gpu, tp, 1, scale)
        except InputError:
            return {}
        work = compositions_of(_run(row, task, kv_tokens, seed), self._folder)
        times, watts = governed(work, cost, power)
        seen = summarise(work, times)
        mean_w = mean_power_w(work, times, watts)
        return {
            "itl": seen.itl_ms,
            "itl_p90": seen.itl_p90_ms,
            "itl_p99": seen.itl_p99_ms,
            "power": mean_w,
            "energy_per_token": mean_w / seen.throughput,
            "throughput": seen.throughput,
            "batch": seen.batch,
        }


def _run(row: Row, task: Task, kv_tokens: int, seed: int) -> Run:
    mean, places = row.given["avg_output_len"], row.given["max_num_seqs"]
    number = requests_sent(task, mean, places)
    prompt, output = lengths(task, mean, number, np.random.default_rng(seed))
    return Run(prompt.tolist(), output.tolist(), places, kv_tokens, MAX_BATCHED_TOKENS)


def _row(line: Line, known: Catalog) -> Row:
    texts = {name: line.text(name) for name in GIVEN_TEXT}
    wholes = {name: _whole(line, name) for name in GIVEN_WHOLE}
    reals = {name: line.positive(name) for name in GIVEN_REAL}
    given: dict[str, str | int | float] = {**texts, **wholes, **reals}
    if wholes["num_gpus"] % max(wholes["tp"], wholes["ep"]):
        problem = f"{wholes['num_gpus']} GPUs do not hold tp {wholes['tp']} and ep {wholes['ep']}"
        raise InputError(line.place, problem, "Correct the line: the larger of the two must divide num_gpus")
    model = _known(known, texts["model"])
    groups = {
        "gpu": GPUS.get(texts["gpu_model"], texts["gpu_model"]),
        "model": model.name if model else texts["model"],
        "task": texts["task"],
        "architecture": texts["architecture"],
        "calibrated": "yes" if model else "no",
    }
    measured = {quantity: line.positive(column) for quantity, column in MEASURED.items()}
    return Row(line.place, "|".join(str(given[name]) for name in SETUP), measured, groups, given)


def _whole(line: Line, column: str) -> int:
    value = line.positive(column)
    if value != int(value):
        raise InputError(line.place, f"{column} is {value:g}", "It must be a whole number: correct the line")
    return int(value)


def _known(catalog: Catalog, name: str) -> ModelSpec | None:
    try:
        return catalog.model(name)
    except InputError:
        return None
