"""Offline energy-optimal serving tried here: its models, its front, its optimiser, and what it is worth online."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from ...agents.offline_optimal.assignment import Assignment, Shares, assign
from ...envs.scenario import load_scenario
from ..evaluate import evaluate
from ..results import Evaluation
from ..statistics import mean_interval
from .offline_claims import column, front_claims, online_claims, optimiser_claims, r2_claim
from .offline_front import Batch, Outcome, offline, online, plain
from .offline_models import (
    CASE_STUDY,
    FORMS,
    MEASURED,
    case_models,
    data_folder,
    queries,
    r2_rows,
    read_grid,
    simulated_r2_rows,
)
from .suite import Plot, SuiteResult

F64 = NDArray[np.float64]

TITLE = "Offline energy-optimal LLM serving (Wilkins, Keshav and Mortier 2024, arXiv 2407.04014)"
QUERIES, LEARNT = 10_000, 5_000
ZETAS = tuple(float(z) for z in np.linspace(0, 1, 11))
LEAST_OF_GAMMA = 0.25
"""The authors' code asks of each model at least this much of its share γ."""
TIME_SHARES = np.array([0.05, 0.05, 0.75])
"""Shares of the busy time, of all queries on the largest model, for the hard case of the optimiser."""
FRONT = "Energy and accuracy"
FRONT_PLOT = Plot("Accuracy of 10,000 queries by their energy", FRONT, "energy kWh", ("accuracy",), by="policy")
SCENARIO = "mixed-fleet"
ONLINE, OTHERS = "offline-optimal", ("least-outstanding", "round-robin", "greedy-energy")
FIGURES = {
    "J per token": "energy_per_output_token_j",
    "within SLO": "slo_attainment",
    "goodput tokens/s": "goodput_tokens_per_s",
}


def run(episodes: int, seed: int, progress: Progress, data: Path | None = None) -> SuiteResult:
    """Tries the paper's claims.

    Args:
        episodes: Held-out episodes of the simulator.
        seed: Seed of all that is drawn.
        progress: Shows how far it is.
        data: Folder of the measured data; that of the environment variable LLMCLUSTER_DATA by default. Without either,
            the fits and traffic models shipped with the package stand in.

    Returns:
        Claims and tables.
    """
    bar = progress.add_task("offline-optimal: models", total=4)
    rng = np.random.default_rng([seed, 2407])
    folder = data_folder(data)
    rows = read_grid(folder)
    table = r2_rows(rows)
    claims = [r2_claim(rows, table, q, form, rng) for q in MEASURED for form in FORMS]
    simulated = simulated_r2_rows()
    progress.update(bar, advance=1, description="offline-optimal: front")
    models = case_models(rows)
    scores, gamma = (np.array([getattr(m, name) for m in CASE_STUDY]) for name in ("accuracy", "gamma"))
    prompt, output, traffic = queries(folder, QUERIES, LEARNT, rng)
    past = Batch.of(models, scores, prompt[:LEARNT], output[:LEARNT])
    batch = Batch.of(models, scores, prompt[LEARNT:], output[LEARNT:])
    names = [member.deployment.split("-chat")[0] for member in CASE_STUDY]
    loose, strict = (Shares.of(gamma, QUERIES, *ends) for ends in ((LEAST_OF_GAMMA, np.inf), (1.0, 1.0)))
    solved: list[Assignment] = []
    front: list[Outcome] = []
    for zeta in ZETAS:
        for policy, shares in (("offline", loose), ("offline, shares γ", strict)):
            solved.append(offline(batch, zeta, shares))
            front.append(Outcome.of(batch, solved[-1].served, policy, zeta))
        served = online(past, batch, models, scores, zeta, loose)
        front.append(Outcome.of(batch, served, "online, predicted lengths", zeta))
    rivals = plain(batch, names, gamma, rng)
    claims += front_claims(batch, gamma, loose, strict, rivals, rng)
    progress.update(bar, advance=1, description="offline-optimal: integer programs")
    high = TIME_SHARES * float(batch.runtime_s[:, -1].sum())
    timed = assign(batch.cost(0.5), np.ones(QUERIES), Shares(np.zeros(len(high)), high), batch.runtime_s)
    claims += optimiser_claims(solved, timed)
    progress.update(bar, advance=1, description="offline-optimal: simulator")
    found, notes = evaluate(load_scenario(SCENARIO), (ONLINE, *OTHERS), episodes, seed, progress)
    claims += online_claims(found, ONLINE, OTHERS[:2], rng)
    progress.advance(bar)
    source = (
        "measured queries (energy_inference/grid.csv)" if rows else "fits to measured queries shipped here, no data"
    )
    return SuiteResult(
        "offline-optimal",
        TITLE,
        tuple(claims),
        {
            f"R² of {source}": tuple(table),
            "R² of the simulator, one query at a time, GPUs and CPUs": tuple(simulated),
            FRONT: tuple(front_row(one, names) for one in (*front, *rivals)),
            "Optimiser": (
                *(_solver_row(f"queries counted, {i}", s) for i, s in enumerate(solved)),
                _solver_row("time", timed),
            ),
            f"{SCENARIO}, {episodes} episodes": tuple(_agent_rows(found, notes, rng)),
        },
        (
            f"queries: {QUERIES} of {traffic}, the {LEARNT} before them as the past; the paper takes Alpaca",
            f"models of the case study are {source}; prompts beyond 2,048 tokens extrapolate them",
            "the measurements have no CPU energy, so that the front is of GPUs alone; in the simulator it is known",
            "scores and shares γ are those of the authors' code, which asks of each model at least γ/4 of the queries; "
            "so does `offline` here, while `offline, shares γ` gives each model exactly γ of them",
            "energy models of the front have out², since the paper's form gives long prompts with short answers less "
            "than nothing",
            f"in {SCENARIO} every request names its model, so that ζ is 1 there",
        ),
        (FRONT_PLOT,),
    )


def front_row(one: Outcome, names: Sequence[str]) -> dict[str, str | float]:
    """What an outcome is in the table, with the share of the queries that each model serves."""
    row: dict[str, str | float] = {
        "policy": one.policy,
        "ζ": "" if np.isnan(one.zeta) else round(one.zeta, 2),
        "energy kWh": one.energy_kwh,
        "accuracy": one.accuracy,
        "mean runtime s": one.runtime_s,
    }
    return row | {f"to {name}": share for name, share in zip(names, one.shares, strict=True)}


def _solver_row(what: str, one: Assignment) -> dict[str, str | float]:
    row: dict[str, str | float] = {name: getattr(one, name) for name in ("objective", "bound", "gap", "seconds")}
    return {"program": what} | row | {f"price {k}": float(price) for k, price in enumerate(one.price)}


def _agent_rows(found: Evaluation, notes: dict[str, str], rng: np.random.Generator) -> list[dict[str, str | float]]:
    table = []
    for name in found.agents:
        played = found.of(name)
        row: dict[str, str | float] = {"agent": name}
        for title, values in (
            ("reward", np.array([e.reward for e in played])),
            *((title, column(played, figure)) for title, figure in FIGURES.items()),
        ):
            interval = mean_interval(values, rng)
            row |= {title: interval.mean, f"{title}, low": interval.low, f"{title}, high": interval.high}
        table.append(row | {"chosen on validation traffic": notes.get(name, "")})
    return table
