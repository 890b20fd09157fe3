"""The assignment of queries to models: against every possible one, its limits and prices, and the rule of them."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from llmcluster import InputError
from llmcluster.agents.offline_optimal.assignment import Shares, assign, mixed_cost
from llmcluster.agents.offline_optimal.dispatch import PricedDispatch

ANY = Shares.none(3)
WHOLE_NUMBERS = st.integers(0, 20)


def best_by_trial(cost: np.ndarray, weight: np.ndarray, shares: Shares) -> float:
    """Least cost of all assignments that keep the shares, infinite if none does."""
    queries, options = cost.shape
    least = np.inf
    for choice in itertools.product(range(options), repeat=queries):
        used = np.bincount(choice, weight[np.arange(queries), choice], options)
        if (used <= shares.high + 1e-9).all() and (used >= shares.low - 1e-9).all():
            least = min(least, float(cost[np.arange(queries), choice].sum()))
    return least


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, Shares]:
    queries, options = draw(st.integers(1, 5)), draw(st.integers(2, 3))
    matrix = st.lists(WHOLE_NUMBERS, min_size=queries * options, max_size=queries * options)
    cost = np.array(draw(matrix), float).reshape(queries, options)
    weight = 1.0 + np.array(draw(matrix), float).reshape(queries, options)
    if draw(st.booleans()):
        weight = np.ones_like(weight)
    limits = st.lists(st.integers(0, 40), min_size=options, max_size=options)
    high = np.array(draw(limits), float)
    low = np.minimum(np.array(draw(limits), float) / 10, high)
    return cost, weight, Shares(np.floor(low), high)


@given(cases())
def test_no_assignment_is_cheaper(case: tuple[np.ndarray, np.ndarray, Shares]) -> None:
    cost, weight, shares = case
    least = best_by_trial(cost, weight, shares)
    if not np.isfinite(least):
        with pytest.raises(InputError, match="shares"):
            assign(cost, np.ones(len(cost)), shares, weight)
        return
    found = assign(cost, np.ones(len(cost)), shares, weight, gap=0.0)
    used = (found.served * weight).sum(axis=0)
    assert set(np.unique(found.served)) <= {0.0, 1.0}
    assert (found.served.sum(axis=1) == 1).all()
    assert (used <= shares.high + 1e-6).all()
    assert (used >= shares.low - 1e-6).all()
    assert found.objective == pytest.approx(least, abs=1e-6)
    assert found.bound <= least + 1e-6


@given(cases())
def test_equal_queries_may_be_one_row(case: tuple[np.ndarray, np.ndarray, Shares]) -> None:
    cost, weight, shares = case
    twice = Shares(2 * shares.low, 2 * shares.high)
    rows = np.repeat(np.arange(len(cost)), 2)
    try:
        apart = assign(cost[rows], np.ones(len(rows)), twice, weight[rows], gap=0.0)
    except InputError:
        assume(False)
    together = assign(cost, np.full(len(cost), 2.0), twice, weight, gap=0.0)
    assert together.objective == pytest.approx(apart.objective, abs=1e-6)
    assert together.bound == pytest.approx(apart.bound, abs=1e-6)


def queries(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Energy and accuracy of queries on three models, the better ones dearer."""
    rng = np.random.default_rng(seed)
    size = rng.lognormal(0.0, 1.0, (count, 1))
    energy = size * np.array([1.0, 2.0, 8.0]) * rng.uniform(0.8, 1.2, (count, 3))
    return energy, size * np.array([0.50, 0.56, 0.65])


def test_the_knob_goes_from_best_accuracy_to_least_energy() -> None:
    energy, accuracy = queries(50)
    totals = []
    for zeta in np.linspace(0, 1, 6):
        served = assign(mixed_cost(energy, accuracy, zeta), np.ones(50), ANY).served
        totals.append(((served * energy).sum(), (served * accuracy).sum()))
    assert totals[0][1] == pytest.approx(accuracy.max(axis=1).sum())
    assert totals[-1][0] == pytest.approx(energy.min(axis=1).sum())
    assert (np.diff(totals, axis=0) <= 1e-9).all(), "both fall on the way"
    for zeta in (-0.1, 1.1):
        with pytest.raises(InputError, match="zeta"):
            mixed_cost(energy, accuracy, zeta)


