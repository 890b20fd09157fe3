"""Clock curve and power of a GPU, fitted to its rows under caps and clock locks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....simulator.catalog import Catalog, GpuSpec
from ....simulator.errors import InputError
from ..iteration import Needs, Watts, mean_power_w
from ..least_squares import least_squares
from ..operating import Phase, Work
from ..source import Advance, Fitted, Row

F64 = NDArray[np.float64]
PhaseOf = Callable[[Row, GpuSpec], Phase | None]

CAPPED = 0.97
"""Power above this share of the cap is taken to be held down by it."""
PRIOR_WEIGHT = 0.02
"""A coefficient off the catalogue's by a factor e counts as a residual of 2 % in one row."""
LEAST_BUSY = 0.6
"""Training that works for less of its time says more about its host than about the GPU."""
MOST_ANCHORS = 7
LEAST_SPACING = 0.03
LEAST_EXPONENT = 1.05
"""Dynamic power is f·V² and the voltage does not fall as the clock rises, so that it grows faster than the clock."""
FEWEST_ROWS = 4
RESAMPLES = 200


@dataclass(frozen=True)
class Observed:
    """Steady work whose clock is known.

    Attributes:
        row: Its place among the rows.
        work: What it keeps busy.
        ratio: Its clock relative to the highest.
        power_w: Its mean power, watts.
    """

    row: int
    work: Work
    ratio: float
    power_w: float


@dataclass(frozen=True)
class Curve:
    """What is fitted.

    Attributes:
        ratio: Anchors of the clock curve (A,), the last is 1.
        log_scale: Logarithm of the dynamic power at each (A,).
        watts: Active, compute and memory watts (3,).
    """

    ratio: F64
    log_scale: F64
    watts: F64

    @property
    def scale(self) -> F64:
        """Dynamic power at each anchor (A,)."""
        return np.exp(self.log_scale)

    def power_w(self, idle_w: float, observed: Sequence[Observed]) -> F64:
        """Mean power of what was observed, by the engine's formula."""
        ratio = np.array([o.ratio for o in observed])
        times = Needs(*np.array([o.work.needs for o in observed]).T).at(ratio)
        scale = np.exp(np.interp(np.log(ratio), np.log(self.ratio), self.log_scale))
        scale *= np.minimum(ratio / self.ratio[0], 1)  # below the lowest anchor power is proportional to the clock
        active_w, compute_w, memory_w = self.watts
        return mean_power_w(times, Watts(idle_w, active_w, compute_w, memory_w, 0.0, 0.0), scale)


def fit_gpus(
    rows: Sequence[Row], catalog: Catalog, phase_of: PhaseOf, rng: np.random.Generator, advance: Advance
) -> Fitted:
    """Fits ``clock`` and ``power`` of every GPU of the catalogue that has rows enough.

    Relative residuals of power are made small by least squares. The clock is that of the lock where no cap holds it
    down, else what the speed of compute-bound work says. Idle power is the mean of idle rows, else the catalogue's,
    because kernels cannot tell it from the rest. Without memory-bound rows neither can coefficients be told from one
    another: then the curve alone is fitted. The interval comes from resampling configurations, or rows where a GPU
    has fewer than four of them.

    Raises:
        InputError: No GPU of the catalogue has rows enough.
    """
    tables: dict[str, Any] = {}
    intervals: dict[str, tuple[float, float]] = {}
    residuals = np.full(len(rows), np.nan)
    for name in sorted({row.groups["gpu"] for row in rows} & set(catalog.gpus)):
        gpu = catalog.gpus[name]
        idle_w, observed = _observe(rows, gpu, phase_of)
        if len(observed) < FEWEST_ROWS:
            continue
        anchors, fixed = _anchors(observed), all(o.work.compute for o in observed)
        best = _fit(observed, gpu, idle_w, anchors, fixed)
        for o, error in zip(observed, best.power_w(idle_w, observed) / _power(observed) - 1, strict=True):
            residuals[o.row] = error
        tables[name] = _entry(gpu, best, idle_w, len(observed), fixed)
        resamples = _resample(rows, observed, rng)
        refits = [_flat(_fit(sample, gpu, idle_w, anchors, fixed), name, fixed) for sample in resamples]
        intervals |= {
            key: (float(np.quantile(values, 0.025)), float(np.quantile(values, 0.975)))
            for key, values in ((key, [refit[key] for refit in refits]) for key in refits[0])
        }
        advance(int(np.isfinite(residuals).sum()))
    if not tables:
        known = ", ".join(catalog.gpus)
        raise InputError(
            "rows", f"no GPU has {FEWEST_ROWS} rows to fit to", f"Give more rows of GPUs of the catalogue: {known}"
        )
    return Fitted({"gpus": tables}, intervals, {"power": residuals.tolist()})


