"""From the simulator to the real stack and back: what an agent observes is the same, feature by feature."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmcluster.agents.base import View
from llmcluster.deploy.rehearsal.live import SCENARIO
from llmcluster.deploy.rehearsal.stage import Stage
from llmcluster.envs.actions import SERVE, SLEEP, ClusterAction
from llmcluster.envs.perception import metered
from llmcluster.envs.telemetry import Telemetry
from llmcluster.simulator.kernels.state import LOADING, SERVING, SLEEPING
from llmcluster.simulator.lifecycle import START_JITTER
from llmcluster.tests.lockstep import Lockstep, lockstep, traffic

TICKS = 5
RATE_PER_S = 1.25
"""Requests of each slot: few enough for one to drain within a tick."""
EXACT = 1e-6
"""Counters and gauges come as they are; observations are 32-bit floats."""


def tolerances(lock: Lockstep) -> dict[str, float]:
    """What meters resolve, in the units of each feature; all others are the same."""
    gpus = max(len(slot.gpus) for slot in lock.config.slots)
    mhz = min(kind.clock_max_mhz for kind in lock.stage.feed.kinds)
    return {
        # Two readings of energy of each GPU, a second apart, in steps of 1 mJ; power and limits in steps of 1 mW.
        "power": gpus * 1e-3 * 1.01,
        "cap": gpus * 0.5e-3 * 1.01,
        # Whole degrees and whole megahertz.
        "temperature": 0.5,
        "clock": 0.5 / mhz,
        # The real cluster knows how long a start takes on average, the simulated one how long this one will.
        "ready_in": START_JITTER * 60.0,
        # Latency is measured where the answers pass, in steps of this clock: few requests are that near to a limit.
        "slo_attainment": 0.1,
    }


@pytest.fixture(params=["rehearsal", "small"])
def lock(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Pairs of H100, whose meters average; and one beside an A100, whose meter tells the instant."""
    source = SCENARIO if request.param == "rehearsal" else request.param
    stage = Stage(source, tmp_path, ())
    made = lockstep(stage, traffic(TICKS * 10.0, RATE_PER_S * len(stage.machine.slots)))
    with made.running():
        yield made


def compare(lock: Lockstep, real: Telemetry, simulated: Telemetry) -> None:
    builder, allowed = lock.env.observations, tolerances(lock)
    seconds_w = np.asarray(simulated.power_w)[-len(real.power_w) :]
    np.testing.assert_allclose(real.power_w, seconds_w, atol=allowed["power"], err_msg="each second's power")
    nothing = np.zeros((len(lock.env.fleet) + 1, len(builder.forecast_features)))
    one, other = (builder.build(telemetry, nothing) for telemetry in (real, simulated))
    seen, true = View(one, builder), View(other, builder)
    for feature in builder.slot_features:
        np.testing.assert_allclose(
            seen.slot(feature.name),
            true.slot(feature.name),
            rtol=EXACT,
            atol=allowed.get(feature.name, EXACT),
            err_msg=f"slots: {feature.name} at {lock.now_s} s",
        )
    slots = len(lock.env.fleet)
    for feature in builder.cluster_features:
        few = allowed.get(feature.name, EXACT) * (slots if feature.name == "power" else 1)
        if feature.name.startswith("budget"):
            continue  # whose budget it is, the configuration says
        assert seen.cluster(feature.name) == pytest.approx(true.cluster(feature.name), rel=EXACT, abs=few), feature.name


def test_the_real_stack_shows_what_the_simulator_shows(lock: Lockstep) -> None:
    fleet, rng, machine = lock.env.fleet, np.random.default_rng(1), lock.machine
    perceptions = [metered("persistence", fleet) for _ in range(2)]
    for perception in perceptions:
        perception.reset(lock.plant)
    seen: set[int] = set()  # at the start, before its first second, the simulator has no readings to compare
    for tick in range(TICKS):
        chosen = np.array([rng.integers(size) for size in lock.env.codec.layout.sizes])
        action = lock.env.codec.decode(chosen)
        lifecycle = np.zeros(len(fleet), np.int64)
        lifecycle[-1] = {1: SLEEP, 3: SERVE}.get(tick, 0)
        action = ClusterAction(
            router=action.router,
            route_weight=np.maximum(action.route_weight, 0.1),  # type: ignore[arg-type]
            cap_w=action.cap_w,
            lifecycle=lifecycle,
            concurrency=None if action.concurrency is None else np.maximum(action.concurrency, 16),
        )
        before = lock.plant.read()
        lock.plant.carry_out(action, lock.plant.plan(action, before), before)
        routed = ClusterAction(router=action.router, route_weight=action.route_weight, concurrency=action.concurrency)
        lock.of_machine(lambda routed=routed: machine.plant.apply(routed))
        real, simulated = lock.pass_tick(), lock.of_machine(lambda: machine.telemetry)
        compare(lock, real, simulated)
        forecasts = [
            perception.forecast(lock.plant, told)
            for perception, told in zip(perceptions, (real, simulated), strict=True)
        ]
        np.testing.assert_allclose(*forecasts, atol=tolerances(lock)["power"] * len(fleet))
        seen |= set(real.status.tolist())
    assert seen >= {SERVING, LOADING, SLEEPING}
    assert lock.done() > 80
    assert not [outcome.fault for outcome in lock.outcomes if outcome.fault]
