"""Fits models of published traces: `python -m llmcluster.experiments.fit_workload FILE… --out TOML`.

Distributions are quantile tables. What is fitted by simulation is the memory of the arrivals: the weights of a slow
cycle and of short memories, so that the variance-to-mean ratio of arrival counts in 1 s, 10 s and 60 s bins, averaged
over simulated traces, is the measured one. The structure (lengths of memories and cycle) is the best of a few.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from ..simulator.errors import InputError
from ..simulator.files import whole
from ..simulator.units import PS_PER_S
from ..simulator.workload.fitted import GapModel, length_levels, normal_axis
from ..simulator.workload.formats import read_workload

BINS_S = (1.0, 10.0, 60.0)
GAP_KNOTS, LENGTH_KNOTS, GRID = 241, 263, 16
MEMORIES = ((4.0,), (8.0,), (8.0, 80.0))
CYCLES_PER_TRACE = (1, 14, 20, 28)
HOURS, ROUNDS, MAX_WEIGHT = 24, 7, 0.35
SOURCES = {
    "azure-2023-conv": "azure_llm_2023/AzureLLMInferenceTrace_conv.csv",
    "azure-2023-code": "azure_llm_2023/AzureLLMInferenceTrace_code.csv",
}
HEADER = """\
# Fitted figures of the Azure LLM inference traces of 2023-11-16, one hour each; written by experiments/fit_workload.py.
# Source: https://github.com/Azure/AzurePublicDataset, CC-BY 4.0. Patel et al., "Splitwise: Efficient generative LLM
# inference using phase splitting", ISCA 2024.
#
# gap_us: quantiles of the inter-arrival time, microseconds, at even places of the Gaussian axis.
# memories: [requests, weight] of the Gaussian series behind the gaps; cycle_*: its slow cycle.
# prompt_tokens, output_tokens: quantiles at even levels, then a finer tail.
# copula: requests per cell of prompt rank (rows) and output rank.
"""

Floats = NDArray[np.float64]


def dispersion(arrival_s: Floats, bin_s: float) -> float:
    """Variance-to-mean ratio of the number of arrivals in whole bins of ``bin_s`` seconds."""
    bins = int(arrival_s[-1] // bin_s)
    counts = np.bincount((arrival_s / bin_s).astype(np.int64), minlength=bins)[:bins]
    return float(counts.var(ddof=1) / counts.mean())


def dispersions(arrival_s: Floats) -> Floats:
    """The ratio at each of ``BINS_S``."""
    return np.array([dispersion(arrival_s, bin_s) for bin_s in BINS_S])


def ks_distance(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Largest distance between the two samples' distribution functions; ties are exact."""
    at = np.unique(np.concatenate([a, b]))
    return float(
        np.abs(
            np.searchsorted(np.sort(a), at, side="right") / len(a)
            - np.searchsorted(np.sort(b), at, side="right") / len(b)
        ).max()
    )


@dataclass(frozen=True)
class MemoryFit:
    """A gap model with how well it does: log-ratios of dispersion, and the 95th percentile of the KS distance."""

    model: GapModel
    error: Floats
    ks: float

    @property
    def badness(self) -> float:
        """The worst relative error, and what the distribution strays from the trace in single hours beyond 0.02."""
        return float(np.abs(self.error).max()) + 10 * max(0.0, self.ks - 0.02)


def gap_table(gaps_s: Floats) -> GapModel:
    """Quantiles of the gaps; those above 99.4 % are scaled so that the mean is the trace's."""
    axis = normal_axis(len(gaps_s), GAP_KNOTS)
    normal = NormalDist()
    table = np.quantile(gaps_s, [normal.cdf(x) for x in axis])
    even = np.array([normal.inv_cdf(level) for level in (np.arange(100_000) + 0.5) / 100_000])
    tail = np.where(axis > 2.5, table, 0.0)
    tail_mean = np.interp(even, axis, tail).mean()
    body_mean = np.interp(even, axis, table - tail).mean()
    table = np.where(axis > 2.5, table * (gaps_s.mean() - body_mean) / tail_mean, table)
    return GapModel(axis, table, float(gaps_s.mean()), (), len(gaps_s), 0.0)


