"""Telemetry: whole seconds from readings, gaps that stay gaps, and what is held to be telemetry."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcluster.forecaster.telemetry import Telemetry
from llmcluster.forecaster.telemetry.resample import Samples, second_counts, second_means, telemetry_of
from llmcluster.simulator.errors import InputError

# Whole seconds


def test_means_are_weighted_by_how_long_a_reading_holds() -> None:
    means = second_means(np.array([0.0, 0.25, 1.5, 2.0]), np.array([100.0, 200.0, 400.0, 0.0]), np.arange(4.0))
    assert means[:2] == pytest.approx([0.25 * 100 + 0.75 * 200, 0.5 * 200 + 0.5 * 400])
    assert np.isnan(means[2])  # the last reading holds for no known time


def test_a_gap_is_marked_and_half_a_second_is_enough() -> None:
    time_s = np.array([0.0, 1.0, 2.5, 4.4, 5.0, 6.0])
    means = second_means(time_s, np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), np.arange(7.0))
    # 1.0 to 2.5 is no gap, 2.5 to 4.4 is one: it leaves half of the third second and six tenths of the fifth.
    assert means[[0, 1, 2, 4, 5]] == pytest.approx([1, 2, 2, 4, 5])
    assert np.isnan(means[3])


@given(st.lists(st.tuples(st.floats(0.01, 1.4), st.floats(0, 700)), min_size=5, max_size=60))
def test_energy_is_kept_where_there_is_no_gap(steps: list[tuple[float, float]]) -> None:
    time_s = np.cumsum([0.0, *(step for step, _ in steps)])
    watts = np.array([*(watt for _, watt in steps), 0.0])
    whole = int(time_s[-1])
    means = second_means(time_s, watts, np.arange(whole + 1.0))
    lasts_s = np.diff(np.minimum(time_s, whole))
    assert np.isfinite(means).all()
    assert means.sum() == pytest.approx(float((watts[:-1] * lasts_s).sum()), abs=1e-6)


def test_no_second_knows_of_a_later_reading() -> None:
    time_s, watts = np.arange(0, 10, 0.3), np.arange(0, 10, 0.3)
    later = np.where(time_s > 5, 1e6, watts)
    grid_s = np.arange(10.0)
    assert (second_means(time_s, watts, grid_s)[:5] == second_means(time_s, later, grid_s)[:5]).all()
    assert second_means(time_s, later, grid_s)[5] > 1e5


@given(
    st.lists(st.tuples(st.floats(0.05, 6.0), st.one_of(st.none(), st.floats(50, 700))), min_size=4, max_size=40),
    st.floats(0.3, 3.0),
)
def test_nothing_is_invented(steps: list[tuple[float, float | None]], max_gap_s: float) -> None:
    """Second by second, by hand: what readings cover, and only from those that lie in it or hold on into it."""
    time_s = np.round(np.cumsum([0.0, *(step for step, _ in steps)]), 3)
    watts = np.array([*(np.nan if watt is None else watt for _, watt in steps), 100.0])
    grid_s = np.arange(np.floor(time_s[-1]) + 2)
    means = second_means(time_s, watts, grid_s, max_gap_s)
    for second, mean in enumerate(means):
        covered_s, joules, there = 0.0, 0.0, []
        for begin, end, watt in zip(time_s, time_s[1:], watts, strict=False):
            share = min(end, second + 1) - max(begin, second)
            if share > 0 and end - begin <= max_gap_s and not np.isnan(watt):
                covered_s, joules = covered_s + share, joules + watt * share
                there.append(watt)
        if abs(covered_s - 0.5) < 1e-6:
            continue  # rounding decides
        assert np.isnan(mean) == (covered_s < 0.5), (second, covered_s)
        if covered_s > 0.5:
            assert mean == pytest.approx(joules / covered_s)
            assert min(there) - 1e-6 <= mean <= max(there) + 1e-6


def test_counters_rise_by_what_was_read_and_restart_as_a_gap() -> None:
    time_s = np.array([0.0, 0.9, 1.9, 2.9, 3.9, 6.0, 7.0])
    counts = second_counts(time_s, np.array([5.0, 7.0, 7.0, 17.0, 2.0, 9.0, 12.0]), np.arange(8.0))
    assert counts[:3].tolist() == [2, 0, 10]
    assert np.isnan(counts[3:6]).all()  # the restart, and the gap from 3.9 to 6.0
    assert counts[6] == 3


def test_repeated_and_slightly_backward_times_are_counted_and_left_out() -> None:
    time_s = np.array([0.0, 1.0, 1.0, 0.4, 2.0, 3.0])
    telemetry = telemetry_of({"x": Samples(time_s, np.array([1.0, 9.0, 2.0, 9.0, 3.0, 4.0]))}, "here")
    assert telemetry.power_w[:, 0].tolist() == [1, 2, 3]
    assert telemetry.warnings == (
        "here: x: 1 readings left out whose time goes back",
        "here: x: 1 readings left out whose time is given again",
    )


def test_time_that_goes_far_back_is_refused_with_its_line() -> None:
    samples = Samples(np.array([0.0, 1.0, 2.0, -58.0, -57.0]), np.ones(5), line=np.arange(2, 7))
    with pytest.raises(InputError, match=r"x: time goes back by 60\.0 s, line 5"):
        telemetry_of({"x": samples}, "here")


def test_sparse_readings_are_refused_unless_they_are_allowed() -> None:
    samples = {"x": Samples(np.arange(0, 100, 15.0), np.arange(7.0))}
    with pytest.raises(InputError, match=r"readings are 15 s apart.*--max-gap"):
        telemetry_of(samples, "here")
    assert len(telemetry_of(samples, "here", max_gap_s=15.0)) == 90
    with pytest.raises(InputError, match=r"fewer than two readings"):
        telemetry_of({"x": Samples(np.zeros(1), np.zeros(1))}, "here")
    with pytest.raises(InputError, match=r"spans 1,157 days"):
        telemetry_of({"x": Samples(np.array([0.0, 1.0, 1e8]), np.ones(3))}, "here")


# What telemetry is


def make(power_w: Any, **more: Any) -> Telemetry:
    power = np.array(power_w, float)
    return Telemetry(power, tuple(f"gpu{i}" for i in range(power.shape[1])), **more)


def test_parts_and_channels() -> None:
    whole = make([[1, 10], [2, 20], [np.nan, 30]], start_s=5.0, covariates={"running": np.arange(6.0).reshape(3, 2)})
    assert whole.known.tolist() == [[True, True], [True, True], [False, True]]
    part = whole.part(1, 3)
    assert part.start_s == 6 and len(part) == 2
    assert part.select(["gpu1"]).power_w.tolist() == [[20], [30]]
    assert part.select(["gpu1"]).covariates["running"].tolist() == [[3], [5]]
    with pytest.raises(InputError, match="no channel 'gpu7'"):
        whole.select(["gpu7"])


def test_groups_add_power_and_average_temperature() -> None:
    covariates = {"running": np.array([[1.0, 2, 4]] * 2), "temperature_c": np.array([[30.0, 40, 90]] * 2)}
    whole = make([[1, 2, 3], [np.nan, 5, 6]], covariates=covariates, scale_w=np.array([10.0, 20, 40]))
    grouped = whole.grouped({"server": ["gpu0", "gpu1"], "all": ["gpu0", "gpu1", "gpu2"]})
    assert grouped.channels == ("server", "all")
    assert grouped.power_w[0].tolist() == [3, 6]
    assert np.isnan(grouped.power_w[1]).all()
    assert grouped.scale_w.tolist() == [30, 70]
    assert grouped.covariates["running"][0].tolist() == [3, 7]
    assert grouped.covariates["temperature_c"][0] == pytest.approx([35, 160 / 3])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"covariates": {"colour": np.ones((2, 1))}}, "no covariate is called 'colour'"),
        ({"covariates": {"running": np.ones((2, 2))}}, "running has shape"),
        ({"scale_w": np.zeros(1)}, "scale_w"),
    ],
)
def test_telemetry_that_does_not_hold(more: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make([[1], [2]], **more)
    with pytest.raises(InputError, match="for 2 channels"):
        Telemetry(np.ones((3, 1)), ("a", "b"))
