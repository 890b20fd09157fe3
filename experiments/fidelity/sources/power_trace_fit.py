"""Power of a GPU, fitted to seconds of power traces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....simulator.catalog import Catalog, GpuSpec
from ....simulator.errors import InputError
from ..series import blocks
from ..source import Advance, Fitted, Row
from .power_trace_features import features

F64 = NDArray[np.float64]

PRIOR_WEIGHT = 2.0
"""Watts that a second's mean may be off, for a coefficient to be off the catalogue's by its own size."""
REFITS = 200
COEFFICIENTS = ("active_w", "compute_w", "memory_w")


def fit_power(rows: Sequence[Row], catalog: Catalog, rng: np.random.Generator, advance: Advance) -> Fitted:
    """Fits idle, active, compute and memory power of each GPU by least squares over seconds.

    Decode alone can hardly tell the coefficients apart, so that all are held towards the catalogue's. The interval
    resamples blocks of 20 s. Clocks under the TDP are those of the catalogue's figures.

    Raises:
        InputError: There is no row.
    """
    if not rows:
        raise InputError("rows", "there is no trace", "Give a pair of traces")
    tables: dict[str, Any] = {}
    intervals: dict[str, tuple[float, float]] = {}
    residuals = np.zeros(len(rows))
    for name in sorted({row.groups["gpu"] for row in rows}):
        chosen, gpu = [i for i, row in enumerate(rows) if row.groups["gpu"] == name], catalog.gpu(name)
        pairs = [_per_gpu(rows[i], catalog) for i in chosen]
        design, target = np.concatenate([d for d, _ in pairs]), np.concatenate([t for _, t in pairs])
        best = _solve(design, target, gpu)
        for i, (one_design, one_target) in zip(chosen, pairs, strict=True):
            residuals[i] = (one_design @ best).sum() / one_target.sum() - 1
        refits = [_solve(design[k], target[k], gpu) for k in blocks(len(target), rng, REFITS)]
        low, high = np.quantile(refits, (0.025, 0.975), axis=0)
        for k, key in enumerate(("idle_w", *COEFFICIENTS)):
            intervals[f"gpus.{name}.power.{key}"] = (float(low[k]), float(high[k]))
        tables[name] = _entry(gpu, best, len(target))
        advance(chosen[-1] + 1)
    return Fitted({"gpus": tables}, intervals, {"energy": residuals.tolist()})


def _per_gpu(row: Row, catalog: Catalog) -> tuple[F64, F64]:
    """By what a GPU's idle, active, compute and memory power are multiplied, and its power less links and weights."""
    shares, power = features(row, catalog)
    scale = catalog.scale(row.groups["model"], row.groups["gpu"], row.given["tp"], 1, False)
    resident_w = power.idle_w / power.gpus - catalog.gpu(row.groups["gpu"]).power.idle_w
    active, compute, memory, cache, link = shares.T
    measured_w = (row.given["power_w"] - link * power.link_w) / power.gpus - resident_w
    whole = ~np.isnan(measured_w)
    # One trace does not tell reads of weights from reads of the cache.
    busy = np.column_stack([active, compute, memory + cache])
    design = np.column_stack([np.ones(len(shares)), scale.power * busy])
    return design[whole], measured_w[whole]


def _solve(design: F64, target: F64, gpu: GpuSpec) -> F64:
    """Non-negative idle, active, compute and memory power, held towards the catalogue's."""
    prior = np.array([gpu.power.idle_w, *(getattr(gpu.power, key) for key in COEFFICIENTS)])
    held = np.diag(PRIOR_WEIGHT * np.sqrt(len(target)) / np.maximum(prior, 1.0))
    free = np.ones(4, bool)
    while True:
        left = np.concatenate([design[:, free], held[:, free]])
        found = np.zeros(4)
        found[free] = np.linalg.lstsq(left, np.concatenate([target, held @ prior]), rcond=None)[0]
        if (found >= 0).all():
            return found
        free &= found >= 0


def _entry(gpu: GpuSpec, best: F64, count: int) -> dict[str, Any]:
    entry = gpu.model_dump(exclude={"name"}, exclude_none=True)
    fitted = dict(zip(("idle_w", *COEFFICIENTS), (round(float(w), 1) for w in best), strict=True))
    entry["power"] |= {"calibrated": True, "source": f"calibrate power-trace, {count} seconds"} | fitted
    entry["power"]["cache_w"] = fitted["memory_w"]
    entry["power"]["off_w"] = min(entry["power"]["off_w"], fitted["idle_w"])
    return entry
