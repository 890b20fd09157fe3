"""What no server tells: head-room of rows and heat of breakers, by the simulator's own law from measured power."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from llmcluster.deploy.config import LimitsConfig, SiteConfig
from llmcluster.deploy.site import SourceSpec
from llmcluster.deploy.surroundings import Surroundings
from llmcluster.envs.cluster_env import LLMClusterEnv


@pytest.mark.parametrize("level", ["row", "rack"])
def test_rows_and_breakers_are_as_in_the_simulator(tiny: Callable[..., dict[str, Any]], level: str) -> None:
    content = tiny(rate_per_s=30.0, horizon_s=120)
    row = content["cluster"]["rows"][0] | {"power_limit_share": 0.7}
    held = row if level == "row" else row["racks"][0]
    held["breaker"] = {"rating_share": 0.5}
    content["cluster"] = {"rows": [row]}
    env = LLMClusterEnv(content, forecaster="none")
    env.reset(seed=3)
    assert env.plant is not None
    plant, tick_s = env.plant, env.scenario.tick_s
    around = Surroundings(env.scenario, env.blueprint, LimitsConfig(), SiteConfig(), 5.0)
    keep = np.zeros(env.action_space.shape or (), np.int64)
    keep[: len(env.fleet) * 2] = env.codec.steps - 1  # weights and caps at their highest
    hottest = 0.0
    for _ in range(env.scenario.ticks):
        env.step(keep)
        if plant.cluster.protection.trips:
            break  # from here on a breaker is open, and somebody must close it
        for second_w in plant.cluster.history.column("energy_j", tick_s):
            around.carry(second_w)
        found = around.read(env.telemetry.power_w[-1])
        for name in ("rack_breaker", "row_breaker", "row_headroom_w"):
            np.testing.assert_allclose(found[name], getattr(env.telemetry, name), atol=1e-4, err_msg=name)
        hottest = max(hottest, float(found[f"{level}_breaker"].max()))
    assert hottest > 0.1


def test_the_site_tells_weather_and_prices() -> None:
    env = LLMClusterEnv("heat-wave", forecaster="none")
    site = SiteConfig(
        outside_c=SourceSpec(schedule=((0, 30), (60, 36))), inlet_c=SourceSpec(value=27.0), price_per_kwh=0.1
    )
    now = [0.0]
    around = Surroundings(env.scenario, env.blueprint, LimitsConfig(), site, 5.0, lambda: now[0])
    found = around.read(np.zeros(len(env.fleet)))
    np.testing.assert_array_equal(found["outside_c"], [30, 33, 36])
    assert (found["inlet_c"] == 27.0).all() and len(found["inlet_c"]) == len(env.fleet)
    np.testing.assert_array_equal(found["price_per_kwh"], [0.1] * 3)
    assert found["carbon_g_per_kwh"] is None
    now[0] = 60.0
    np.testing.assert_array_equal(around.read(np.zeros(len(env.fleet)))["outside_c"], [36, 36, 36])
