"""The air at the inlets, against sums by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from llmcluster.simulator.blueprint import Blueprint
from llmcluster.simulator.cluster import Cluster
from llmcluster.simulator.facility import AIR_J_PER_M3_K, Facility
from llmcluster.simulator.kernels.state import SERVING
from llmcluster.simulator.limits import outage
from llmcluster.simulator.signals import PiecewiseLinear, constant, through
from llmcluster.simulator.topology import AirSpec, ClusterSpec, lay_out
from llmcluster.simulator.units import PS_PER_S, to_ps
from llmcluster.simulator.workload.table import RequestTable

MODEL = "Llama-3.1-8B"
NOTHING = RequestTable.from_columns([], [], [])


def spec(airflow: tuple[float | None, ...] = (None, None), **air: Any) -> ClusterSpec:
    """Two servers of two H100 in each row; the second stands 3 K warmer and heats its own air twice as much."""
    servers = [
        {"gpu": "H100-80GB", "gpus": 2, "model": MODEL, "inlet_c": 20.0, "inlet_k_per_kw": 1.0},
        {"gpu": "H100-80GB", "gpus": 2, "model": MODEL, "inlet_c": 23.0, "inlet_k_per_kw": 2.0},
    ]
    rows = [{"racks": [{"servers": servers}], "airflow_m3_per_s": flow} for flow in airflow]
    return ClusterSpec.model_validate({"rows": rows, "air": air})


def facility(of: ClusterSpec, outside_c: PiecewiseLinear | None = None, **others: Any) -> Facility:
    return Facility(of, lay_out(of), outside_c, **others)


POWER_W = np.array([300.0, 500, 100, 100, 700, 700, 0, 0])
OWN_C = np.array([20.8, 20.8, 23.4, 23.4, 21.4, 21.4, 23.0, 23.0])


def test_place_and_own_heat() -> None:
    assert facility(spec()).inlet_c(0, POWER_W) == pytest.approx(OWN_C)


@pytest.mark.parametrize(
    ("outside_c", "rise_k"), [(-10, 0), (15, 0), (20, 3.5), (25, 7), (32.5, 9), (40, 11), (50, 11)]
)
def test_outside_temperature_has_three_regimes(outside_c: float, rise_k: float) -> None:
    assert facility(spec(), constant(outside_c)).inlet_c(0, POWER_W) == pytest.approx(OWN_C + rise_k)


def test_the_weather_of_the_hour_counts() -> None:
    house = facility(spec(outside_rise_k=[[0, 0], [100, 100]]), through(((0, 10.0), (3600, 30.0))))
    assert house.inlet_c(1800 * PS_PER_S, POWER_W) == pytest.approx(OWN_C + 20)


def test_enough_air_does_not_recirculate() -> None:
    """1,400 W over 12 K need 0.098 m³/s."""
    enough = 1400 / 12 / AIR_J_PER_M3_K
    for flow in (enough * 1.0001, 10.0, None):
        house = facility(spec((flow, flow)))
        house.inlet_c(0, POWER_W)
        assert house.inlet_c(to_ps(1e4), POWER_W) == pytest.approx(OWN_C)


def test_fans_follow_the_load_down_to_their_slowest_turn() -> None:
    """Half a kilowatt warms 0.035 m³/s by 12 K."""
    of = spec()
    content = of.model_dump()
    for row in content["rows"]:
        for server in row["racks"][0]["servers"]:
            server["fan_min_m3_per_s"] = 0.03
    slow = ClusterSpec.model_validate(content)
    power_w = np.array([250.0, 250, 10, 0, 0, 0, 700, 700])
    needed = np.array([500, 10, 0, 1400]) / 12 / AIR_J_PER_M3_K
    assert facility(of).airflow_m3_per_s(power_w) == pytest.approx(needed)
    assert facility(slow).airflow_m3_per_s(power_w) == pytest.approx(np.maximum(needed, 0.03))
    assert needed[0] == pytest.approx(0.035, abs=1e-4)


def test_fans_that_turn_faster_than_needed_draw_in_exhaust() -> None:
    """100 W in air of 0.04 m³/s: of the 0.1 m³/s that the fans move, the rest has been through the servers before."""
    servers = [{"gpu": "H100-80GB", "gpus": 1, "model": MODEL, "inlet_k_per_kw": 0.0, "fan_min_m3_per_s": 0.05}] * 2
    of = ClusterSpec.model_validate({"rows": [{"racks": [{"servers": servers}], "airflow_m3_per_s": 0.04}]})
    house = facility(of)
    power_w = np.array([50.0, 50.0])
    house.inlet_c(0, power_w)
    warmer = house.inlet_c(to_ps(1e4), power_w) - 24.0
    # What leaves the row with its supply carries off all the heat.
    exhaust_k = warmer[0] + 100 / (0.1 * AIR_J_PER_M3_K)
    assert 0.04 * AIR_J_PER_M3_K * exhaust_k == pytest.approx(100)
    assert warmer == pytest.approx([warmer[0]] * 2) and warmer[0] > 1


def test_too_little_air_recirculates_in_its_row_alone() -> None:
    """Half the air takes up twice 12 K, so that the inlet is 12 K warmer; the first row draws 1,000 W."""
    house = facility(spec((1000 / 24 / AIR_J_PER_M3_K, 1.0)))
    house.inlet_c(0, POWER_W)
    assert house.inlet_c(to_ps(1e5), POWER_W) == pytest.approx(OWN_C + np.repeat([12.0, 0.0], 4))


def test_the_room_warms_and_cools_with_its_time_constant() -> None:
    house = facility(spec((1000 / 24 / AIR_J_PER_M3_K, 1.0), tau_s=60.0))
    house.inlet_c(0, POWER_W)
    assert house.recirculation_k.tolist() == [0, 0]
    house.inlet_c(60 * PS_PER_S, POWER_W)
    assert house.recirculation_k[0] == pytest.approx(12 * (1 - np.exp(-1)))
    warm = house.recirculation_k[0]
    house.inlet_c(180 * PS_PER_S, 0 * POWER_W)
    assert house.recirculation_k[0] == pytest.approx(warm * np.exp(-2))


@settings(max_examples=50)
@given(st.lists(st.floats(0.01, 50), min_size=1, max_size=20))
def test_it_does_not_matter_how_often_one_looks(pauses: list[float]) -> None:
    one, often = (facility(spec((0.02, 0.02))) for _ in range(2))
    now_ps = 0
    for pause in pauses:
        now_ps += to_ps(pause)
        often.inlet_c(now_ps, POWER_W)
    assert one.inlet_c(now_ps, POWER_W) == pytest.approx(often.inlet_c(now_ps, POWER_W), rel=1e-9)


def test_failing_fans_take_the_air_of_their_row() -> None:
    enough = 1400 / 12 / AIR_J_PER_M3_K
    house = facility(spec((enough, enough)), airflow=[[], [outage(100, 1e6, 0.5), outage(100, 1e6, 0.5)]])
    house.inlet_c(99 * PS_PER_S, POWER_W)
    assert house.recirculation_k == pytest.approx([0, 0])
    house.inlet_c(to_ps(1e5), POWER_W)
    assert house.recirculation_k == pytest.approx([0, 12 * (4 - 1)])


def test_a_cluster_breathes_the_air_of_its_facility() -> None:
    of = spec((0.02, 1.0))
    plan = Blueprint.of(of)
    world = Cluster(plan, NOTHING, np.random.default_rng(0), 8, facility=facility(of, constant(30.0)))
    assert world.engine.slots["inlet_c"] == pytest.approx(np.tile([20, 20, 23, 23], 2) + 7 + 4 / 3)
    world.advance(to_ps(2000))
    slots, idle_w = world.engine.slots, plan.deployments[0].power.idle_w
    assert (slots["status"] == SERVING).all()
    warmer_k = 4 * idle_w / (0.02 * AIR_J_PER_M3_K) - 12
    base_c = np.tile([20, 20, 23, 23], 2) + 7 + 4 / 3 + np.tile([1, 1, 2, 2], 2) * 2 * idle_w / 1000
    assert slots["inlet_c"] == pytest.approx(base_c + np.repeat([warmer_k, 0], 4), rel=1e-6)
    assert warmer_k > 5


def test_breakpoints_of_the_outside_temperature_ascend() -> None:
    with pytest.raises(ValidationError, match=r"outside temperatures of outside_rise_k .* must ascend"):
        AirSpec(outside_rise_k=((20, 0), (10, 5)))
