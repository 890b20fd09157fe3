"""Power of seconds from counters and meters of GPUs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcluster.deploy.meter import GpuMeter, Seconds
from llmcluster.deploy.readings import GpuReading


def reading(time_s: float, **told: float) -> GpuReading:
    return GpuReading(time_s=time_s, **told)  # type: ignore[arg-type]


@given(st.lists(st.tuples(st.floats(0.2, 5.0), st.floats(1.0, 700.0)), min_size=1, max_size=20))
def test_energy_between_looks_is_what_the_counter_gained(stretches: list[tuple[float, float]]) -> None:
    meter, time_s, energy_j = GpuMeter(averages=True), 10.0, 1e6
    meter.watts(reading(time_s, energy_j=energy_j))
    for length_s, watts in stretches:
        time_s, energy_j = time_s + length_s, energy_j + length_s * watts
        assert meter.watts(reading(time_s, energy_j=energy_j, power_w=9.0)) == pytest.approx(watts, rel=1e-6)


def test_a_counter_that_stands_still_tells_nothing_and_catches_up() -> None:
    meter = GpuMeter(averages=True)
    meter.watts(reading(0.0, energy_j=0.0))
    assert meter.watts(reading(1.0, energy_j=0.0, power_w=300.0)) == 300.0
    assert meter.watts(reading(2.0, energy_j=400.0, power_w=300.0)) == 200.0


def test_a_counter_that_falls_begins_anew() -> None:
    meter = GpuMeter(averages=True)
    meter.watts(reading(0.0, energy_j=5e6))
    assert meter.watts(reading(1.0, energy_j=3.0, mean_power_w=250.0)) == 250.0
    assert meter.watts(reading(2.0, energy_j=203.0, mean_power_w=250.0)) == 200.0


def test_without_a_counter_the_mean_counts_and_then_the_instant() -> None:
    meter = GpuMeter(averages=True)
    assert meter.watts(reading(0.0, mean_power_w=250.0, power_w=300.0)) == 250.0
    assert meter.watts(reading(1.0, power_w=300.0)) == 300.0
    assert meter.watts(reading(2.0)) is None


def test_a_meter_of_instants_prefers_the_instant() -> None:
    meter = GpuMeter(averages=False)
    meter.watts(reading(0.0, energy_j=0.0, power_w=300.0))
    assert meter.watts(reading(1.0, energy_j=200.0, mean_power_w=250.0, power_w=300.0)) == 300.0
    assert meter.watts(reading(2.0, energy_j=400.0)) == 200.0


@given(st.lists(st.floats(-0.4, 0.4), min_size=1, max_size=50))
def test_looks_that_waver_lose_and_add_no_second(jitter: list[float]) -> None:
    seconds = Seconds(1, 100)
    seconds.add(0.0, np.zeros(1))
    rows = [seconds.add(1.0 + i + wavers, np.array([float(i)])) for i, wavers in enumerate(jitter)]
    assert [len(row) for row in rows] == [1] * len(jitter)


def test_a_late_look_stands_for_all_seconds_since() -> None:
    seconds = Seconds(2, 5)
    assert seconds.last(3).tolist() == [[0.0, 0.0]]
    seconds.add(100.0, np.zeros(2))
    assert len(seconds.add(103.1, np.array([1.0, 2.0]))) == 3
    seconds.add(104.0, np.array([3.0, 4.0]))
    assert seconds.last(2).tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert seconds.last(5).tolist() == [[1.0, 2.0]] * 4 + [[3.0, 4.0]]
