"""Bootstrap intervals: exact where the answer is known, and right as often as they say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcluster.experiments.statistics import Interval, mean_interval, paired_interval

TRIALS, SIZE = 1000, 30
finite = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("draw", ["normal", "exponential"])
def test_intervals_hold_the_mean_as_often_as_they_say(draw: str) -> None:
    source, held = rng(1), 0
    for _ in range(TRIALS):
        sample = source.normal(5.0, 2.0, SIZE) if draw == "normal" else source.exponential(5.0, SIZE)
        interval = mean_interval(sample, source, resamples=1000)
        held += interval.low <= 5.0 <= interval.high
    assert 0.90 <= held / TRIALS <= 0.98


def test_a_level_of_half_holds_the_mean_half_the_time() -> None:
    source, held = rng(2), 0
    for _ in range(TRIALS):
        interval = mean_interval(source.normal(size=SIZE), source, level=0.5, resamples=1000)
        held += interval.low <= 0.0 <= interval.high
    assert 0.44 <= held / TRIALS <= 0.56


def test_width_is_that_of_the_normal_approximation() -> None:
    sample = rng(3).normal(size=400)
    interval = mean_interval(sample, rng())
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * sample.std() / 20, rel=0.05)


def test_no_spread_no_width() -> None:
    assert mean_interval([3.0, 3.0, 3.0], rng()) == Interval(3.0, 3.0, 3.0)


def test_one_value_has_a_mean_and_no_interval() -> None:
    for values in ([7.0], [np.nan, 7.0]):
        interval = mean_interval(values, rng())
        assert interval.mean == 7.0
        assert np.isnan([interval.low, interval.high]).all()


def test_no_value_has_nothing() -> None:
    assert np.isnan(mean_interval([], rng())).all()
    assert np.isnan(mean_interval([np.nan, np.nan], rng())).all()


def test_nan_is_left_out() -> None:
    assert mean_interval([1.0, np.nan, 2.0, 4.0], rng()) == mean_interval([1.0, 2.0, 4.0], rng())


def test_same_seed_same_interval() -> None:
    values = rng(4).normal(size=9)
    assert mean_interval(values, rng(5)) == mean_interval(values, rng(5))
    assert mean_interval(values, rng(5)) != mean_interval(values, rng(6))


@settings(max_examples=50, deadline=None)
@given(finite)
def test_bounds_lie_in_the_sample_and_grow_with_the_level(values: list[float]) -> None:
    tolerance = 1e-9 * max(map(abs, values))
    narrow, wide = (mean_interval(values, rng(), level, resamples=500) for level in (0.5, 0.99))
    assert min(values) - tolerance <= wide.low <= narrow.low <= narrow.high <= wide.high <= max(values) + tolerance


def test_pairs_cancel_what_they_share() -> None:
    traffic = rng(7).normal(0.0, 100.0, 20)
    assert paired_interval(traffic + 1.0, traffic, rng()) == pytest.approx((1.0, 1.0, 1.0))


def test_pairs_with_a_nan_are_left_out() -> None:
    a, b = [1.0, np.nan, 5.0, 2.0], [0.0, 1.0, 2.0, np.nan]
    assert paired_interval(a, b, rng()) == mean_interval([1.0, 3.0], rng())


def test_pairs_must_match() -> None:
    with pytest.raises(ValueError, match="same episodes"):
        paired_interval([1.0, 2.0], [1.0], rng())
