"""Power of a slot and its clock ladder: measured levels, monotony and limits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcluster.simulator.catalog import Catalog, Scale
from llmcluster.simulator.catalog.fits import PowerFit
from llmcluster.simulator.errors import InputError
from llmcluster.simulator.performance import iteration_cost
from llmcluster.simulator.power import LADDER_STEPS, clock_ladder, power_coefficients

CATALOG = Catalog.builtin()


def coefficients():
    for model, gpu, tp in itertools.product(CATALOG.models.values(), CATALOG.gpus.values(), (1, 2, 4, 8)):
        try:
            yield power_coefficients(model, gpu, tp)
        except InputError:
            continue


ALL = list(coefficients())
fractions = st.floats(0, 1)


def power_w(c, step, compute, memory, working=1.0, link=0.0):
    clocked = c.scale[step] * (c.active_w * working + c.compute_w * compute)
    return c.idle_w + clocked + c.memory_w * memory + c.link_w * link


def iteration_power_w(model, gpu, tp, tokens, kv=0, pairs=0, sequences=None):
    model, gpu = CATALOG.model(model), CATALOG.gpu(gpu)
    cost, power = iteration_cost(model, gpu, tp), power_coefficients(model, gpu, tp)
    sequences = tokens if sequences is None else sequences
    compute = int(cost.compute_ps[tokens]) + cost.attention_ps * pairs
    memory = int(cost.memory_ps[tokens]) + cost.kv_read_ps * kv + cost.state_ps * sequences
    host, sample = cost.step_ps + cost.sequence_ps * sequences, cost.sample_ps * sequences
    link = int(cost.link_ps[tokens])
    total = host + cost.gap_ps + sample + link + max(compute, memory)
    return power_w(power, -1, compute / total, (memory + sample) / total, 1 - host / total, link / total) / tp


@given(st.sampled_from(ALL), st.integers(0, LADDER_STEPS - 1), st.integers(0, LADDER_STEPS - 1), fractions, fractions)
def test_a_higher_clock_never_lowers_power(c, a, b, compute, memory):
    low, high = sorted((a, b))
    assert power_w(c, low, compute, memory) <= power_w(c, high, compute, memory)


def test_coefficients_are_sane_wherever_a_model_fits():
    assert len(ALL) > 100
    for c in ALL:
        assert min(c.off_w, c.active_w, c.compute_w, c.memory_w) >= 0
        assert 0 < c.off_w <= c.idle_w < c.cap_max_w and c.cap_min_w < c.cap_max_w
        assert c.resume_c < c.throttle_c
        for array in (c.thermal_r_k_per_w, c.thermal_tau_s):
            assert array.shape == (2,) and array.dtype == np.float64 and np.all(array > 0)
        assert len(c.clock_ratio) == len(c.scale) == LADDER_STEPS
        for ladder in (c.clock_ratio, c.scale):
            assert ladder.dtype == np.float64 and ladder[0] > 0 and np.all(np.diff(ladder) > 0) and ladder[-1] == 1


def test_watts_add_over_the_gpus_of_a_slot():
    model, gpu = CATALOG.model("Llama-3.1-8B"), CATALOG.gpu("H100-80GB")
    one, four = power_coefficients(model, gpu, 1), power_coefficients(model, gpu, 4)
    for name in ("off_w", "active_w", "compute_w", "memory_w", "link_w", "cap_min_w", "cap_max_w", "gpus"):
        assert getattr(four, name) == 4 * getattr(one, name)
    # Each of four holds a quarter of the weights.
    assert four.idle_w - 4 * gpu.power.idle_w == pytest.approx(one.idle_w - gpu.power.idle_w)
    staged = power_coefficients(model, gpu, 2, 2)
    assert [np.array_equal(a, b) for a, b in zip(staged, four, strict=True)] == [True] * len(four)
    assert (one.cap_min_w, one.cap_max_w, one.meter_window_s) == (200, 700, 1.0)


def test_coefficients_worked_by_hand():
    """16,060,522,496 bytes of weights, and 85,520,809,984 bytes of memory on each GPU."""
    model = CATALOG.model("Llama-3.1-8B")
    figures = {"off_w": 60.0, "idle_w": 90.0, "resident_w": 200.0, "active_w": 120.0}
    gpu = with_power(CATALOG.gpu("H100-80GB"), **figures, compute_w=300.0, memory_w=110.0, link_w=40.0)
    c = power_coefficients(model, gpu, 2)
    assert c.idle_w == pytest.approx(2 * 90 + 200 * 16_060_522_496 / 85_520_809_984)
    assert (c.off_w, c.active_w, c.compute_w, c.memory_w, c.link_w) == (120, 240, 600, 220, 80)
    scaled = power_coefficients(model, gpu, 2, 2, Scale(model="m", gpu="g", power=1.5, source="a test"))
    assert scaled.idle_w == pytest.approx(4 * 90 + 200 * 16_060_522_496 / 85_520_809_984)
    assert (scaled.off_w, scaled.active_w, scaled.compute_w, scaled.memory_w, scaled.link_w) == (
        240,
        720,
        1800,
        660,
        240,
    )


def with_power(gpu, **fields):
    return gpu.model_copy(update={"power": gpu.power.model_copy(update=fields)})


WATTS = sorted(name for name in PowerFit.model_fields if name.endswith("_w"))
up_to_1000 = st.floats(0, 1000)


@given(st.sampled_from(WATTS), up_to_1000, up_to_1000, st.integers(0, LADDER_STEPS - 1), *[fractions] * 4)
def test_no_watts_that_grow_lower_power(name, a, b, step, compute, memory, working, link):
    less, more = (
        power_coefficients(CATALOG.model("Qwen3-8B"), with_power(CATALOG.gpu("A40"), **{name: value}), 2)
        for value in sorted((a, b))
    )
    assert less.off_w <= more.off_w
    work = (step, compute, memory, working, link)
    assert power_w(less, *work) <= power_w(more, *work) * (1 + 1e-12)


@pytest.mark.parametrize("name", [name for name in WATTS if name != "off_w"])
def test_all_watts_count(name):
    model, gpu = CATALOG.model("Qwen3-8B"), CATALOG.gpu("A40")
    less, more = (power_coefficients(model, with_power(gpu, **{name: value}), 2) for value in (10.0, 20.0))
    assert power_w(less, 5, 0.5, 0.5, 0.5, 0.5) < power_w(more, 5, 0.5, 0.5, 0.5, 0.5)


def test_idle_levels_are_the_measured_ones():
    model = CATALOG.model("Qwen3-8B")
    assert power_coefficients(model, CATALOG.gpu("A100-80GB"), 1).idle_w == 82
    assert power_coefficients(model, CATALOG.gpu("H100-80GB"), 1).idle_w == 121


@pytest.mark.parametrize(
    ("model", "gpu", "tp", "batch", "context", "measured_w"),
    [
        ("Qwen3-8B", "A100-80GB", 1, 6, 500, 296),  # grantwilkins/powertrace-sim
        ("Qwen3-8B", "H100-80GB", 1, 8, 500, 425),  # the same, 397-433 W; ml-energy 427 W
        ("Qwen3-32B", "H100-80GB", 2, 32, 880, 472),  # ml-energy/leaderboard v3
        ("Llama-3.1-70B", "H100-80GB", 4, 8, 530, 441),
        ("Qwen3-32B", "B200", 1, 32, 880, 849),
        ("Llama-3.1-70B", "B200", 2, 64, 530, 905),
    ],
)
def test_decode_power_holds_to_measurements(model, gpu, tp, batch, context, measured_w):
    watts = iteration_power_w(model, gpu, tp, batch, batch * context, batch * context)
    assert watts == pytest.approx(measured_w, rel=0.12)


@pytest.mark.parametrize("gpu", ["A100-80GB", "H100-80GB"])
def test_a_long_prefill_reaches_the_tdp(gpu):
    watts = iteration_power_w("Llama-3.1-8B", gpu, 1, 8192, pairs=8192**2 // 2, sequences=1)
    assert 1.0 <= watts / CATALOG.gpu(gpu).cap_max_w <= 1.3


def test_the_ladder_passes_through_the_anchors():
    gpu = CATALOG.gpu("A100-80GB")
    ratio, scale = clock_ladder(gpu, 2401)
    assert ratio[0] == pytest.approx(210 / 1410)
    assert np.interp(gpu.clock.ratio, ratio, scale) == pytest.approx(gpu.clock.scale, rel=1e-3)
    assert scale[0] == pytest.approx(0.339 * ratio[0] / 0.713)


def test_a100_under_a_memory_bound_kernel_keeps_the_published_share():
    """Babelstream (A100 PCIe) draws 145 W at 1005 MHz and 228 W at 1410 MHz, 50 W of it idle."""
    c = power_coefficients(CATALOG.model("Qwen3-8B"), CATALOG.gpu("A100-80GB"), 1)
    low = int(np.argmin(np.abs(c.clock_ratio - 1005 / 1410)))
    share = (power_w(c, low, 0, 0.8) - c.idle_w) / (power_w(c, -1, 0, 0.8) - c.idle_w)
    assert share == pytest.approx((145 - 50) / (228 - 50), abs=0.03)


@pytest.mark.parametrize(("cap_w", "speed"), [(150, 0.77), (175, 0.84), (200, 0.89), (225, 0.93), (250, 0.96)])
def test_a100_under_a_cap_slows_as_published(cap_w, speed):
    """A100 PCIe, compute-bound, idle 50 W, 298 W at the highest clock."""
    ratio, scale = clock_ladder(CATALOG.gpu("A100-80GB"), 1000)
    assert ratio[50 + scale * 248 <= cap_w].max() == pytest.approx(speed, abs=0.02)


def test_a_model_that_does_not_fit_has_no_power():
    model, gpu = CATALOG.model("Llama-3.1-70B"), CATALOG.gpu("A100-80GB")
    with pytest.raises(InputError, match="Use tp=2"):
        power_coefficients(model, gpu, 1)
    assert power_coefficients(model, gpu, 1, 3).gpus == 3
