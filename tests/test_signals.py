"""Signals: what they are made of, when they are drawn anew, and what does not hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from llmcluster.simulator.signals import SignalSpec, ascend, constant, random_holds, through

HOUR_S = 3600.0


def drawn(seed: int = 0, clock: float = 0.0, **fields: Any) -> np.ndarray[Any, Any]:
    return SignalSpec(**fields).draw(HOUR_S, np.random.default_rng(seed), clock).at(np.arange(HOUR_S))


def test_a_level_stays() -> None:
    assert (drawn(level=7.5) == 7.5).all()
    assert (drawn() == 0.0).all()
    assert constant(3.0).at([-1.0, 0.0, 1e9]).tolist() == [3.0] * 3


def test_breakpoints_make_ramps_and_steps() -> None:
    signal = through(((0, 1.0), (10, 1.0), (20, 3.0), (20, 0.0), (30, 5.0)))
    times = [-5, 10, 15, 19.999999, 20, 25, 30, 99]
    assert signal.at(times) == pytest.approx([1, 1, 2, 3, 0, 2.5, 5, 5], abs=1e-6)
    assert signal.at(20) == 0.0  # a step holds from its own instant on


def test_a_signal_of_lines_is_exact_between_seconds() -> None:
    signal = SignalSpec(points=((0, 0.0), (0.5, 0.0), (0.5, 1.0))).draw(10, np.random.default_rng(0))
    assert signal.at([0.4999, 0.5]).tolist() == [0.0, 1.0]


def test_the_swing_starts_at_the_trough_and_peaks_half_a_cycle_later() -> None:
    values = drawn(level=10.0, swing=4.0, period_s=600.0)
    assert values[[0, 150, 300, 450, 600]] == pytest.approx([6, 10, 14, 10, 6])
    assert drawn(level=10.0, swing=4.0, period_s=600.0, phase=0.5)[0] == pytest.approx(14)


def test_random_phases_of_one_run_are_the_same_time_of_day() -> None:
    early = {name: drawn(clock=0.3, level=1.0, swing=0.5, phase=name) for name in ("random", 0.3)}
    assert (early["random"] == early[0.3]).all()
    assert (drawn(clock=0.3, level=1.0, swing=0.5, phase=0.0) == drawn(level=1.0, swing=0.5)).all()


def test_noise_has_its_deviation_and_its_correlation_time() -> None:
    spec = SignalSpec(level=5.0, noise=2.0, noise_s=30.0)
    values = spec.draw(200_000, np.random.default_rng(1)).at(np.arange(200_000)) - 5.0
    assert values.mean() == pytest.approx(0.0, abs=0.15)
    assert values.std() == pytest.approx(2.0, rel=0.05)
    for lag in (30, 60):
        correlation = (values[:-lag] * values[lag:]).mean() / values.var()
        assert correlation == pytest.approx(np.exp(-lag / 30.0), abs=0.05)


def test_noise_comes_from_the_generator() -> None:
    one, same, other = (drawn(seed, noise=1.0) for seed in (3, 3, 4))
    assert (one == same).all() and (one != other).any()


@given(st.floats(-5, 5), st.integers(0, 99))
def test_a_signal_never_falls_below_its_least(least: float, seed: int) -> None:
    values = drawn(seed, swing=3.0, period_s=900.0, noise=2.0, least=least)
    assert values.min() >= least
    free = drawn(seed, swing=3.0, period_s=900.0, noise=2.0)
    assert (values == np.maximum(free, least)).all()


def test_the_least_holds_between_breakpoints_too() -> None:
    values = drawn(points=((0, -10.0), (100, 10.0)), least=0.0)
    assert values[[0, 50, 75, 100]].tolist() == [0, 0, 5, 10]


@pytest.mark.parametrize(
    ("fields", "scale"),
    [
        ({"level": 0.095}, 0.095),
        ({"level": -2.0}, 2.0),
        ({}, 1.0),
        ({"points": [[0, 1], [10, 3]]}, 2.0),
        ({"points": [[0, 4], [30, 4], [30, 1], [40, 1]]}, 3.25),
        ({"points": [[7, 4]]}, 4.0),
        ({"level": 8.0, "swing": 5.0, "noise": 1.0}, 8.0),
    ],
)
def test_the_scale_is_the_size_of_the_mean(fields: dict[str, Any], scale: float) -> None:
    assert SignalSpec(**fields).scale == pytest.approx(scale)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"level": 1.0, "points": [[0, 1]]}, "level or points, not both"),
        ({"points": [[10, 1], [0, 1]]}, "the times of points .* must ascend"),
        ({"points": [[0, 1], [0, 2], [0, 3]]}, "at most two alike"),
        ({"swing": -1.0}, "greater than or equal to 0"),
        ({"period_s": 0.0}, "greater than 0"),
        ({"phase": "noon"}, "'random'"),
        ({"level": float("nan")}, "finite"),
        ({"levels": [1.0]}, "Extra inputs"),
    ],
)
def test_what_does_not_hold_is_refused(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(ValidationError, match=match):
        SignalSpec(**fields)


def test_empty_points_ascend() -> None:
    ascend((), "nothing")


@given(st.integers(0, 99))
def test_holds_are_at_levels_and_ramps_between_them(seed: int) -> None:
    signal = random_holds(np.random.default_rng(seed), 900.0, (1.0, 0.5, 0.2), 60.0, 10.0)
    values = signal.at(np.arange(900))
    assert values[0] == 1.0 and values.min() >= 0.2 and values.max() <= 1.0
    assert np.isin(values, (1.0, 0.5, 0.2)).mean() > 0.5
    assert np.abs(np.diff(values)).max() <= 0.08 + 1e-9
