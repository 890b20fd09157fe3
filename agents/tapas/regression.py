"""Regressions of inlet and die temperature, fitted to history alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..base import Task
from .history import History
from .reading import F64, Mask

BLUR = 1.0
"""A spread of a column, in kelvin or watts, that tells little: what the history does not show stays at its prior."""
KNOTS = (1 / 3, 2 / 3)
"""Quantiles at which a line may bend: three regimes, as the paper finds them of inlets over outside temperature."""
AIR_TAUS_S = (30.0, 60.0, 120.0, 240.0)
DIE_TAUS_S = (10.0, 20.0, 40.0, 80.0)
SPREAD = 0.95
"""Quantile of the errors that is kept as a margin."""


def smoothed(values: F64, first: Mask, tick_s: float, tau_s: float) -> F64:
    """Exponential mean along the first axis that starts anew at the first tick of each run."""
    keep = float(np.exp(-tick_s / tau_s))
    result = np.empty_like(values)
    for i, value in enumerate(values):
        result[i] = value if first[i] else value + (result[i - 1] - value) * keep
    return result


def bent(values: F64, knots: F64) -> F64:
    """Columns whose combinations are lines that bend at the knots, (…, 1 + knots)."""
    return np.stack([values, *((values - knot).clip(min=0) for knot in knots)], axis=-1)


def ridge(columns: F64, target: F64) -> tuple[F64, float]:
    """Coefficients and intercept of a ridge regression on columns (n, k); a column that moves little gets little."""
    mean = columns.mean(axis=0)
    centred = columns - mean
    gram = centred.T @ centred + BLUR**2 * len(columns) * np.eye(columns.shape[1])
    coefficients = np.linalg.solve(gram, centred.T @ (target - target.mean()))
    return coefficients, float(target.mean() - coefficients @ mean)


@dataclass(frozen=True, eq=False)
class InletRegression:
    """Inlet temperature of each slot over outside temperature, load of its row, and power of its server.

    The paper fits, server by server, a piecewise polynomial to outside temperature and load; here lines that bend at
    terciles of what the history holds. Above the airflow of a row its load makes the air warmer, so the bend in the
    row's load is what the history tells of missing air.

    Attributes:
        tau_s: Time constant of the mean over which power counts.
        outside_knots: Where the line bends in the outside temperature, °C; empty where that is not metered.
        load_knots: Where it bends in the row's mean power, watts a slot.
        coefficients: (R, k).
        intercept_c: (R,).
        spread_k: Quantile of the errors on the history.
    """

    tau_s: float
    outside_knots: F64
    load_knots: F64
    coefficients: F64
    intercept_c: F64
    spread_k: float
    _row: Mask
    _server: Mask

    @classmethod
    def fitted(cls, task: Task, history: History) -> InletRegression | None:
        """The regression with the time constant that fits best; none where inlets are not metered."""
        if np.isnan(history.inlet_c).any():
            return None
        return min((cls._with(task, history, tau_s) for tau_s in AIR_TAUS_S), key=lambda found: found.spread_k)

    @classmethod
    def _with(cls, task: Task, history: History, tau_s: float) -> InletRegression:
        row, server = _alike([s.row for s in task.blueprint.slots]), _alike([s.server for s in task.blueprint.slots])
        power_w = smoothed(history.power_w, history.first, history.tick_s, tau_s)
        outside = np.isfinite(history.outside_c).all()
        load_w = power_w @ _mean_over(row)
        draft = cls(
            tau_s=tau_s,
            outside_knots=np.quantile(history.outside_c, KNOTS) if outside else np.zeros(0),
            load_knots=np.quantile(load_w, KNOTS),
            coefficients=np.zeros(0),
            intercept_c=np.zeros(0),
            spread_k=np.inf,
            _row=row,
            _server=server,
        )
        columns = draft._columns(power_w, history.outside_c)
        fits = [ridge(columns[:, r], history.inlet_c[:, r]) for r in range(len(row))]
        coefficients, intercept_c = np.stack([c for c, _ in fits]), np.array([i for _, i in fits])
        errors = history.inlet_c - np.einsum("nrk,rk->nr", columns, coefficients) - intercept_c
        spread_k = float(np.quantile(np.abs(errors), SPREAD))
        return cls(tau_s, draft.outside_knots, draft.load_knots, coefficients, intercept_c, spread_k, row, server)

    def _columns(self, power_w: F64, outside_c: F64) -> F64:
        """(n, R, k) of smoothed power (n, R) and outside temperature (n,)."""
        parts = [
            bent(power_w @ _mean_over(self._row), self.load_knots),
            (power_w @ _mean_over(self._server))[..., None],
        ]
        if len(self.outside_knots):
            weather = bent(outside_c, self.outside_knots)
            parts.append(np.broadcast_to(weather[:, None], (*power_w.shape, weather.shape[-1])))
        return np.concatenate(parts, axis=-1)

    def predict(self, power_w: F64, outside_c: F64) -> F64:
        """Inlet temperatures, °C (n, R).

        Args:
            power_w: Power of each slot, smoothed over ``tau_s`` or held for long, watts (n, R).
            outside_c: Outside temperature, °C (n,).
        """
        columns = self._columns(power_w, outside_c)
        predicted: F64 = np.einsum("nrk,rk->nr", columns, self.coefficients) + self.intercept_c
        return predicted


def _alike(places: Sequence[int]) -> Mask:
    """Whether two slots are in the same place, (R, R)."""
    numbers = np.array(places)
    return np.asarray(numbers[:, None] == numbers)


def _mean_over(alike: Mask) -> F64:
    """Matrix that turns values of slots into means of their place, (R, R)."""
    return np.asarray(alike / alike.sum(axis=0), np.float64)


@dataclass(frozen=True, eq=False)
class DieRegression:
    """Die temperature over inlet temperature and the slot's own power: linear, as the paper finds it of GPUs.

    Slots with the same GPUs share the slopes; the intercept is each one's own. The prior, where the history says
    nothing of inlets, is that a kelvin there is a kelvin on the die.

    Attributes:
        tau_s: Time constant of the mean of power that counts beside the power of the tick.
        per_k: Die over inlet (R,).
        per_w: Die over the power of the tick, K/W (R,).
        per_mean_w: Die over the mean of power, K/W (R,).
        intercept_c: (R,).
        spread_k: Quantile of the errors on the history.
    """

    tau_s: float
    per_k: F64
    per_w: F64
    per_mean_w: F64
    intercept_c: F64
    spread_k: float

    @classmethod
    def fitted(cls, task: Task, history: History) -> DieRegression:
        """The regression with the time constant that fits best."""
        return min((cls._with(task, history, tau_s) for tau_s in DIE_TAUS_S), key=lambda found: found.spread_k)

    @classmethod
    def _with(cls, task: Task, history: History, tau_s: float) -> DieRegression:
        inlet_c = np.nan_to_num(history.inlet_c)
        mean_w = smoothed(history.power_w, history.first, history.tick_s, tau_s)
        above_k = history.temperature_c - inlet_c
        columns = np.stack([inlet_c, history.power_w, mean_w], axis=-1)
        kinds = list(zip(task.fleet.gpus, task.fleet.cap_max_w, strict=True))
        slopes, intercept_c = np.empty((len(kinds), 3)), np.empty(len(kinds))
        for kind in set(kinds):
            same = np.array([k == kind for k in kinds])
            own = columns[:, same]
            centred = own - own.mean(axis=0)
            target = above_k[:, same] - above_k[:, same].mean(axis=0)
            slopes[same] = ridge(centred.reshape(-1, 3), target.ravel())[0]
        intercept_c = (above_k - (columns * slopes).sum(axis=-1)).mean(axis=0)
        errors = above_k - (columns * slopes).sum(axis=-1) - intercept_c
        spread_k = float(np.quantile(np.abs(errors), SPREAD))
        return cls(tau_s, 1 + slopes[:, 0], slopes[:, 1], slopes[:, 2], intercept_c, spread_k)

    def predict(self, inlet_c: F64, power_w: F64, mean_w: F64) -> F64:
        """Die temperature, °C (…, R).

        Args:
            inlet_c: Inlet temperature, °C; ``nan`` where it is not metered.
            power_w: Power of the tick, watts.
            mean_w: Its mean over ``tau_s``, watts.
        """
        return self.intercept_c + self.per_k * np.nan_to_num(inlet_c) + self.per_w * power_w + self.per_mean_w * mean_w

    def highest_w(self, inlet_c: F64, limit_c: F64, gain: F64 | float = 0.0) -> F64:
        """Power that a slot can hold without ever passing ``limit_c``, watts (R,).

        Args:
            inlet_c: Inlet temperature, °C (R,).
            limit_c: Die temperature (R,).
            gain: By how much the inlet rises with that power, K/W (R,).
        """
        slope = np.maximum(self.per_w + self.per_mean_w + self.per_k * gain, 1e-9)
        return (limit_c - self.intercept_c - self.per_k * np.nan_to_num(inlet_c)) / slope
