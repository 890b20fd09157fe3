"""Physical sanity of every GPU of the catalogue, with small and large, dense and sparse models."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcluster.simulator.blueprint import Blueprint
from llmcluster.simulator.catalog import Catalog
from llmcluster.simulator.cluster import Cluster, EngineName
from llmcluster.simulator.errors import InputError
from llmcluster.simulator.kernels.state import J_PER_UNIT, UNITS_PER_W
from llmcluster.simulator.metrics import SloLimits, summarize
from llmcluster.simulator.reference.observer import Observer
from llmcluster.simulator.reference.physics import Physics, Work
from llmcluster.simulator.topology import ClusterSpec
from llmcluster.simulator.units import PS_PER_S, to_ps
from llmcluster.simulator.workload.table import RequestTable

CATALOG = Catalog.builtin()
MODELS = ("Llama-3.1-8B", "Qwen3-32B", "Llama-3.1-70B", "Qwen3-30B-A3B", "gpt-oss-120b", "NVIDIA-Nemotron-Nano-9B-v2")
BUDGET = 2048
ANY = SloLimits(np.array([10**15]), np.array([10**15]))
NOTHING = RequestTable.from_columns([], [], [])
many = settings(max_examples=200, deadline=None)
few = settings(max_examples=12, deadline=None)


@cache
def plan(gpu: str, model: str = "Llama-3.1-8B", initial: str = "serving", inlet_c: float = 24.0) -> Blueprint:
    """One slot, on as few GPUs as can hold the model."""
    for tp in (1, 2, 4, 8):
        server = {"gpu": gpu, "gpus": tp, "tp": tp, "model": model, "initial": initial}
        server |= {"inlet_c": inlet_c, "inlet_k_per_kw": 0.0}
        engine = {"max_num_batched_tokens": BUDGET}
        spec = {"rows": [{"racks": [{"servers": [server]}]}], "engine": engine}
        try:
            return Blueprint.of(ClusterSpec.model_validate(spec))
        except InputError:
            continue
    pytest.fail(f"{model} fits no eight {gpu}")


@cache
def physics(gpu: str, model: str) -> Physics:
    """Times and energies of its iterations, by the tables that both engines run on."""
    of = plan(gpu, model)
    return Physics(of.tables, int(of.initial[0]))  # type: ignore[arg-type]


gpus = st.sampled_from(list(CATALOG.gpus))
models = st.sampled_from(MODELS)


@st.composite
def works(draw: st.DrawFn) -> Work:
    """Decodes, with or without the chunk of a prompt."""
    decodes = draw(st.integers(0, 256))
    context = draw(st.integers(1, 8000))
    chunk = draw(st.integers(0 if decodes else 1, BUDGET - decodes))
    before = draw(st.integers(0, 8000)) if chunk else 0
    pairs = decodes * context + chunk * before + chunk * (chunk + 1) // 2
    return Work(decodes + chunk, decodes + bool(chunk), pairs, decodes * context + before, bool(chunk))


# ---------------------------------------------------------------------------------------------------------------- caps


@many
@given(gpus, models, works(), st.lists(st.floats(0, 1), min_size=2, max_size=5))
def test_a_lower_cap_never_raises_speed_or_power(gpu: str, model: str, work: Work, shares: list[float]) -> None:
    of, own = plan(gpu, model), physics(gpu, model)
    low_w, high_w = float(of.cap_min_w[0]), float(of.cap_max_w[0])
    top = len(own.clock) - 1
    found = []
    for share in sorted(shares):
        cap_cw = int((low_w + share * (high_w - low_w)) * UNITS_PER_W)
        step = own.highest_step(work, top, cap_cw)
        length, energy = own.run(work, step)
        found.append((step, length, energy / length))
    for (step, length, power), (higher_step, shorter, more) in pairwise(found):
        assert step <= higher_step and length >= shorter and power <= more


@many
@given(gpus, models, works())
def test_power_rises_with_the_clock_so_that_the_governor_may_halve(gpu: str, model: str, work: Work) -> None:
    own = physics(gpu, model)
    power = [energy / length for length, energy in (own.run(work, step) for step in range(len(own.clock)))]
    # The tables hold whole centiwatts.
    assert (np.diff(power) > -1e-5 * power[-1]).all()


@few
@given(gpus, st.integers(0, 2**32))
def test_a_lower_cap_on_a_cluster_never_serves_sooner_nor_draws_more(gpu: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    arrivals = np.sort(rng.integers(0, 3 * PS_PER_S, 40))
    requests = RequestTable.from_columns(arrivals, rng.integers(50, 1500, 40), rng.integers(2, 80, 40))
    ends, peaks = [], []
    for share in (0.0, 0.3, 1.0):
        of = plan(gpu)
        world = Cluster(of, requests, np.random.default_rng(0), 16)
        world.cap(of.cap_min_w + share * (of.cap_max_w - of.cap_min_w))
        assert world.drain()
        ends.append(int(world.engine.requests["finish_ps"].max()))
        # The first second may hold some of the time before the cap.
        peaks.append(float(world.history.column("energy_j")[1:].max()))
    # Batches differ from cap to cap, so that a second may hold a little more of a hungry one.
    assert ends == sorted(ends, reverse=True)
    assert peaks[0] <= peaks[1] * 1.02 and peaks[1] <= peaks[2] * 1.02


# --------------------------------------------------------------------------------------------------------------- batch


@many
@given(gpus, models, st.lists(st.integers(1, 256), min_size=2, max_size=6), st.integers(1, 8000), st.floats(0, 1))
def test_more_batch_never_lowers_iteration_time(
    gpu: str, model: str, batches: list[int], context: int, share: float
) -> None:
    own = physics(gpu, model)
    step = round(share * (len(own.clock) - 1))
    lengths = [own.run(Work(n, n, n * context, n * context, False), step)[0] for n in sorted(batches)]
    assert lengths == sorted(lengths)


@many
@given(gpus, models, works(), st.integers(0, 200), st.integers(0, 4000))
def test_more_work_never_lowers_iteration_time(gpu: str, model: str, work: Work, tokens: int, context: int) -> None:
    own = physics(gpu, model)
    tokens = min(tokens, BUDGET - work.tokens)
    larger = Work(
        work.tokens + tokens, work.sequences, work.pairs + tokens * context, work.read + context, work.chunked
    )
    assert own.run(larger, len(own.clock) - 1)[0] >= own.run(work, len(own.clock) - 1)[0]


# -------------------------------------------------------------------------------------------------------------- energy


class Flights(Observer):
    """Start, end and energy of every iteration."""

    def __init__(self) -> None:
        self.flights: list[tuple[int, int, int]] = []

    def iteration(
        self, slot: int, start_ps: int, end_ps: int, decodes: int, prefill_tokens: int, step: int, energy: int
    ) -> None:
        self.flights.append((start_ps, end_ps, energy))


@few
@given(gpus, st.sampled_from(MODELS[:2]), st.integers(0, 2**32))
def test_energy_is_the_integral_of_power(gpu: str, model: str, seed: int) -> None:
    """Second by second: what iterations drew in it and what the slot drew between them, and in all what is reported."""
    rng = np.random.default_rng(seed)
    n, seconds = int(rng.integers(1, 25)), 12
    arrivals = np.sort(rng.integers(0, 4 * PS_PER_S, n))
    requests = RequestTable.from_columns(arrivals, rng.integers(1, 1200, n), rng.integers(1, 60, n))
    of, seen = plan(gpu, model), Flights()
    runs: list[tuple[EngineName, Observer | None]] = [("reference", seen), ("compiled", None)]
    worlds = [Cluster(of, requests, np.random.default_rng(0), 16, engine=e, observer=o) for e, o in runs]
    for world in worlds:
        world.advance(seconds * PS_PER_S)
    power_w = np.full(seconds, of.deployments[0].power.idle_w)
    for start, end, energy in seen.flights:
        above_w = energy * J_PER_UNIT / ((end - start) / PS_PER_S) - of.deployments[0].power.idle_w
        for second in range(start // PS_PER_S, min(end // PS_PER_S + 1, seconds)):
            inside = min(end, (second + 1) * PS_PER_S) - max(start, second * PS_PER_S)
            power_w[second] += above_w * inside / PS_PER_S
    for world in worlds:
        bins_j = world.history.column("energy_j")[:, 0]
        assert bins_j == pytest.approx(power_w, rel=1e-5)  # idle power is cut to centiwatts
        assert summarize(world, ANY).energy_j == pytest.approx(bins_j.sum(), rel=1e-12)


# ---------------------------------------------------------------------------------------------------------------- heat


@few
@given(gpus, st.floats(0.05, 1.0), st.sampled_from([10.0, 24.0, 38.0]))
def test_temperature_settles_at_inlet_and_resistance_times_power(gpu: str, share: float, inlet_c: float) -> None:
    of = plan(gpu, initial="empty", inlet_c=inlet_c)
    power = of.deployments[0].power
    load_w = share * power.cap_max_w
    world = Cluster(of, NOTHING, np.random.default_rng(0), 16)
    world.occupy(0, load_w)
    world.advance(to_ps(15 * float(power.thermal_tau_s.max())))
    settled_c = inlet_c + float(power.thermal_r_k_per_w.sum()) * load_w / power.gpus
    assert world.history.column("temperature_c")[-1, 0] == pytest.approx(settled_c, abs=0.02)


@few
@given(gpus)
def test_temperature_rises_as_its_two_poles_say(gpu: str) -> None:
    of = plan(gpu, initial="empty")
    power = of.deployments[0].power
    world = Cluster(of, NOTHING, np.random.default_rng(0), 64)
    world.advance(to_ps(30.0))
    start_c = float(world.history.column("temperature_c")[-1, 0])
    world.occupy(0, 0.5 * power.cap_max_w)
    world.advance(to_ps(55.0))
    rise_w = (0.5 * power.cap_max_w - power.off_w) / power.gpus
    after_s = np.arange(1, 26)[:, None]
    # At the start the poles are on their way to what the empty slot draws.
    cold = float(world.engine.slots["inlet_c"][0]) + power.off_w / power.gpus * power.thermal_r_k_per_w.sum()
    left = np.exp(-(30.0 + after_s) / power.thermal_tau_s) * power.thermal_r_k_per_w * power.off_w / power.gpus
    rise = (1 - np.exp(-after_s / power.thermal_tau_s)) * power.thermal_r_k_per_w * rise_w
    expected = cold + (rise - left).sum(axis=1)
    assert start_c < expected[0]
    assert world.history.column("temperature_c")[30:, 0] == pytest.approx(expected, abs=0.01)


# ---------------------------------------------------------------------------------------------------------------- idle


@pytest.mark.parametrize("engine", ["compiled", "reference"])
@pytest.mark.parametrize("gpu", list(CATALOG.gpus))
def test_an_idle_cluster_draws_idle_power(gpu: str, engine: EngineName) -> None:
    for initial, level in (("serving", "idle_w"), ("sleeping", "off_w"), ("empty", "off_w")):
        of = plan(gpu, initial=initial)
        world = Cluster(of, NOTHING, np.random.default_rng(0), 8, engine=engine)
        world.cap(of.cap_min_w)
        world.advance(to_ps(5.0))
        power = of.deployments[0].power
        watts = getattr(power, level)
        own = CATALOG.gpus[gpu].power
        share = CATALOG.model("Llama-3.1-8B").weight_bytes / power.gpus / CATALOG.gpus[gpu].memory_bytes
        weights_w = own.resident_w * share if initial == "serving" else 0.0
        assert watts == pytest.approx((getattr(own, level) + weights_w) * power.gpus)
        assert world.history.column("energy_j")[:, 0] == pytest.approx(watts, abs=0.01)
        assert world.history.column("metered_w")[:, 0] == pytest.approx(watts, abs=0.01)