def test_shares_of_many_queries_are_kept_within_the_gap() -> None:
    energy, accuracy = queries(2000)
    gamma = np.array([0.05, 0.2, 0.75])
    cost = mixed_cost(energy, accuracy, 0.5)
    exact = assign(cost, np.ones(2000), Shares.of(gamma, 2000, 1.0, 1.0))
    assert exact.served.sum(axis=0).tolist() == [100, 400, 1500]
    assert exact.gap < 1e-9, "counts make the linear program integral"
    least = assign(cost, np.ones(2000), Shares.of(gamma, 2000, 0.25, np.inf))
    assert (least.served.sum(axis=0) >= [25, 100, 375]).all()
    assert least.objective < exact.objective
    high = np.array([0.1, 0.2, 0.5]) * energy[:, 2].sum()
    timed = assign(cost, np.ones(2000), Shares(np.zeros(3), high), energy)
    assert ((timed.served * energy).sum(axis=0) <= high + 1e-6).all()
    assert 0 <= timed.gap <= 1e-3
    divided = assign(cost, np.ones(2000), Shares(np.zeros(3), high), energy, whole=False)
    assert divided.objective == pytest.approx(timed.bound)
    fractional = (divided.served > 1e-6) & (divided.served < 1 - 1e-6)
    assert fractional.any(axis=1).sum() <= 3, "all but as many queries as options are whole"


def test_prices_tell_what_a_share_is_worth() -> None:
    energy, accuracy = queries(200)
    cost = mixed_cost(energy, accuracy, 0.6)
    high = np.array([20.0, np.inf, np.inf])
    found = assign(cost, np.ones(200), Shares(np.zeros(3), high))
    more = assign(cost, np.ones(200), Shares(np.zeros(3), high + 1))
    assert found.price[0] > 0
    assert found.price[1:].tolist() == [0, 0]
    assert found.objective - more.objective == pytest.approx(found.price[0], rel=0.1)
    forced = assign(cost, np.ones(200), Shares(np.array([0.0, 0.0, 150.0]), np.full(3, np.inf)))
    assert forced.price[2] < 0
    chosen = (cost + found.price).argmin(axis=1)
    assert found.served[np.arange(200), chosen].mean() > 0.98, (
        "at these prices each query goes where the program puts it"
    )


def test_what_cannot_be_is_refused() -> None:
    energy, accuracy = queries(10)
    cost = mixed_cost(energy, accuracy, 0.5)
    with pytest.raises(InputError, match="shares: no assignment"):
        assign(cost, np.ones(10), Shares(np.zeros(3), np.full(3, 3.0)))
    cost[4] = np.inf
    with pytest.raises(InputError, match="class 4 can go nowhere"):
        assign(cost, np.ones(10), ANY)
    cost[4, 1] = 0.0
    assert assign(cost, np.ones(10), ANY).served[4].tolist() == [0, 1, 0]


@pytest.mark.parametrize("start", ["learnt", "none"])
def test_prices_steer_single_queries_to_the_shares(start: str) -> None:
    """With prices of other traffic, and even from none, the rule ends at the program's shares and near its cost."""
    gamma, count = np.array([0.2, 0.5, 0.3]), 4000
    past, now = (mixed_cost(*queries(count, seed), 0.6) for seed in (1, 2))
    shares = Shares.of(gamma, count, 1.0, 1.0)
    learnt = assign(past, np.ones(count), shares).price if start == "learnt" else np.zeros(3)
    best = assign(now, np.ones(count), shares)
    rule = PricedDispatch(learnt, shares, count, step=1e-3)
    chosen = np.array([rule.choose(one) for one in now])
    assert np.bincount(chosen, minlength=3) / count == pytest.approx(gamma, abs=0.02)
    spread = np.sort(now, axis=1)[:, ::2] @ np.array([-1.0, 1.0])
    assert now[np.arange(count), chosen].sum() - best.objective < 0.05 * spread.sum()
    unpriced = PricedDispatch(np.zeros(3), shares, count, step=0.0)
    free = np.bincount([unpriced.choose(one) for one in now], minlength=3) / count
    assert np.abs(free - gamma).max() > 0.2, "without prices it is elsewhere"


def test_upper_limits_alone_price_only_what_is_scarce() -> None:
    cost = np.array([1.0, 2.0])
    rule = PricedDispatch(np.zeros(2), Shares(np.zeros(2), np.array([25.0, np.inf])), 100, step=0.2)
    chosen = [rule.choose(cost) for _ in range(100)]
    assert chosen.count(0) == pytest.approx(25, abs=8)
    assert rule.price[0] > 0
    assert rule.price[1] == 0
    assert rule.choose(np.array([np.inf, 2.0])) == 1
