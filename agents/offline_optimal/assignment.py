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
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, linprog, milp

from ...simulator.errors import InputError

F64 = NDArray[np.float64]

GAP = 5e-4
LIMIT_S = 50.0
WHOLE = 1e-6
"""Within this of a whole number, a variable of the linear program counts as one."""
CORE = 256
"""Queries that are decided anew when the linear program leaves some divided."""


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
    can = np.isfinite(cost)
    if not can.any(axis=1).all():
        raise InputError("cost", f"class {int((~can.any(axis=1)).argmax())} can go nowhere", "Add an option for it")
    program = _Program(cost, counts, shares, np.ones(cost.shape) if weight is None else weight)
    served, bound, price = program.relaxed()
    if whole and np.abs(served - np.rint(served)).max() <= WHOLE:
        served = np.rint(served)
    elif whole:
        served = _whole(program, served, bound, price, gap)
    seconds = time.perf_counter() - began
    return Assignment(served, program.value(served), bound, price, seconds)


@dataclass(frozen=True)
class _Program:
    """The arguments of :func:`assign`, as a program in the variables of all classes and options, class by class."""

    cost: F64
    counts: F64
    shares: Shares
    weight: F64

    def value(self, served: F64) -> float:
        """Cost of an assignment."""
        return float((np.where(np.isfinite(self.cost), self.cost, 0.0) * served).sum())

    @cached_property
    def upper(self) -> F64:
        """The most of each variable: none where a class cannot go."""
        return np.where(np.isfinite(self.cost), self.counts[:, None], 0.0).ravel()

    @cached_property
    def flat(self) -> F64:
        """Cost of each variable."""
        return np.where(np.isfinite(self.cost), self.cost, 0.0).ravel()

    @cached_property
    def each(self) -> sparse.csr_array:
        """Sums over options, which are to be the counts."""
        return _rows(np.ones(self.cost.shape), self._variables, self.cost.size)

    @cached_property
    def limited(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Options with an upper limit and options with a lower one."""
        return np.flatnonzero(np.isfinite(self.shares.high)), np.flatnonzero(self.shares.low > 0)

    @cached_property
    def uses(self) -> tuple[sparse.csr_array, F64]:
        """What is taken of the limited shares and may not exceed the ends, the lower ones with their signs changed."""
        highest, lowest = self.limited
        use = self.weight.T
        values = np.vstack([use[highest], -use[lowest]])
        rows = _rows(values, self._variables.T[np.concatenate(self.limited)], self.cost.size)
        return rows, np.concatenate([self.shares.high[highest], -self.shares.low[lowest]])

    @property
    def _variables(self) -> NDArray[np.int64]:
        return np.arange(self.cost.size).reshape(self.cost.shape)

    def relaxed(self) -> tuple[F64, float, F64]:
        """The linear program's assignment, its cost, and the prices of the shares."""
        rows, ends = self.uses
        bounds = np.stack([np.zeros_like(self.upper), self.upper], axis=1)
        limits = {"A_ub": rows, "b_ub": ends} if len(ends) else {}
        found = linprog(self.flat, A_eq=self.each, b_eq=self.counts, bounds=bounds, method="highs", **limits)
        if found.x is None:
            problem = f"no assignment keeps them ({found.message})"
            raise InputError("shares", problem, "Let the upper ones sum to 1 or more, the lower ones to 1 or less")
        price = np.zeros(self.cost.shape[1])
        if len(ends):
            marginal = -np.asarray(found.ineqlin.marginals)
            highest, lowest = self.limited
            price[highest] += marginal[: len(highest)]
            price[lowest] -= marginal[len(highest) :]
        return found.x.reshape(self.cost.shape), float(found.fun), price

    def integral(self, gap: float) -> F64 | None:
        """An assignment of indivisible queries, within the gap if time allows; ``None`` if none is found."""
        limits = [
            LinearConstraint(self.each, self.counts, self.counts),
            LinearConstraint(self.uses[0], -np.inf, self.uses[1]),
        ]
        options = {"mip_rel_gap": gap, "time_limit": LIMIT_S}
        found = milp(
            self.flat,
            integrality=np.ones_like(self.flat),
            bounds=Bounds(0, self.upper),
            constraints=limits,
            options=options,
        )
        return None if found.x is None else np.rint(found.x).reshape(self.cost.shape)


def _whole(program: _Program, relaxed: F64, bound: float, price: F64, gap: float) -> F64:
    """Indivisible queries: first those are decided anew between whose options the prices hardly choose, the rest stay.

    If that is not within the gap of the bound, all are.
    """
    cost, weight, shares = program.cost, program.weight, program.shares
    two = np.partition(cost + price * weight, 1, axis=1)
    anew = np.abs(relaxed - np.rint(relaxed)).max(axis=1) > WHOLE
    anew[np.argsort(two[:, 1] - two[:, 0])[:CORE]] = True
    served = np.where(anew[:, None], 0.0, np.rint(relaxed))
    used = (served * weight).sum(axis=0)
    left = Shares(shares.low - used, shares.high - used)
    core = _Program(cost[anew], program.counts[anew], left, weight[anew]).integral(gap)
    if core is not None:
        served[anew] = core
        if program.value(served) - bound <= gap * abs(bound):
            return served
    found = program.integral(gap)
    if found is None:
        raise InputError("shares", "no whole queries keep them", "Leave them some room")
    return found


def _rows(values: F64, variables: NDArray[np.int64], size: int) -> sparse.csr_array:
    """Rows of constraints over so many variables: the values (N, n) at some of them."""
    starts = np.arange(len(values) + 1) * values.shape[1]
    return sparse.csr_array((values.ravel(), variables.ravel(), starts), (len(values), size))
