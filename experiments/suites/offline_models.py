"""Models and queries of the case study: measured where the data are at hand, else as shipped with the package."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...agents.offline_optimal.models import Fitted, WorkloadModel, regress, regressors
from ...agents.offline_optimal.simulated import sweep
from ...simulator.catalog import Catalog
from ...simulator.catalog.energy_inference import Regression, load
from ...simulator.topology import EngineSpec, ServerSpec
from ...simulator.workload.fitted import load_fit
from ...simulator.workload.formats import read_workload
from ..fidelity.source import Row
from ..fidelity.sources.energy_inference import EnergyInference

F64 = NDArray[np.float64]
Tokens = NDArray[np.integer[Any]]

GRID = Path("energy_inference/grid.csv")
AZURE = Path("azure_llm_2023/AzureLLMInferenceTrace_conv.csv")
MEASURED = ("energy", "runtime")
FORMS = {"paper": 3, "with out²": 4}
SHORTEST_TOKENS = 8
"""Shortest prompts and outputs of the measured grid."""
RESAMPLES = 200


@dataclass(frozen=True)
class Member:
    """A model of the case study.

    Attributes:
        deployment: Model and number of GPUs, as the measurements name them.
        accuracy: Mean of its scores on the Open LLM Leaderboard.
        gamma: Share of the system.
    """

    deployment: str
    accuracy: float
    gamma: float


CASE_STUDY = (
    Member("Llama-2-7b-chat-hf on 1", 0.5097, 0.05),
    Member("Llama-2-13b-chat-hf on 1", 0.5569, 0.20),
    Member("Llama-2-70b-chat-hf on 4", 0.6452, 0.75),
)
"""Models, scores and shares of the authors' case study (grantwilkins/energy-inference, plots/routing)."""

SIMULATED: Mapping[str, ServerSpec] = {
    name: ServerSpec(gpu="A100-80GB", gpus=tp, tp=tp, model=name)
    for name, tp in {
        "Llama-2-7B": 1,
        "Llama-2-13B": 1,
        "Llama-2-70B": 4,
        "Mistral-7B": 1,
        "Mixtral-8x7B": 2,
        "Falcon-7B": 1,
        "Falcon-40B": 2,
    }.items()
}
"""The seven models of the paper in the simulator, on as few GPUs as hold them."""


def data_folder(data: Path | None) -> Path | None:
    """The folder of measured data: the one given, or that of the environment; ``None`` without either."""
    if data is not None:
        return data
    named = os.environ.get("LLMCLUSTER_DATA")
    return Path(named) if named else None


def there(data: Path | None, file: Path) -> Path | None:
    """A file of the measured data, if it is at hand."""
    return data / file if data is not None and (data / file).is_file() else None


def read_grid(data: Path | None) -> list[Row]:
    """The measured queries; none without the data."""
    path = there(data, GRID)
    return [] if path is None else EnergyInference().read([path], Catalog.builtin())


def by_deployment(rows: Sequence[Row]) -> dict[str, tuple[F64, dict[str, F64]]]:
    """Regressors (n, 4) and measurements of each model on its GPUs."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.given["deployment"], []).append(row)
    return {
        name: (
            regressors([row.given["input"] for row in own], [row.given["output"] for row in own]),
            {q: np.array([row.measured[q] for row in own]) for q in MEASURED},
        )
        for name, own in sorted(found.items())
    }


def case_models(rows: Sequence[Row]) -> list[WorkloadModel]:
    """Models of the case study, with out²: fitted to the measured queries, or as shipped. Nobody measured the CPUs."""
    if rows:
        tables = by_deployment(rows)
        fits = [(name, *tables[name]) for name in (member.deployment for member in CASE_STUDY)]
        return [
            WorkloadModel(name, Fitted.to(terms, taken["energy"]), None, Fitted.to(terms, taken["runtime"]))
            for name, terms, taken in fits
        ]
    shipped = load()
    return [
        WorkloadModel(name, _shipped(shipped[name].energy), None, _shipped(shipped[name].runtime))
        for name in (member.deployment for member in CASE_STUDY)
    ]


def _shipped(form: Regression) -> Fitted:
    return Fitted(form, max(form(SHORTEST_TOKENS, SHORTEST_TOKENS), 0.0))


def r2_rows(rows: Sequence[Row]) -> list[dict[str, str | float]]:
    """R² of both forms for every measured model, or those of the shipped fits."""
    table: list[dict[str, str | float]] = []
    if not rows:
        for name, deployment in load().items():
            row: dict[str, str | float] = {"model": name}
            for q in MEASURED:
                for form, suffix in zip(FORMS, ("_paper", ""), strict=True):
                    _note(row, q, form, getattr(deployment, f"{q}{suffix}"))
            table.append(row)
        return table
    for name, (terms, taken) in by_deployment(rows).items():
        row = {"model": name}
        for q in MEASURED:
            for form, count in FORMS.items():
                _note(row, q, form, regress(terms[:, :count], taken[q]))
        table.append(row)
    return table


def simulated_r2_rows() -> list[dict[str, str | float]]:
    """R² of both forms for the same models on the simulator, one query at a time, GPUs and CPUs."""
    table: list[dict[str, str | float]] = []
    for name, slot in SIMULATED.items():
        taken = sweep(slot, EngineSpec(), in_flight=1)
        row: dict[str, str | float] = {"model": f"{name} on {slot.gpus} x {slot.gpu}"}
        energy = taken.gpu_energy_j + taken.cpu_energy_j
        for q, values in (("energy", energy), ("runtime", taken.runtime_s)):
            for form, count in FORMS.items():
                _note(row, q, form, regress(taken.terms[:, :count], values))
        table.append(row)
    return table


def _note(row: dict[str, str | float], quantity: str, form: str, fitted: Regression) -> None:
    row[f"{quantity}, {form}, uncentred"] = fitted.r2_uncentred
    row[f"{quantity}, {form}, centred"] = fitted.r2_centred


def resampled_r2(rows: Sequence[Row], quantity: str, form: str, rng: np.random.Generator) -> F64:
    """Uncentred R² of the worst model in resamples of the queries within each model (RESAMPLES,)."""
    worst = np.ones(RESAMPLES)
    for terms, taken in by_deployment(rows).values():
        for i in range(RESAMPLES):
            drawn = rng.integers(len(terms), size=len(terms))
            fitted = regress(terms[drawn][:, : FORMS[form]], taken[quantity][drawn])
            worst[i] = min(worst[i], fitted.r2_uncentred)
    return worst


def queries(data: Path | None, count: int, learnt: int, rng: np.random.Generator) -> tuple[Tokens, Tokens, str]:
    """Prompt and output tokens of ``learnt`` past queries and then ``count`` to be assigned, and their source."""
    path, wanted = there(data, AZURE), learnt + count
    if path is not None:
        table = read_workload(path)
        if len(table) >= wanted:
            return table.prompt_tokens[:wanted], table.output_tokens[:wanted], "Azure 2023 conversation trace"
    prompt, output = load_fit("azure-2023-conv")[1].sample(wanted, rng)
    return prompt, np.maximum(output, 1), "the model fitted to the Azure 2023 conversation trace"
