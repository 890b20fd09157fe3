"""The one formula of iterations outside the engine: by hand, and against the reference engine's integers."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcluster.experiments.fidelity.batches import Batches, governed, needs
from llmcluster.experiments.fidelity.iteration import Activity, Needs, Times, Watts, activity, govern, mean_power_w
from llmcluster.simulator.blueprint import Blueprint, Deployment
from llmcluster.simulator.kernels.state import J_PER_UNIT, UNITS_PER_W
from llmcluster.simulator.reference.physics import Physics, Work
from llmcluster.simulator.topology import ClusterSpec
from llmcluster.simulator.units import PS_PER_S

WATTS = Watts(100.0, 50.0, 200.0, 80.0, 60.0, 10.0)
LADDER = (np.array([0.25, 0.5, 1.0]), np.array([0.1, 0.3, 1.0]))
SLOTS = [("H100-80GB", "Qwen3-30B-A3B", 1), ("A100-80GB", "Llama-3.1-70B", 4), ("A40", "NVIDIA-Nemotron-Nano-9B-v2", 1)]


@cache
def slot(number: int) -> tuple[Deployment, Physics]:
    gpu, model, gpus = SLOTS[number]
    server = {"gpu": gpu, "gpus": gpus, "tp": gpus, "model": model}
    of = Blueprint.of(ClusterSpec.model_validate({"rows": [{"racks": [{"servers": [server]}]}]}))
    place = int(of.initial[0])
    return of.deployments[place], Physics(of.tables, place)  # type: ignore[arg-type]


@st.composite
def works(draw: st.DrawFn) -> Work:
    """Decodes, with or without the chunk of a prompt."""
    decodes, context, chunk = draw(st.integers(1, 256)), draw(st.integers(1, 8000)), draw(st.integers(0, 1700))
    pairs = decodes * context + chunk * (chunk + 1) // 2
    return Work(decodes + chunk, decodes + bool(chunk), pairs, decodes * context, bool(chunk))


def batches(*some: Work) -> Batches:
    return Batches(*(np.array([getattr(one, name) for one in some]) for name in Batches._fields))


def test_length_and_power_by_hand() -> None:
    """At half the clock compute takes 6, longer than weights and cache together."""
    times = Needs(host=1.0, gap=0.5, sample=0.25, link=0.75, compute=3.0, weights=2.0, cache=1.5).at(0.5)
    assert times == Times(8.5, 1.0, 6.0, 2.25, 1.5, 0.75)  # type: ignore[arg-type]
    assert activity(times, 0.3) == pytest.approx(Activity(2.25, 1.8, 2.25, 1.5, 0.75))  # type: ignore[arg-type]
    above = 50 * 2.25 + 200 * 1.8 + 80 * 2.25 + 60 * 1.5 + 10 * 0.75
    assert mean_power_w(times, WATTS, 0.3) == pytest.approx(100 + above / 8.5)
    read = Needs(1.0, 0.5, 0.25, 0.75, 3.0, 2.0, 1.5).at(1.0)
    assert read.length == 1 + 0.5 + 0.25 + 0.75 + 3.5


def test_the_governor_takes_the_highest_step_under_the_cap_for_each_alone() -> None:
    asked = Needs(np.zeros(3), 0.0, 0.0, 0.0, np.array([1.0, 0.0, 1.0]), np.array([0.0, 1.0, 0.9]), np.zeros(3))
    power = np.stack([mean_power_w(asked.at(clock), WATTS, scale) for clock, scale in zip(*LADDER, strict=True)])
    for cap_w in np.append(power.ravel(), [90.0, 130.0, 250.0, 1e3]).tolist():
        step, times, power_w = govern(asked, WATTS, *LADDER, cap_w)
        allowed = [np.flatnonzero(power[:, i] <= cap_w) for i in range(3)]
        assert step.tolist() == [steps[-1] if len(steps) else 0 for steps in allowed]
        assert power_w.tolist() == power[step, np.arange(3)].tolist()
        assert times.length == pytest.approx(asked.at(LADDER[0][step]).length)
    alone = govern(Needs(*(np.ravel(part)[-1] for part in asked)), WATTS, *LADDER, 250.0)
    assert alone.step == govern(asked, WATTS, *LADDER, 250.0).step[2]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(SLOTS) - 1), works(), works(), st.floats(0, 1))
def test_iterations_are_those_of_the_engine(number: int, one: Work, other: Work, share: float) -> None:
    deployment, physics = slot(number)
    power = deployment.power
    cap_w = power.cap_min_w + share * (power.cap_max_w - power.cap_min_w)
    ran = governed(deployment.cost, power._replace(cap_max_w=cap_w), batches(one, other))
    for i, work in enumerate((one, other)):
        step = int(ran.step[i])
        theirs = physics.highest_step(work, len(physics.clock) - 1, int(cap_w * UNITS_PER_W))
        # The engine judges by whole centiwatts and coarse times: where it decides otherwise, the cap is just met.
        higher = needs(deployment.cost, batches(work)).at(power.clock_ratio[top := max(step, theirs)])
        just_met = mean_power_w(higher, Watts.of(power), power.scale[top])[0] == pytest.approx(cap_w, rel=1e-3)
        assert step == theirs or (just_met and abs(step - theirs) == 1)
        length_ps, energy = physics.run(work, step)
        assert ran.times.length[i] == pytest.approx(length_ps / PS_PER_S, rel=1e-5)
        assert ran.power_w[i] * ran.times.length[i] == pytest.approx(energy * J_PER_UNIT, rel=1e-4)


def test_tables_are_read_between_whole_tokens_and_not_beyond_their_end() -> None:
    cost = slot(0)[0].cost
    found = needs(cost, Batches(np.array([7.0, 7.25, 8.0]), np.ones(3), np.zeros(3), np.zeros(3)))
    seven, between, eight = np.asarray(found.weights)
    assert between == pytest.approx(0.75 * seven + 0.25 * eight) and seven < eight
    ends = np.array([len(cost.compute_ps)])
    with pytest.raises(IndexError):
        needs(cost, Batches(ends, ends, ends, ends))
