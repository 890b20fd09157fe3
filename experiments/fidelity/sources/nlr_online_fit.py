"""What a greedy choice takes and what this model draws, from runs at many rates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ....simulator.catalog import Catalog, Cut, Scale
from ..source import Fitted, Row, Simulated
from .nlr_node import GPU, GPUS, MODEL

F64 = NDArray[np.float64]
Simulate = Callable[[Catalog], Sequence[Simulated]]

CUT = Cut(MODEL, GPU, GPUS)
SOURCE = "calibrate nlr-online (arXiv 2604.07345)"
LEAST_GREEDY_S = 1e-6
LEAST_FACTOR = 0.5
SECANTS = 6
ENOUGH = 1e-3
"""Median error at which a search ends."""

GREEDY_STEP, FACTOR_STEP = 1.25, 1.05
"""Rows are taken to be linear in the figures as far as these times what was found."""

RESAMPLES = 500


def fit(
    rows: Sequence[Row], catalog: Catalog, simulate: Simulate, quantities: Sequence[str], rng: np.random.Generator
) -> Fitted:
    """Fits what a greedy choice takes, and a factor of the power of this model on these GPUs.

    Each is where a median error vanishes: that of the mean TPOT, and that of the node's power with the host as the
    catalogue has it. Both grow almost in proportion, so that the secant method finds them. The intervals are of
    configurations drawn anew, with every row linear in both figures between three simulations.

    Args:
        rows: What was measured.
        catalog: GPUs and models with their figures so far; another factor fitted for this model stays.
        simulate: What a catalogue makes of the rows; the same every time.
        quantities: Whose residuals are wanted.
        rng: Draws the resamples.
    """

    def errors(greedy_s: float, factor: float | None = None) -> dict[str, F64]:
        figures = with_greedy(catalog, greedy_s)
        simulated = simulate(figures if factor is None else with_power(figures, factor))
        pairs = list(zip(simulated, rows, strict=True))
        return {q: np.array([one[q] / row.measured[q] - 1 for one, row in pairs]) for q in quantities}

    start_s = catalog.gpu(GPU).timing.greedy_s
    greedy_s = _root(lambda value: float(np.median(errors(value)["tpot"])), start_s, LEAST_GREEDY_S)
    greedy_s = float(f"{greedy_s:.3g}")
    factor = _root(lambda value: float(np.median(errors(greedy_s, value)["power"])), 1.0, LEAST_FACTOR)
    factor = float(f"{factor:.4g}")
    found = errors(greedy_s, factor)
    slower, hungrier = errors(GREEDY_STEP * greedy_s, factor), errors(greedy_s, FACTOR_STEP * factor)
    drawn = []
    for of in _resamples(rows, rng):
        later = _zero(found["tpot"][of], (slower["tpot"] - found["tpot"])[of])
        power = found["power"] + later * (slower["power"] - found["power"])
        more = _zero(power[of], (hungrier["power"] - found["power"])[of])
        drawn.append((greedy_s * (1 + later * (GREEDY_STEP - 1)), factor * (1 + more * (FACTOR_STEP - 1))))
    low, high = np.quantile(np.maximum(drawn, (LEAST_GREEDY_S, LEAST_FACTOR)), (0.025, 0.975), axis=0).tolist()
    scale = scale_of(catalog, factor).model_dump(exclude_defaults=True)
    names = f"gpus.{GPU}.timing.greedy_s", ".".join(("scales", *map(str, CUT), "power"))
    return Fitted(
        {
            "gpus": {GPU: {"like": GPU, "timing": {"greedy_s": greedy_s}}},
            "scales": [CUT._asdict() | scale | {"power": factor}],
        },
        {name: (low[i], high[i]) for i, name in enumerate(names)},
        {quantity: values.tolist() for quantity, values in found.items()},
    )


def with_greedy(catalog: Catalog, greedy_s: float) -> Catalog:
    """The catalogue with what a greedy choice takes."""
    gpu = catalog.gpu(GPU)
    timing = gpu.timing.model_copy(update={"greedy_s": greedy_s})
    return replace(catalog, gpus={**catalog.gpus, GPU: gpu.model_copy(update={"timing": timing})})


def with_power(catalog: Catalog, factor: float) -> Catalog:
    """The catalogue with a factor of the power."""
    return replace(catalog, scales={**catalog.scales, CUT: scale_of(catalog, factor)})


def scale_of(catalog: Catalog, factor: float) -> Scale:
    """The model's factors with that of the power; what else was fitted stays, and says so."""
    known = catalog.scale(*CUT)
    others = known.model_copy(update={"power": 1.0, "source": SOURCE})
    with_power = f"; power: {SOURCE}"
    alone = others == Scale(**CUT._asdict(), source=SOURCE)
    source = SOURCE if alone else known.source.removesuffix(with_power) + with_power
    return known.model_copy(update={"power": factor, "source": source})


def _resamples(rows: Sequence[Row], rng: np.random.Generator) -> Iterator[NDArray[np.intp]]:
    """Rows of configurations drawn anew, each with all its rows."""
    names, of = np.unique([row.configuration for row in rows], return_inverse=True)
    members = [np.flatnonzero(of == i) for i in range(len(names))]
    for drawn in rng.integers(len(names), size=(RESAMPLES, len(names))):
        yield np.concatenate([members[i] for i in drawn])


def _zero(errors: F64, slopes: F64) -> float:
    """Where the median of rows vanishes that grow by so much a step: the median of where each of them does."""
    never = -np.sign(errors) * np.inf
    return float(np.median(np.divide(-errors, slopes, out=never, where=slopes > 0)))


def _root(error: Callable[[float], float], at: float, other: float) -> float:
    """Where an error vanishes, by the secant method; not below ``other``, the least that makes sense."""
    least, off, off_other = other, error(at), error(other)
    for _ in range(SECANTS):
        if abs(off) < ENOUGH or off == off_other:
            break
        better = max(at - off * (at - other) / (off - off_other), least)
        at, other, off, off_other = better, at, error(better), off
    return at
