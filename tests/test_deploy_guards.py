"""The guards: bounds, rate, budget and needless writes, for any wish."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcluster.deploy.guards import BUDGETED, SPARED, Bounds, guard, in_safe_order, under_budget

ROUNDING_W = 1e-6


def bounds(size: int, **changes: Any) -> Bounds:
    whole = {"floor_w": 200.0, "ceiling_w": 700.0, "max_rise_w": 200.0, "max_fall_w": 300.0, "hysteresis_w": 5.0}
    return Bounds(
        **{name: np.full(size, value) for name, value in (whole | changes).items() if name != "min_interval_s"},
        min_interval_s=changes.get("min_interval_s", 2.0),
    )


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    size = draw(st.integers(1, 6))

    def column(low: float, high: float) -> np.ndarray[Any, Any]:
        return np.array(draw(st.lists(st.floats(low, high), min_size=size, max_size=size)))

    return {
        "wish_w": column(-1e4, 1e4),
        "in_force_w": column(100.0, 800.0),
        "on": np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size))),
        "beside_w": draw(st.floats(0.0, 500.0)),
        "budget_w": draw(st.floats(0.0, 6000.0)),
        "since_s": column(0.0, 10.0),
        "bounds": bounds(size),
    }


@given(cases())
def test_whatever_is_wished_bounds_and_budget_hold(case: dict[str, Any]) -> None:
    caps, own, on = guard(**case), case["bounds"], case["on"]
    assert (caps.watts >= own.floor_w - ROUNDING_W).all()
    assert (caps.watts <= own.ceiling_w + ROUNDING_W).all()
    inside = (case["in_force_w"] >= own.floor_w) & (case["in_force_w"] <= own.ceiling_w)
    rise_w = caps.watts - case["in_force_w"]
    assert (rise_w[inside] <= own.max_rise_w[inside] + ROUNDING_W).all()
    total_w = float(caps.watts[on].sum()) + case["beside_w"]
    least_w = float(own.floor_w[on].sum()) + case["beside_w"]
    assert total_w <= max(case["budget_w"], least_w) + ROUNDING_W


@given(cases())
def test_what_is_not_written_stays_and_what_is_written_has_a_cause(case: dict[str, Any]) -> None:
    caps, own = guard(**case), case["bounds"]
    np.testing.assert_array_equal(caps.watts[~caps.write], case["in_force_w"][~caps.write])
    inside = (case["in_force_w"] >= own.floor_w) & (case["in_force_w"] <= own.ceiling_w)
    hasty = caps.write & inside & (case["since_s"] < own.min_interval_s)
    slight = caps.write & inside & (np.abs(caps.watts - case["in_force_w"]) < own.hysteresis_w)
    if BUDGETED not in caps.reasons:
        assert not hasty.any()
        assert not slight.any()
    else:
        assert (caps.watts[hasty | slight] <= case["in_force_w"][hasty | slight]).all()


@given(cases())
def test_a_second_time_nothing_is_written(case: dict[str, Any]) -> None:
    once = guard(**case)
    again = guard(**{**case, "wish_w": once.watts, "in_force_w": once.watts, "since_s": np.zeros(len(once.watts))})
    np.testing.assert_allclose(again.watts, once.watts, atol=ROUNDING_W)


def test_a_wish_that_is_no_number_leaves_the_cap() -> None:
    in_force_w = np.array([500.0])
    caps = guard(np.array([np.nan]), in_force_w, np.array([True]), 0.0, 1e4, np.array([99.0]), bounds(1))
    assert caps.watts.tolist() == [500.0]
    assert not caps.write.any()


def test_the_budget_breaks_rate_hysteresis_and_interval() -> None:
    in_force_w, on = np.array([700.0, 700.0]), np.array([True, True])
    caps = guard(in_force_w, in_force_w, on, 0.0, 500.0, np.zeros(2), bounds(2))
    assert caps.watts.sum() == pytest.approx(500.0)
    assert BUDGETED in caps.reasons


def test_a_small_change_is_spared() -> None:
    in_force_w, on = np.array([500.0]), np.array([True])
    caps = guard(np.array([504.0]), in_force_w, on, 0.0, 1e4, np.array([99.0]), bounds(1))
    assert not caps.write.any()
    assert caps.reasons == (SPARED,)


def test_caps_come_down_by_the_same_share_of_what_is_above_the_floor() -> None:
    floor_w, on = np.array([200.0, 200.0, 100.0]), np.array([True, True, False])
    held_w = under_budget(np.array([700.0, 300.0, 400.0]), on, 50.0, 750.0, floor_w)
    assert held_w[:2].sum() + 50.0 == pytest.approx(750.0)
    assert (held_w[0] - 200) / 500 == pytest.approx((held_w[1] - 200) / 100)


def test_what_falls_is_written_first() -> None:
    assert in_safe_order([0, 1, 2], np.array([700.0, 300.0, 500.0]), np.array([500.0, 600.0, 500.0])) == [1, 2, 0]