def fit_memory(gaps_s: Floats, table: GapModel, memories: tuple[float, ...], cycles: int) -> MemoryFit:
    """Weights of the given memories and cycle by damped Gauss-Newton on the log of the dispersion."""
    n = len(gaps_s)
    target = dispersions(np.cumsum(gaps_s))

    def model(weights: Floats) -> GapModel:
        pairs = tuple(zip(memories, weights[1:].tolist(), strict=True))
        return replace(table, memories=pairs, cycle_requests=n / cycles, cycle_weight=float(weights[0]))

    def simulate(weights: Floats) -> list[Floats]:
        return [model(weights).sample(n, np.random.default_rng(seed)) for seed in range(HOURS)]

    def error(weights: Floats) -> Floats:
        means = np.mean([dispersions(np.cumsum(gaps)) for gaps in simulate(weights)], axis=0)
        return np.asarray(np.log(means / target))

    weights, step = np.full(1 + len(memories), 0.05), 0.01
    for _ in range(ROUNDS):
        here = error(weights)
        slope = np.stack([(error(weights + step * row) - here) / step for row in np.eye(len(weights))], axis=1)
        normal_matrix = slope.T @ slope
        damped = normal_matrix + 0.01 * np.trace(normal_matrix) * np.eye(len(weights))
        weights = np.clip(weights - np.linalg.solve(damped, slope.T @ here), 0, MAX_WEIGHT)
    rounded = np.round(weights, 4)
    ks = float(np.quantile([ks_distance(gaps, gaps_s) for gaps in simulate(rounded)], 0.95))
    return MemoryFit(model(rounded), error(rounded), ks)


def rank_grid(prompt: NDArray[np.int32], output: NDArray[np.int32]) -> NDArray[np.int64]:
    """Requests per cell of the grid of ranks; ties are broken at random, from a fixed seed."""
    rng = np.random.default_rng(0)
    n = len(prompt)
    cells = [np.argsort(np.lexsort((rng.random(n), x))) * GRID // n for x in (prompt, output)]
    return np.bincount(cells[0] * GRID + cells[1], minlength=GRID * GRID).reshape(GRID, GRID)


def fit(path: Path) -> tuple[dict[str, Any], MemoryFit]:
    """Fits one trace: its table of the TOML file, and the chosen memory."""
    trace = read_workload(path)
    gaps_s = np.diff(trace.arrival_ps) / PS_PER_S
    table = gap_table(gaps_s)
    fits = (fit_memory(gaps_s, table, *structure) for structure in itertools.product(MEMORIES, CYCLES_PER_TRACE))
    best = min(fits, key=lambda one: one.badness)
    levels = length_levels(LENGTH_KNOTS)
    figures = {
        "requests": len(trace),
        "mean_gap_s": float(f"{best.model.mean_gap_s:.6g}"),
        "memories": [list(pair) for pair in best.model.memories if pair[1]],
        "cycle_requests": round(best.model.cycle_requests, 1),
        "cycle_weight": best.model.cycle_weight,
        "gap_us": [float(f"{gap:.4g}") for gap in best.model.gap_s * 1e6],
        "prompt_tokens": np.quantile(trace.prompt_tokens, levels, method="inverted_cdf").tolist(),
        "output_tokens": np.quantile(trace.output_tokens, levels, method="inverted_cdf").tolist(),
        "copula": rank_grid(trace.prompt_tokens, trace.output_tokens).tolist(),
    }
    return figures, best


def to_toml(fits: dict[str, dict[str, Any]]) -> str:
    """The text of the file; long lists are wrapped."""
    lines = [HEADER]
    for name, figures in fits.items():
        lines.append(f"[{name}]")
        for key, value in figures.items():
            if isinstance(value, list) and len(value) > 2:
                lines += [f"{key} = [", *_wrapped(value), "]"]
            else:
                lines.append(f"{key} = {value}")
        lines.append("")
    return "\n".join(lines)


def _wrapped(values: Iterable[Any], width: int = 118) -> list[str]:
    lines = [""]
    for value in values:
        text = f"{value:g}" if isinstance(value, float) and value < 1e5 else str(value).removesuffix(".0")
        if len(lines[-1]) + len(text) + 2 > width or (isinstance(value, list) and lines[-1]):
            lines.append("")
        lines[-1] += f" {text}," if lines[-1] else f"  {text},"
    return lines


def main(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Traces named as published; the two of 2023 if none")
    ] = None,
    out: Annotated[Path, typer.Option(help="TOML file to write")] = Path("azure_2023.toml"),
) -> None:
    """Fits the traces and writes their figures."""
    folder = Path(os.environ.get("LLMCLUSTER_DATA", "../shared/data"))
    by_file = {Path(source).name: name for name, source in SOURCES.items()}
    fits = {}
    for path in files or [folder / source for source in SOURCES.values()]:
        if path.name not in by_file:
            raise InputError(str(path), "not a trace with a fitted name", f"Name it one of {', '.join(by_file)}")
        figures, best = fit(path)
        fits[by_file[path.name]] = figures
        typer.echo(
            f"{by_file[path.name]}: cycle of {best.model.cycle_requests:.0f} requests, "
            f"weight {best.model.cycle_weight}, memories {best.model.memories}; "
            f"dispersion off by {np.round(np.expm1(best.error) * 100, 1)} %, "
            f"KS of the gaps {best.ks:.4f} (95th percentile)",
            err=True,
        )
    with whole(out) as partial:
        partial.write_text(to_toml(fits), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
