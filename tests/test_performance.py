"""Iteration times, capacities and loading: figures worked by hand, monotony, and measurements to hold to."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcluster.simulator.catalog import Catalog
from llmcluster.simulator.errors import InputError
from llmcluster.simulator.performance import (
    iteration_cost,
    kv_capacity_tokens,
    load_time_s,
    tensor_parallel_sizes,
    wake_time_s,
)

CATALOG = Catalog.builtin()
TOKENS = 2048


def fits(model, gpu, tp):
    try:
        return kv_capacity_tokens(model, gpu, tp) > 0
    except InputError:
        return False


PAIRS = itertools.product(CATALOG.models.values(), CATALOG.gpus.values())
FITTING = [(m, g, tp) for m, g in PAIRS for tp in tensor_parallel_sizes(m) if fits(m, g, tp)]
COSTS = {(m.name, g.name, tp): iteration_cost(m, g, tp, TOKENS) for m, g, tp in FITTING}


def iteration_ms(cost, tokens, kv=0, pairs=0, clock=1.0):
    compute = (int(cost.compute_ps[tokens]) + cost.attention_ps * pairs) / clock
    return (int(cost.fixed_ps[tokens]) + max(compute, int(cost.memory_ps[tokens]) + cost.kv_read_ps * kv)) / 1e9


def decode_ms(model, gpu, tp, batch, context):
    cost = iteration_cost(CATALOG.model(model), CATALOG.gpu(gpu), tp, TOKENS)
    return iteration_ms(cost, batch, batch * context, batch * context)


deployments = st.sampled_from(list(COSTS.values()))
tokens = st.integers(1, TOKENS)
contexts = st.integers(0, 10**6)


@given(deployments, tokens, tokens, contexts, contexts, st.floats(0.1, 1))
def test_more_work_never_takes_less_time(cost, a, b, c, d, clock):
    (few, many), (short, long) = sorted((a, b)), sorted((c, d))
    assert iteration_ms(cost, few, short, short, clock) <= iteration_ms(cost, many, long, long, clock)


@given(deployments, tokens, contexts, st.floats(0.1, 1), st.floats(0.1, 1))
def test_a_higher_clock_is_never_slower(cost, n, context, a, b):
    low, high = sorted((a, b))
    assert iteration_ms(cost, n, context, context, high) <= iteration_ms(cost, n, context, context, low)


def test_tables_ascend_and_are_integers():
    assert len(COSTS) > 80
    for cost in COSTS.values():
        for table in (cost.fixed_ps, cost.compute_ps, cost.memory_ps):
            assert table.shape == (TOKENS + 1,) and table.dtype == np.int64
            assert table[0] >= 0 and np.all(np.diff(table) >= 0)
        assert isinstance(cost.kv_read_ps, int) and isinstance(cost.attention_ps, int)
        assert cost.kv_read_ps > 0 and cost.attention_ps > 0
        assert cost.compute_ps[0] == cost.memory_ps[0] == 0


def test_a_batch_worked_by_hand():
    model, gpu = CATALOG.model("Llama-3.1-8B"), CATALOG.gpu("H100-80GB")
    cost = iteration_cost(model, gpu, 1)
    matrices = 8_030_261_248 - 128_256 * 4096
    compute_s, memory_s = 2 * matrices * 10 / (989.4e12 * 0.65), 2 * matrices / (3.35e12 * 0.834)
    assert cost.compute_ps[10] == pytest.approx((compute_s + 0.71 * compute_s) * 1e12, abs=1)
    assert cost.memory_ps[10] == pytest.approx((memory_s + 0.71 * compute_s) * 1e12, abs=1)
    assert cost.fixed_ps[10] == pytest.approx((1.7e-3 + 10 * 32e-6) * 1e12, abs=1)
    assert cost.kv_read_ps == round(131_072 / (3.35e12 * 0.834) * 1e12)
    assert cost.attention_ps == round(4 * 32 * 32 * 128 / (989.4e12 * 0.40) * 1e12)
    assert len(cost.fixed_ps) == 8193


def test_tensor_parallelism_pays_for_its_all_reduces():
    model, gpu = CATALOG.model("Llama-3.1-70B"), CATALOG.gpu("H100-80GB")
    two, four = iteration_cost(model, gpu, 2), iteration_cost(model, gpu, 4)
    assert two.memory_ps[1] == pytest.approx(2 * four.memory_ps[1], rel=1e-3)
    each_s = 12e-6 + 2 * 3 / 4 * 100 * 8192 * 2 / (450e9 * 0.7)
    assert four.fixed_ps[100] == pytest.approx((1.7e-3 + 100 * 32e-6 + 2 * 80 * each_s) * 1e12, abs=1)


@pytest.mark.parametrize(
    ("model", "gpu", "tp", "batch", "context", "measured_ms"),
    [
        # grantwilkins/powertrace-sim, A100, vLLM 0.10.1
        ("Qwen3-8B", "A100-80GB", 1, 1, 500, 11.6),
        ("Qwen3-8B", "A100-80GB", 1, 14, 500, 13.5),
        # ml-energy/leaderboard v3, chat and long-output tasks
        ("Llama-3.1-8B", "H100-80GB", 1, 8, 640, 7.3),
        ("Llama-3.1-8B", "H100-80GB", 1, 256, 640, 26.1),
        ("Qwen3-8B", "H100-80GB", 1, 64, 4900, 26.6),
        ("Qwen3-32B", "H100-80GB", 2, 64, 880, 22.4),
        ("Llama-3.1-70B", "H100-80GB", 4, 8, 530, 16.6),
        ("Llama-3.1-70B", "H100-80GB", 4, 256, 530, 39.8),
        ("Qwen3-30B-A3B", "H100-80GB", 1, 64, 1000, 28.9),
        ("Llama-3.1-8B", "B200", 1, 8, 640, 4.6),
        ("Qwen3-32B", "B200", 1, 128, 880, 24.7),
        ("Llama-3.1-70B", "B200", 2, 64, 530, 21.7),
    ],
)
def test_decode_holds_to_measurements(model, gpu, tp, batch, context, measured_ms):
    assert decode_ms(model, gpu, tp, batch, context) == pytest.approx(measured_ms, rel=0.10)


def test_prefill_reaches_a_plausible_share_of_the_peak():
    model = CATALOG.model("Llama-3.1-8B")
    for gpu, peak in (("H100-80GB", 989e12), ("A100-80GB", 312e12)):
        ms = iteration_ms(iteration_cost(model, CATALOG.gpu(gpu), 1), 2048, pairs=2048**2 // 2)
        assert 0.4 < 2 * model.parameters * 2048 / (ms / 1e3) / peak < 0.8


def test_capacity_worked_by_hand():
    model, gpu = CATALOG.model("Llama-3.1-8B"), CATALOG.gpu("H100-80GB")
    free = 85_520_809_984 * 0.9 - 16_060_522_496 - 2e9
    assert kv_capacity_tokens(model, gpu, 1) == int(free / 131_072) // 16 * 16
    assert kv_capacity_tokens(model, gpu, 1, 0.5) < kv_capacity_tokens(model, gpu, 1)


@pytest.mark.parametrize("deployment", FITTING, ids=lambda d: f"{d[0].name}-{d[1].name}-{d[2]}")
def test_what_fits_loads_and_wakes(deployment):
    model, gpu, tp = deployment
    assert kv_capacity_tokens(model, gpu, tp) % 16 == 0
    assert 0 < wake_time_s(model, gpu, tp) < load_time_s(model, gpu, tp)


@pytest.mark.parametrize(
    ("model", "tp"),
    [("Llama-3.1-8B", 1), ("Qwen3-8B", 1), ("Qwen3-32B", 2), ("Llama-3.1-70B", 4), ("Qwen3-30B-A3B", 2)],
)
def test_loading_takes_20_to_60_seconds(model, tp):
    assert 20 <= load_time_s(CATALOG.model(model), CATALOG.gpu("H100-80GB"), tp) <= 60


def test_waking_an_8b_model_takes_20_seconds():
    assert wake_time_s(CATALOG.model("Llama-3.1-8B"), CATALOG.gpu("H100-80GB"), 1) == pytest.approx(20.06, abs=0.01)


def test_what_does_not_fit_names_bytes_and_remedy():
    model = CATALOG.model("Llama-3.1-70B")
    with pytest.raises(InputError) as error:
        kv_capacity_tokens(model, CATALOG.gpu("H100-80GB"), 1)
    assert error.value.where == "Llama-3.1-70B on H100-80GB with tp=1"
    assert "needs 144.4 GB on each GPU, 77.0 GB are available" in error.value.problem
    assert error.value.remedy == "Use tp=2, or a smaller model"
    with pytest.raises(InputError, match="smaller model or a GPU with more memory"):
        kv_capacity_tokens(model, CATALOG.gpu("H100-80GB"), 8, 0.1)


@pytest.mark.parametrize("tp", [-1, 0, 3, 5, 16])
def test_tensor_parallelism_must_divide_the_heads(tp):
    with pytest.raises(InputError, match=r"cannot split 32 heads.*Use one of 1, 2, 4, 8"):
        iteration_cost(CATALOG.model("Llama-3.1-8B"), CATALOG.gpu("H200"), tp)


def test_kv_heads_are_replicated_over_more_gpus_than_heads():
    model, gpu = CATALOG.model("Qwen3-30B-A3B"), CATALOG.gpu("H200")
    four, eight = iteration_cost(model, gpu, 4), iteration_cost(model, gpu, 8)
    assert four.kv_read_ps == eight.kv_read_ps


def test_bad_arguments_name_the_remedy():
    model, gpu = CATALOG.model("Qwen3-8B"), CATALOG.gpu("H200")
    with pytest.raises(InputError, match="max_tokens: is 0"):
        iteration_cost(model, gpu, 1, 0)
    with pytest.raises(InputError, match="Give a share above 0"):
        kv_capacity_tokens(model, gpu, 1, 1.5)
