"""Power limits: what holds, what is foreseen, and by how much rows exceed theirs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcluster.simulator.limits import Cut, PowerLimit, RowLimits, outage
from llmcluster.simulator.signals import constant, through

LEADS = np.array([0, 30, 60])
PLAN = through(((0, 1000.0), (100, 1000.0), (100, 800.0)))


def test_an_outage_steps_down_and_up_again() -> None:
    left = outage(50, 20, 0.25)
    assert left.at([0, 49.9, 50, 69.9, 70, 99]).tolist() == [1, 1, 0.75, 0.75, 1, 1]


def test_an_outage_with_ramps_takes_its_time() -> None:
    left = outage(50, 30, 0.4, 10)
    assert left.at([50, 55, 60, 80, 85, 90]) == pytest.approx([1, 0.8, 0.6, 0.6, 0.8, 1])


def test_an_outage_shorter_than_its_ramp_still_reaches_its_depth() -> None:
    assert outage(0, 1, 0.5, 10).at([0, 10, 20]).tolist() == [1, 0.5, 1]


def test_a_plan_is_foreseen() -> None:
    limit = PowerLimit(PLAN)
    for now_s in (0, 50, 71, 200):
        assert (limit.foreseen(now_s, LEADS) == limit.at(now_s + LEADS)).all()


def test_cuts_multiply() -> None:
    limit = PowerLimit(PLAN, (Cut(outage(10, 50, 0.5)), Cut(outage(40, 50, 0.2))))
    assert limit.at([0, 10, 40, 60, 90]) == pytest.approx([1000, 500, 400, 800, 1000])


@given(st.integers(0, 400), st.integers(1, 300), st.integers(0, 400))
def test_a_failure_is_not_foreseen_and_lasts_as_far_as_one_knows(start_s: int, duration_s: int, now_s: int) -> None:
    plan, cut = PowerLimit(PLAN), Cut(outage(start_s, duration_s, 0.25))
    limit = PowerLimit(PLAN, (cut,))
    seen = limit.foreseen(now_s, LEADS)
    assert seen[0] == limit.at(now_s)
    share = 0.75 if start_s <= now_s < start_s + duration_s else 1.0
    assert (seen == share * plan.at(now_s + LEADS)).all()


@pytest.mark.parametrize(("now_s", "foreseen"), [(69, [1, 1, 1]), (70, [1, 1, 0.75]), (160, [0.75, 0.75, 1])])
def test_demand_response_is_foreseen_from_its_notice_on(now_s: float, foreseen: list[float]) -> None:
    limit = PowerLimit(constant(1.0), (Cut(outage(130, 90, 0.25), known_s=70),))
    assert limit.foreseen(now_s, LEADS).tolist() == foreseen


ROW = np.array([0, 0, 1, 2, 2])
TDP_W = np.array([400.0, 400, 700, 700, 700])


def rows() -> RowLimits:
    return RowLimits(
        [PowerLimit(through(((0, 500.0), (10, 500.0), (10, 300.0)))), None, PowerLimit(constant(900.0))], ROW, TDP_W
    )


def test_rows_are_held_to_their_own_limits() -> None:
    power_w = np.array([[300.0, 300, 700, 450, 450], [100, 100, 700, 600, 500], [200, 150, 0, 0, 0]])
    assert rows().rows == (0, 2)
    assert rows().over_w(power_w, np.array([0, 9, 10])).tolist() == [[100, 0], [0, 200], [50, 0]]


def test_head_room_is_that_of_the_slots_own_row() -> None:
    power_w = np.array([100.0, 150, 300, 500, 500])
    seen = rows().headroom_w(power_w, 5.0, (0, 30))
    assert seen.tolist() == [[250, 250, 400, -100, -100], [50, 50, 400, -100, -100]]


def test_without_limits_nothing_is_over() -> None:
    none = RowLimits([None, None, None], ROW, TDP_W)
    assert none.rows == ()
    assert none.over_w(np.full((3, 5), 1e6), np.arange(3)).shape == (3, 0)
