"""Caps and clock locks hold after the GPU's transition time, on both engines and through a saved state."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcluster.simulator.blueprint import Blueprint
from llmcluster.simulator.catalog import Catalog
from llmcluster.simulator.cluster import Cluster, EngineName
from llmcluster.simulator.topology import ClusterSpec
from llmcluster.simulator.units import PS_PER_S, to_ps
from llmcluster.simulator.workload.table import RequestTable

MODEL = "Llama-3.1-8B"
BUILTIN = Catalog.builtin()


def plan(transitions: dict[str, tuple[float, float]]) -> Blueprint:
    """One GPU of each kind, with times until its cap and its clock lock hold, seconds."""
    gpus = dict(BUILTIN.gpus)
    for name, (cap_s, lock_s) in transitions.items():
        transition = gpus[name].transition.model_copy(update={"cap_s": cap_s, "lock_s": lock_s})
        gpus[name] = gpus[name].model_copy(update={"transition": transition})
    servers = [{"gpu": name, "gpus": 1, "model": MODEL} for name in transitions]
    spec = ClusterSpec.model_validate({"rows": [{"racks": [{"servers": servers}]}]})
    return Blueprint.of(spec, replace(BUILTIN, gpus=gpus))


SLOW = plan({"A100-80GB": (0.25, 0.125), "H100-80GB": (0.5, 0.125)})
AT_ONCE = plan({"A100-80GB": (0.0, 0.0), "H100-80GB": (0.0, 0.0)})


def busy(seed: int = 0, n: int = 60) -> RequestTable:
    rng = np.random.default_rng(seed)
    arrivals = np.sort(rng.integers(0, 4 * PS_PER_S, n))
    return RequestTable.from_columns(arrivals, rng.integers(100, 3000, n), rng.integers(20, 200, n))


def cluster(of: Blueprint, engine: EngineName = "compiled", requests: RequestTable | None = None) -> Cluster:
    return Cluster(of, busy() if requests is None else requests, np.random.default_rng(0), 16, engine=engine)


def in_force(world: Cluster) -> tuple[list[float], list[int]]:
    slots = world.engine.slots
    return slots["cap_w"].tolist(), slots["clock_limit"].tolist()


def test_what_is_set_holds_after_each_gpus_own_time() -> None:
    world = cluster(SLOW)
    before = in_force(world)
    world.advance(to_ps(1.0))
    world.cap(250.0)
    world.lock_clock(0.5)
    steps = [int(np.searchsorted(clocks[0], 0.5 + 1e-9, side="right")) - 1 for clocks in world.engine.ladder]
    seen = {}
    for after_s in (0.0, 0.124, 0.126, 0.249, 0.251, 0.499, 0.501):
        world.advance(to_ps(1.0 + after_s))
        seen[after_s] = in_force(world)
    assert seen[0.0] == seen[0.124] == before
    assert seen[0.126] == seen[0.249] == (before[0], steps)
    assert seen[0.251] == seen[0.499] == ([250.0, before[0][1]], steps)
    assert seen[0.501] == ([250.0, 250.0], steps)


def test_without_transition_times_what_is_set_holds_at_once_and_makes_no_event() -> None:
    world = cluster(AT_ONCE)
    world.cap([200.0, 300.0])
    world.lock_clock(0.0)
    assert in_force(world) == ([200.0, 300.0], [0, 0])
    assert not world.agenda.entries


def test_settings_do_not_overtake_one_another() -> None:
    world = cluster(SLOW)
    caps = []
    for _ in range(8):
        world.cap(200.0 + 10 * len(caps))
        caps.append(world.engine.slots["cap_w"][0])
        world.advance(world.now_ps + to_ps(0.125))
    # What was set two eighths of a second ago.
    assert caps[2:] == [200.0 + 10 * k for k in range(6)]


def test_what_is_as_it_was_makes_no_event() -> None:
    world = cluster(SLOW)
    world.cap(1e6)
    world.lock_clock(1.0)
    assert not world.agenda.entries
    world.cap(300.0)
    once = len(world.agenda.entries)
    world.cap(300.0)
    assert once == len(world.agenda.entries) == 2


def test_the_governor_keeps_to_the_old_cap_meanwhile() -> None:
    """A prompt of ten seconds, capped at 2.5 s: the seconds before 2.75 s draw as without the cap."""
    requests = RequestTable.from_columns([0] * 64, [7000] * 64, [2] * 64)
    free, capped = cluster(SLOW, requests=requests), cluster(SLOW, requests=requests)
    for world in (free, capped):
        world.advance(to_ps(2.0))
    capped.cap(200.0)
    for world in (free, capped):
        world.advance(to_ps(4.0))
    energy = [world.history.column("energy_j")[:, 0] for world in (free, capped)]
    assert energy[0][1] == energy[1][1]
    assert 200 < energy[1][2] < energy[0][2] and energy[1][3] <= 201 < energy[0][3]


@st.composite
def scripts(draw: st.DrawFn) -> list[tuple[float, str, float]]:
    entry = st.tuples(
        st.one_of(st.floats(0, 5), st.sampled_from([0.0, 0.125, 0.25, 0.5, 1.0, 1.125])),
        st.sampled_from(["cap", "lock"]),
        st.floats(0, 1),
    )
    return sorted(draw(st.lists(entry, max_size=8)))


def play(world: Cluster, script: list[tuple[float, str, float]], save_at_s: float | None = None) -> Cluster:
    """Carries a script out; where ``save_at_s`` is given, a fresh cluster goes on from the state at that time."""
    for at_s, kind, share in [*script, (6.0, "end", 0.0)]:
        if save_at_s is not None and at_s > save_at_s:
            world.advance(to_ps(save_at_s))
            state = world.save_state()
            world = cluster(world.blueprint)
            world.restore_state(state)
            save_at_s = None
        world.advance(to_ps(at_s))
        if kind == "cap":
            world.cap(100.0 + share * 600)
        elif kind == "lock":
            world.lock_clock(share)
    assert world.drain()
    return world


def trace(world: Cluster) -> dict[str, Any]:
    names = ("energy_j", "temperature_c", "clock_ratio")
    found: dict[str, Any] = {name: world.history.column(name).tolist() for name in names}
    return found | {"finish_ps": world.engine.requests["finish_ps"].tolist(), "in_force": in_force(world)}


@settings(max_examples=25, deadline=None)
@given(scripts())
def test_both_engines_agree(script: list[tuple[float, str, float]]) -> None:
    assert trace(play(cluster(SLOW), script)) == trace(play(cluster(SLOW, "reference"), script))


@settings(max_examples=25, deadline=None)
@given(scripts(), st.floats(0, 5.9))
def test_a_saved_state_keeps_what_is_on_its_way(script: list[tuple[float, str, float]], save_at_s: float) -> None:
    assert trace(play(cluster(SLOW), script, save_at_s)) == trace(play(cluster(SLOW), script))


@pytest.mark.parametrize("name", list(BUILTIN.gpus))
def test_every_gpu_of_the_catalogue_needs_less_than_a_second(name: str) -> None:
    transition = BUILTIN.gpus[name].transition
    assert 0 < transition.lock_s <= transition.cap_s < 1
