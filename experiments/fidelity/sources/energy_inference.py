"""Energy and runtime over input × output tokens, for the regression of offline energy-optimal serving."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ....agents.offline_optimal.models import determined, regress, regressors
from ....simulator.catalog import Catalog
from ....simulator.catalog.energy_inference import BUILTIN, Deployment, load
from ....simulator.errors import InputError
from ..csv_rows import Line, read_lines
from ..errors import Comparison
from ..figures import flat
from ..skipped import Skipped
from ..source import Advance, Fitted, Outcome, Row

MEASURED = {"energy": "gpu_energy_j_sum", "runtime": "runtime_s"}
COLUMNS = ("model", "n_gpus", "input_tokens", "max_new_tokens", *MEASURED.values())
PAPER = "_paper"
GPU = "A100-40GB"
RESAMPLES = 500


class EnergyInference:
    """Published regressions against the measurements that they were made for; the simulator has no part in it.

    Args:
        figures: File of fitted forms; the shipped one by default.
    """

    name = "energy-inference"
    title = (
        "energy and runtime of single queries on A100-40GB, Hugging Face Transformers without KV cache "
        "(grantwilkins/energy-inference, data of Offline Energy-Optimal LLM Serving)"
    )
    quantities: Mapping[str, str] = {
        "energy": "J",
        "runtime": "s",
        f"energy{PAPER}": "J",
        f"runtime{PAPER}": "s",
    }
    assumed: Sequence[str] = (
        "energy and runtime follow a·in + b·out + c·in·out + d·out², and without d·out² where the quantity ends in "
        f"{PAPER}, as published",
        "both are fitted by least squares to joules and seconds, as published: long queries weigh most, so that the "
        "relative error of short ones is large",
        "out is max_new_tokens, what was asked for; 45 of the 602 published queries ended a few tokens early",
        "a configuration is a model on its GPUs at one input length, over which output lengths were swept",
        f"the file names no GPU; it was {GPU}",
    )

    def __init__(self, figures: Path = BUILTIN) -> None:
        self._deployments = load(figures)

    def with_figures(self, path: Path) -> EnergyInference:
        """This source with the fitted forms of another file."""
        return EnergyInference(path)

    def read(self, files: Sequence[Path], catalog: Catalog) -> list[Row]:
        """Reads files with the columns of ``grid.csv``."""
        return [_row(line) for path in files for line in read_lines(path, COLUMNS)]

    def simulate(self, rows: Sequence[Row], catalog: Catalog, seed: int, advance: Advance) -> list[Outcome]:
        """Evaluates the fitted forms; a model that none was fitted to is skipped."""
        outcomes = [_predict(row, self._deployments) for row in rows]
        advance(len(rows))
        return outcomes

    def fit(self, rows: Sequence[Row], catalog: Catalog, rng: np.random.Generator, advance: Advance) -> Fitted:
        """Fits both forms to each model; one whose rows do not determine them is left out."""
        tables = _fit(rows)
        if not tables:
            problem = f"{len(rows)} rows do not determine four coefficients of any model"
            raise InputError(self.name, problem, "Give rows of several input and output lengths")
        deployments = {name: Deployment.model_validate(table) for name, table in tables.items()}
        compared = Comparison.of(rows, [_predict(row, deployments) for row in rows], self.quantities)
        residuals = {q: errors.tolist() for q, errors in compared.error.items()}
        advance(len(rows))
        return Fitted({"deployments": tables}, _intervals(rows, rng), residuals)


def _row(line: Line) -> Row:
    counts = {name: line.positive(name) for name in ("n_gpus", "input_tokens", "max_new_tokens")}
    for name, value in counts.items():
        if value != int(value):
            raise InputError(line.place, f"{name} is {value:g}", "It must be a whole number: correct the line")
    model, gpus = line.text("model"), int(counts["n_gpus"])
    measured = {q: line.positive(column) for q, column in MEASURED.items()}
    deployment = f"{model} on {gpus}"
    return Row(
        line.place,
        f"{deployment} x {GPU}, {int(counts['input_tokens'])} input tokens",
        measured | {f"{q}{PAPER}": value for q, value in measured.items()},
        {"gpu": GPU, "model": model},
        {"deployment": deployment, "input": counts["input_tokens"], "output": counts["max_new_tokens"]},
    )


def _predict(row: Row, deployments: Mapping[str, Deployment]) -> Outcome:
    if (deployment := deployments.get(name := row.given["deployment"])) is None:
        return Skipped(f"no form is fitted to {name}", "Fit one with `llmcluster calibrate`, for --catalog FILE")
    tokens = (row.given["input"], row.given["output"])
    return {
        "energy": deployment.energy(*tokens),
        "runtime": deployment.runtime(*tokens),
        f"energy{PAPER}": deployment.energy_paper(*tokens),
        f"runtime{PAPER}": deployment.runtime_paper(*tokens),
    }


def _fit(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, float]]]:
    """Both forms of both quantities, by deployment."""
    deployments: dict[str, list[Row]] = {}
    for row in rows:
        deployments.setdefault(row.given["deployment"], []).append(row)
    tables = {}
    for name, own in sorted(deployments.items()):
        tokens_in, tokens_out = (np.array([row.given[side] for row in own]) for side in ("input", "output"))
        terms = regressors(tokens_in, tokens_out)
        if determined(terms):
            tables[name] = {
                f"{q}{suffix}": regress(terms[:, :count], np.array([row.measured[q] for row in own])).model_dump(
                    exclude_defaults=True
                )
                for q in MEASURED
                for suffix, count in (("", 4), (PAPER, 3))
            }
    return tables


def _intervals(rows: Sequence[Row], rng: np.random.Generator) -> dict[str, tuple[float, float]]:
    """Percentile intervals over configurations, drawn within each deployment."""
    members: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        members.setdefault(row.given["deployment"], {}).setdefault(row.configuration, []).append(row)
    found: dict[str, list[float]] = {}
    for _ in range(RESAMPLES):
        drawn: list[Row] = []
        for configurations in members.values():
            names = list(configurations)
            drawn += [row for i in rng.integers(len(names), size=len(names)) for row in configurations[names[i]]]
        for name, value in flat({"deployments": _fit(drawn)}).items():
            found.setdefault(name, []).append(value)
    return {
        name: (float(np.quantile(values, 0.025)), float(np.quantile(values, 0.975))) for name, values in found.items()
    }