def _observe(rows: Sequence[Row], gpu: GpuSpec, phase_of: PhaseOf) -> tuple[float, list[Observed]]:
    """Idle power, and the rows whose clock is known."""
    idle, observed = [], []
    for number, row in enumerate(rows):
        if row.groups["gpu"] != gpu.name or "power" not in row.measured:
            continue
        if (phase := phase_of(row, gpu)) is None:
            continue
        work, watts = phase.work, row.measured["power"]
        if not work.compute and not work.memory:
            idle.append(watts)
        elif phase.busy >= LEAST_BUSY and (found := _operating(row, phase, watts, gpu)) is not None:
            observed.append(Observed(number, work, *found))
    return (float(np.mean(idle)) if idle else gpu.power.idle_w), observed


def _operating(row: Row, phase: Phase, watts: float, gpu: GpuSpec) -> tuple[float, float] | None:
    """Clock and power while the work runs; none where no measured figure tells the clock."""
    given, capped = row.given, watts > CAPPED * row.given["cap_w"]
    if not capped and given["clock_mhz"] is not None:
        return min(float(given["clock_mhz"]) / gpu.clock_max_mhz, 1.0), watts
    if phase.work.compute and "reference_cap_w" in given:
        length, waits = 1 / row.measured.get("speed", 1.0), 1 - phase.busy
        works = max(length - waits, phase.busy)
        return phase.busy / works, (watts * length - waits * gpu.power.idle_w) / works
    return None if capped else (1.0, watts)


def _anchors(observed: Sequence[Observed]) -> F64:
    """Clocks seen, or as many quantiles of them, down from the highest and none too close to the next."""
    ratios = np.unique(np.round([o.ratio for o in observed], 3))
    if len(ratios) > MOST_ANCHORS:
        ratios = np.round(np.quantile(ratios, np.linspace(0, 1, MOST_ANCHORS)), 3)
    anchors = [1.0]
    for ratio in ratios[::-1].tolist():
        if ratio <= anchors[-1] - LEAST_SPACING:
            anchors.append(ratio)
    return np.array(anchors[::-1])


def _power(observed: Sequence[Observed]) -> F64:
    return np.array([o.power_w for o in observed])


def _fit(observed: Sequence[Observed], gpu: GpuSpec, idle_w: float, anchors: F64, fixed: bool) -> Curve:
    """The curve closest to what was observed; its scales ascend, its watts are positive."""
    power, measured_w = gpu.power, _power(observed)
    prior = np.array([power.active_w, power.compute_w, power.memory_w])
    apart = np.diff(np.log(anchors))
    before = np.interp(np.log(anchors), np.log(gpu.clock.ratio), np.log(gpu.clock.scale))
    start = np.concatenate(
        [np.log((np.diff(before) / apart - LEAST_EXPONENT).clip(min=1e-2)), np.zeros(0 if fixed else 3)]
    )

    def curve(x: F64) -> Curve:
        steps = apart * (LEAST_EXPONENT + np.exp(x[: len(anchors) - 1]))
        log_scale = -np.concatenate([np.cumsum(steps[::-1])[::-1], [0.0]])
        return Curve(anchors, log_scale, prior if fixed else prior * np.exp(x[len(anchors) - 1 :]))

    def residuals(x: F64) -> F64:
        held = PRIOR_WEIGHT * x[len(anchors) - 1 :]
        return np.concatenate([curve(x).power_w(idle_w, observed) / measured_w - 1, held])

    return curve(least_squares(residuals, start))


def _resample(rows: Sequence[Row], observed: Sequence[Observed], rng: np.random.Generator) -> list[list[Observed]]:
    blocks: dict[str, list[Observed]] = {}
    for o in observed:
        blocks.setdefault(rows[o.row].configuration, []).append(o)
    members = list(blocks.values()) if len(blocks) >= FEWEST_ROWS else [[o] for o in observed]
    drawn = rng.integers(len(members), size=(RESAMPLES, len(members)))
    return [[o for i in draw for o in members[i]] for draw in drawn]


def _flat(curve: Curve, name: str, fixed: bool) -> dict[str, float]:
    """Fitted figures by dotted name."""
    scales = {f"gpus.{name}.clock.scale[{i}]": float(value) for i, value in enumerate(curve.scale[:-1])}
    watts = dict(zip(("active_w", "compute_w", "memory_w"), curve.watts.tolist(), strict=True))
    return scales | ({} if fixed else {f"gpus.{name}.power.{key}": value for key, value in watts.items()})


def _entry(gpu: GpuSpec, curve: Curve, idle_w: float, count: int, fixed: bool) -> dict[str, Any]:
    source = f"calibrate caps, {count} rows"
    entry = gpu.model_dump(exclude={"name"}, exclude_none=True)
    entry["clock"] = {
        "calibrated": True,
        "source": source,
        "ratio": [round(float(value), 4) for value in curve.ratio],
        "scale": [round(float(value), 4) for value in curve.scale],
    }
    if not fixed:
        active_w, compute_w, memory_w = (round(float(value), 1) for value in curve.watts)
        entry["power"] |= {"calibrated": True, "source": source, "idle_w": round(idle_w, 1)}
        entry["power"] |= {"active_w": active_w, "compute_w": compute_w, "memory_w": memory_w}
        entry["power"]["off_w"] = min(entry["power"]["off_w"], entry["power"]["idle_w"])
    return entry
