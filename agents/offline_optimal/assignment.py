"""Which model and system serves each query: the paper's optimisation, by linear and integer programming.

Wilkins et al. assign every query to one of K models (each on its system) so that ζ·energy − (1 − ζ)·accuracy, both
normalised, is least, while each model keeps its share γ of the work. That is a transportation problem: where shares
count queries, the linear program has an integral solution, and where they count time, all but K queries are integral
and HiGHS closes the rest. Equal queries are one row, so that ten thousand take seconds. The program's dual prices say
what a share is worth: with them, single queries can be assigned without seeing the others.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, linprog, milp

from ...simulator.errors import InputError

F64 = NDArray[np.float64]

GAP = 5e-4
LIMIT_S = 50.0
WHOLE = 1e-6
"""Within this of a whole number, a variable of the linear program counts as one."""


@dataclass(frozen=True)
class Shares:
    """What each of the K options serves at least and at most, in the unit of the weights.

    Attributes:
        low: At least (K,).
        high: At most (K,).
    """

    low: F64
    high: F64

    @classmethod
    def of(cls, gamma: F64, total: float, least: float, most: float) -> Shares:
        """Between ``least`` and ``most`` times the shares ``gamma`` (K,) of a total, the upper ends at most all."""
        return cls(np.floor(least * gamma * total), np.ceil(np.minimum(most * gamma, 1.0) * total))

    @classmethod
    def none(cls, options: int) -> Shares:
        """No limits."""
        return cls(np.zeros(options), np.full(options, np.inf))


@dataclass(frozen=True)
class Assignment:
    """A solution.

    Attributes:
        served: Queries of each class that each option serves (C, K).
        objective: Its cost.
        bound: Cost of the linear program, which no assignment undercuts.
        price: What one more unit of each option's share would save, per unit of weight (K,): negative where an option
            is used only because it must be.
        seconds: Time that it took.
    """

    served: F64
    objective: float
    bound: float
    price: F64
    seconds: float

    @property
    def gap(self) -> float:
        """By how much it may be worse than the best, relative to the bound."""
        return max(self.objective - self.bound, 0.0) / max(abs(self.bound), 1e-12)


def mixed_cost(energy: F64, accuracy: F64, zeta: float) -> F64:
    """The paper's objective of each query on each option (Q, K), its terms scaled by their ranges over all of them.

    Raises:
        InputError: ζ is no share.
    """
    if not 0 <= zeta <= 1:
        raise InputError("zeta", f"is {zeta}", "Give a share: 1 saves energy, 0 seeks accuracy")
    return zeta * energy / max(np.ptp(energy), 1e-12) - (1 - zeta) * accuracy / max(np.ptp(accuracy), 1e-12)


def assign(
    cost: F64, counts: F64, shares: Shares, weight: F64 | None = None, *, whole: bool = True, gap: float = GAP
) -> Assignment:
    """Assigns classes of equal queries to options at least cost.

    Args:
        cost: Cost of a query of each class on each option (C, K); infinite where it cannot go.
        counts: Queries of each class (C,).
        shares: Limits of each option.
        weight: What a query takes of an option's share (C, K); 1 by default, so that shares count queries.
        whole: Whether queries are indivisible.
        gap: Where to stop, relative to the bound.

    Returns:
        The assignment; that of the linear program if queries may be divided.

    Raises:
        InputError: The shares cannot hold, or a class can go nowhere.
    """
    began = time.perf_counter()
    classes, options = cost.shape
    can = np.isfinite(cost)
    if not can.any(axis=1).all():
        raise InputError("cost", f"class {int((~can.any(axis=1)).argmax())} can go nowhere", "Add an option for it")
    flat = np.where(can, cost, 0.0).ravel()
    upper = np.where(can, counts[:, None], 0.0).ravel()
    variables = np.arange(classes * options).reshape(classes, options)
    each = _rows(np.ones(cost.shape), variables, cost.size)
    highest, lowest = np.flatnonzero(np.isfinite(shares.high)), np.flatnonzero(shares.low > 0)
    use = (np.ones(cost.shape) if weight is None else weight).T
    limited = np.concatenate([highest, lowest])
    rows = _rows(np.vstack([use[highest], -use[lowest]]), variables.T[limited], cost.size)
    ends = np.concatenate([shares.high[highest], -shares.low[lowest]])
    bounds = np.stack([np.zeros_like(upper), upper], axis=1)
    limits = {"A_ub": rows, "b_ub": ends} if len(ends) else {}
    relaxed = linprog(flat, A_eq=each, b_eq=counts, bounds=bounds, method="highs", **limits)
    if relaxed.x is None:
        problem = f"no assignment keeps them ({relaxed.message})"
        raise InputError("shares", problem, "Let the upper ones sum to 1 or more, the lower ones to 1 or less")
    price = np.zeros(options)
    if len(ends):
        marginal = -np.asarray(relaxed.ineqlin.marginals)
        price[highest] += marginal[: len(highest)]
        price[lowest] -= marginal[len(highest) :]
    served = relaxed.x
    if whole and np.abs(served - np.rint(served)).max() <= WHOLE:
        served = np.rint(served)
    elif whole:
        served = _whole(flat, upper, LinearConstraint(each, counts, counts), rows, ends, gap)
    seconds = time.perf_counter() - began
    return Assignment(served.reshape(cost.shape), float(flat @ served), float(relaxed.fun), price, seconds)


def _rows(values: F64, variables: NDArray[np.int64], size: int) -> sparse.csr_array:
    """Rows of constraints over so many variables: the values (N, n) at some of them."""
    starts = np.arange(len(values) + 1) * values.shape[1]
    return sparse.csr_array((values.ravel(), variables.ravel(), starts), (len(values), size))


def _whole(cost: F64, upper: F64, demand: LinearConstraint, rows: sparse.csr_array, ends: F64, gap: float) -> F64:
    limits = [demand, LinearConstraint(rows, -np.inf, ends)]
    options = {"mip_rel_gap": gap, "time_limit": LIMIT_S}
    found: OptimizeResult = milp(
        cost, integrality=np.ones_like(cost), bounds=Bounds(0, upper), constraints=limits, options=options
    )
    if found.x is None:
        raise InputError("shares", f"no whole queries keep them ({found.message})", "Leave them some room")
    return np.asarray(np.rint(found.x))
