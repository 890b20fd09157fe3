"""Iteration times and capacities: figures worked by hand, monotony, and measurements to hold to."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcluster.simulator.catalog import Catalog
from llmcluster.simulator.catalog.fits import TimingFit
from llmcluster.simulator.errors import InputError
from llmcluster.simulator.parallelism import pipeline_stages, tensor_parallel_sizes
from llmcluster.simulator.performance import iteration_cost, kv_capacity_tokens

CATALOG = Catalog.builtin()
H100 = CATALOG.gpu("H100-80GB")
FITTED = H100.timing
"""Figures that cases worked by hand take as they are."""
TOKENS = 2048


def fits(model, gpu, tp):
    try:
        return kv_capacity_tokens(model, gpu, tp) > 0
    except InputError:
        return False


PLAIN = ("Llama-3.1-8B", "Llama-3.1-70B", "Qwen3-8B", "Qwen3-32B", "Qwen3-30B-A3B")
"""The models that the shipped results were made with."""
PAIRS = itertools.product(map(CATALOG.model, PLAIN), CATALOG.gpus.values())
FITTING = [(m, g, tp) for m, g in PAIRS for tp in tensor_parallel_sizes(m) if fits(m, g, tp)]
COSTS = {(m.name, g.name, tp): iteration_cost(m, g, tp, TOKENS) for m, g, tp in FITTING}
ON_SOME = [d for d in FITTING if d[1].name in ("H100-80GB", "A40")]
MIXTURES = [d for d in ON_SOME if d[0].experts > 1]
STAGED = [iteration_cost(*d, TOKENS, pp) for d in ON_SOME for pp in (2, 3, 8)]
SPREAD = [iteration_cost(*d, TOKENS, pp, ep=True) for d in MIXTURES for pp in (1, 3)]
ALL = [*COSTS.values(), *STAGED, *SPREAD]


def iteration_ms(cost, tokens, kv=0, pairs=0, clock=1.0, sequences=None):
    sequences = tokens if sequences is None else sequences
    compute = (int(cost.compute_ps[tokens]) + cost.attention_ps * pairs) / clock
    memory = int(cost.memory_ps[tokens]) + cost.kv_read_ps * kv + cost.state_ps * sequences
    once = cost.step_ps + cost.gap_ps + int(cost.link_ps[tokens])
    return (once + (cost.sequence_ps + cost.sample_ps) * sequences + max(compute, memory)) / 1e9


def decode_ms(model, gpu, tp, batch, context):
    scale = CATALOG.scale(model, gpu, tp)
    cost = iteration_cost(CATALOG.model(model), CATALOG.gpu(gpu), tp, TOKENS, scale=scale)
    return iteration_ms(cost, batch, batch * context, batch * context)


deployments = st.sampled_from(ALL)
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
    assert len(COSTS) > 80 and len(STAGED) > 60 and len(SPREAD) >= 8
    for cost in ALL:
        for table in (cost.link_ps, cost.compute_ps, cost.memory_ps):
            assert table.shape == (TOKENS + 1,) and table.dtype == np.int64
            assert table[0] >= 0 and np.all(np.diff(table) >= 0)
        assert isinstance(cost.kv_read_ps, int) and isinstance(cost.attention_ps, int)
        assert cost.kv_read_ps > 0 and cost.attention_ps > 0
        assert cost.compute_ps[0] == cost.memory_ps[0] == 0


def test_a_batch_worked_by_hand():
    cost = iteration_cost(CATALOG.model("Llama-3.1-8B"), H100, 1)
    matrices = 8_030_261_248 - 128_256 * 4096
    compute_s = 2 * matrices * 10 / (989.4e12 * FITTED.compute_efficiency)
    memory_s = 2 * matrices / (3.35e12 * FITTED.memory_efficiency)
    assert cost.compute_ps[10] == pytest.approx((compute_s + FITTED.overlap_loss * compute_s) * 1e12, abs=1)
    assert cost.memory_ps[10] == pytest.approx((memory_s + FITTED.overlap_loss * compute_s) * 1e12, abs=1)
    assert (cost.step_ps, cost.sequence_ps) == (round(FITTED.step_s * 1e12), round(FITTED.sequence_s * 1e12))
    assert (cost.gap_ps, cost.sample_ps) == (round(32 * FITTED.layer_s * 1e12), round(FITTED.sampling_s * 1e12))
    assert (cost.state_ps, cost.link_ps.max()) == (0, 0)
    assert cost.kv_read_ps == round(131_072 / (3.35e12 * FITTED.kv_efficiency) * 1e12)
    assert cost.attention_ps == round(4 * 32 * 32 * 128 / (989.4e12 * FITTED.attention_efficiency) * 1e12)
    assert len(cost.link_ps) == 8193


def test_tensor_parallelism_pays_for_its_all_reduces():
    model = CATALOG.model("Llama-3.1-70B")
    two, four = iteration_cost(model, H100, 2), iteration_cost(model, H100, 4)
    assert two.memory_ps[1] == pytest.approx(2 * four.memory_ps[1], rel=1e-3)
    each_s = FITTED.message_s + 2 * 3 / 4 * 100 * 8192 * 2 / (450e9 * FITTED.link_efficiency)
    assert four.link_ps[100] == pytest.approx(2 * 80 * each_s * 1e12, abs=1)
    assert (two.gap_ps, two.sample_ps) == (four.gap_ps, four.sample_ps)


@pytest.mark.parametrize("deployment", FITTING, ids=lambda d: f"{d[0].name}-{d[1].name}-{d[2]}")
def test_without_stages_and_spread_experts_the_tables_are_those_of_the_plain_roofline(deployment):
    """The formula, written out for bfloat16 transformers whose layers are all alike."""
    model, gpu, tp = deployment
    cost, timing, t = COSTS[model.name, gpu.name, tp], gpu.timing, np.arange(TOKENS + 1, dtype=np.float64)
    mixture, vocabulary = model.experts > 1, model.vocab * model.hidden
    expert = 3 * model.hidden * model.intermediate * model.layers if mixture else 0
    outside = model.parameters - vocabulary - model.experts * expert
    multiplied = t * (outside + model.experts_per_token * expert / timing.expert_compute_efficiency)
    compute = 2 * multiplied / (gpu.bf16_flop_per_s * timing.compute_efficiency * tp)
    choosing = np.maximum(1 + timing.expert_spread * (t - 1), 0)
    touched = model.experts * (1 - (1 - model.experts_per_token / model.experts) ** choosing)
    crowded = 1 + timing.expert_crowding * (t > model.experts)
    streamed = 2 * (outside + touched * expert / timing.expert_memory_efficiency * crowded)
    memory = streamed / tp / (gpu.memory_bytes_per_s * timing.memory_efficiency)
    memory[0] = 0
    unhidden = timing.overlap_loss * np.minimum(compute, memory)
    moved = 2 * (tp - 1) / tp * t * model.hidden * 2
    each = timing.message_s + moved / (gpu.link_bytes_per_s * timing.link_efficiency)
    link = 2 * model.layers * each if tp > 1 else 0 * t
    tables = (cost.link_ps, cost.compute_ps, cost.memory_ps)
    for table, seconds in zip(tables, (link, compute + unhidden, memory + unhidden), strict=True):
        assert np.allclose(table, seconds * 1e12, rtol=1e-12, atol=1)
    once_s = (timing.step_s, model.layers * (timing.layer_s + mixture * timing.expert_layer_s))
    assert (cost.step_ps, cost.gap_ps) == pytest.approx([1e12 * s for s in once_s], abs=1)
    each_s = (timing.sequence_s, timing.sampling_s)
    assert (cost.sequence_ps, cost.sample_ps) == pytest.approx([1e12 * s for s in each_s], abs=1)
    assert cost.state_ps == 0
    cached = 2 * max(1, model.kv_heads // tp) * model.head_dim * 2 * model.layers
    assert cost.kv_read_ps == round(cached / (gpu.memory_bytes_per_s * timing.kv_efficiency) * 1e12)
    attention_flop_per_s = gpu.bf16_flop_per_s * timing.attention_efficiency
    assert cost.attention_ps == round(
        4 * model.layers * model.heads * model.head_dim / tp / attention_flop_per_s * 1e12
    )


def test_a_pipeline_worked_by_hand():
    """Four stages of 20 layers on two GPUs each: four micro-batches of 50 tokens, three messages for each."""
    model = CATALOG.model("Llama-3.1-70B")
    cost = iteration_cost(model, H100, 2, pp=4)
    table = 128_256 * 8192
    compute_s = 4 * 2 * (70_553_706_496 - table) / 4 * 50 / (2 * 989.4e12 * FITTED.compute_efficiency)
    last = (70_553_706_496 - 2 * table) / 4 + table
    memory_s = 4 * last * 2 / 2 / (3.35e12 * FITTED.memory_efficiency)
    unhidden_s = FITTED.overlap_loss * min(compute_s, memory_s)
    assert cost.compute_ps[200] == pytest.approx((compute_s + unhidden_s) * 1e12, abs=1)
    assert cost.memory_ps[200] == pytest.approx((memory_s + unhidden_s) * 1e12, abs=1)
    for batch in (50, 500):
        activations_s = batch * 8192 * 2 / (450e9 * FITTED.link_efficiency)
        stage_s = 20 * 2 * (FITTED.message_s + activations_s)
        hand_on_s = 2 * FITTED.message_s + 2 * activations_s
        assert cost.link_ps[4 * batch] == pytest.approx((4 * stage_s + 3 * hand_on_s) * 1e12, abs=1)
    # The host works for every micro-batch, and each passes all 80 layers; a sequence is in one of them.
    assert (cost.step_ps, cost.gap_ps) == pytest.approx((4e12 * FITTED.step_s, 80e12 * FITTED.layer_s), abs=1)
    assert (cost.sequence_ps, cost.sample_ps) == pytest.approx(
        (1e12 * FITTED.sequence_s, 1e12 * FITTED.sampling_s), abs=1
    )
    assert cost.kv_read_ps == round(327_680 / 2 / 4 / (3.35e12 * FITTED.kv_efficiency) * 1e12)
    uneven, whole = iteration_cost(model, H100, 2, TOKENS, 3), iteration_cost(model, H100, 2, TOKENS)
    assert uneven.attention_ps == pytest.approx(whole.attention_ps * 27 / 80, abs=1)
    # The largest stage sets the pace: three times 27 layers.
    assert uneven.gap_ps == pytest.approx(81e12 * FITTED.layer_s, abs=1)


def test_spread_experts_worked_by_hand():
    """16 tokens on 128 experts, 32 on each of four GPUs: 37.6 pairs on the busiest.

    They touch as many experts as 1 + spread · 15 tokens that choose on their own.
    """
    cost = iteration_cost(CATALOG.model("Qwen3-30B-A3B"), H100, 4, ep=True)
    expert, table = 3 * 2048 * 768 * 48, 151_936 * 2048
    outside = 30_532_122_624 - table - 128 * expert
    touched = 1 - (15 / 16) ** (1 + FITTED.expert_spread * 15)
    experts = 32 * touched + 1.029375 * (32 * touched * (1 - touched)) ** 0.5
    pairs = 32 + 1.029375 * (32 * 120 / 127) ** 0.5
    streamed = outside / 4 + experts * expert / FITTED.expert_memory_efficiency
    memory_s = streamed * 2 / (3.35e12 * FITTED.memory_efficiency)
    multiplied = outside / 4 * 16 + pairs * expert / FITTED.expert_compute_efficiency
    compute_s = 2 * multiplied / (989.4e12 * FITTED.compute_efficiency)
    unhidden_s = FITTED.overlap_loss * min(compute_s, memory_s)
    assert cost.memory_ps[16] == pytest.approx((memory_s + unhidden_s) * 1e12, rel=1e-6)
    assert cost.compute_ps[16] == pytest.approx((compute_s + unhidden_s) * 1e12, rel=1e-6)
    reduced_s = FITTED.message_s + 2 * 3 / 4 * 16 * 2048 * 2 / (450e9 * FITTED.link_efficiency)
    assert cost.link_ps[16] == pytest.approx(48 * 2 * reduced_s * 1e12, abs=1)
    assert cost.gap_ps == pytest.approx(48e12 * (FITTED.layer_s + FITTED.expert_layer_s), abs=1)


def test_what_shared_experts_and_weights_in_fp8_take_worked_by_hand():
    """DeepSeek-V3 has 61 layers, all in FP8, and experts in 58 of them with one that every token passes through."""
    model = CATALOG.model("DeepSeek-V3")
    gpu = with_timing(CATALOG.gpu("B200"), layer_s=1e-5, expert_layer_s=2e-5, shared_layer_s=4e-5, fp8_layer_s=8e-5)
    cost = iteration_cost(model, gpu, 8, ep=True)
    assert cost.gap_ps == pytest.approx((61 * 10 + 58 * 20 + 58 * 40) * 1e6, abs=1)
    without = iteration_cost(model, with_timing(gpu, fp8_layer_s=0.0, overlap_loss=0.0), 8, ep=True)
    cost = iteration_cost(model, with_timing(gpu, overlap_loss=0.0), 8, ep=True)
    assert (cost.memory_ps - without.memory_ps)[[0, 1, 500]] == pytest.approx([0, 61 * 80e6, 61 * 80e6], abs=2)
    assert np.array_equal(cost.compute_ps, without.compute_ps)


@pytest.mark.parametrize("name", ["Llama-3.1-405B", "Qwen3-235B-A22B", "gpt-oss-120b"])
def test_models_in_other_formats_quantise_nothing(name):
    model = CATALOG.model(name)
    assert (model.fp8_layers, model.shared_layers) == (0, 0)


@pytest.mark.parametrize(
    ("name", "fp8", "shared"),
    [("Llama-3.1-405B-FP8", 126, 0), ("Llama-4-Maverick-17B-128E-FP8", 24, 24), ("Llama-4-Scout-17B-16E", 0, 48)],
)
def test_layers_in_fp8_and_with_shared_experts_are_counted(name, fp8, shared):
    model = CATALOG.model(name)
    assert (model.fp8_layers, model.shared_layers) == (fp8, shared)


@pytest.mark.parametrize("tp", [1, 2])
def test_scans_and_states_worked_by_hand(tp):
    """27 of 56 layers scan; a sequence keeps 128 heads of 80 × 128 numbers of four bytes there, and convolutions."""
    model = CATALOG.model("NVIDIA-Nemotron-Nano-9B-v2")
    cost = iteration_cost(model, H100, tp)
    without = iteration_cost(model, with_timing(H100, scan_s=0.0), tp)
    scans_ps = (cost.compute_ps - without.compute_ps)[[1, 100]]
    assert scans_ps == pytest.approx([27 * n * FITTED.scan_s / tp * 1e12 for n in (1, 100)], abs=1)
    assert np.array_equal(cost.memory_ps, without.memory_ps)
    kept = 27 * (128 * 80 * 128 * 4 + 3 * (128 * 80 + 2 * 8 * 128) * 2)
    assert cost.state_ps == round(2 * kept / tp / (3.35e12 * FITTED.kv_efficiency) * 1e12)
    assert cost.gap_ps == pytest.approx(56e12 * FITTED.layer_s, abs=1)


def test_weights_of_a_byte_are_multiplied_as_fast_as_fp8_efficiency_says():
    """All weights but the embeddings in FP8: one table of 128,256 rows is multiplied in bfloat16."""
    wide = CATALOG.model("Llama-3.1-8B")
    model = wide.model_copy(update={"dtype_bytes": 1, "mlp_dtype_bytes": 1, "embedding_dtype_bytes": 2})
    table = 128_256 * 4096
    blocks = 8_030_261_248 - 2 * table
    compute_s = 2 * (blocks / (1978.9e12 * FITTED.fp8_efficiency) + table / 989.4e12) * 100 / FITTED.compute_efficiency
    memory_s = (blocks + 2 * table) / (3.35e12 * FITTED.memory_efficiency)
    unhidden_s = FITTED.overlap_loss * min(compute_s, memory_s)
    assert iteration_cost(model, H100, 1).compute_ps[100] == pytest.approx((compute_s + unhidden_s) * 1e12, abs=1)
    # The A100 has no FP8: it gains bytes alone, and the efficiency of FP8 is nothing to it.
    a100, t = CATALOG.gpu("A100-80GB"), CATALOG.gpu("A100-80GB").timing
    compute_s = 2 * (blocks + table) * 100 / (312e12 * t.compute_efficiency)
    memory_s = (blocks + 2 * table) / (2.039e12 * t.memory_efficiency)
    unhidden_s = t.overlap_loss * min(compute_s, memory_s)
    assert iteration_cost(model, a100, 1).compute_ps[100] == pytest.approx((compute_s + unhidden_s) * 1e12, abs=1)


# A pipeline, a hybrid, and mixtures of bfloat16, FP8 and MXFP4, sliced and whole: every figure counts in some.
KINDS = [
    (CATALOG.model(name), tp, pp, ep)
    for name, tp, pp, ep in [
        ("Llama-3.1-70B", 2, 4, False),
        ("NVIDIA-Nemotron-Nano-9B-v2", 1, 1, False),
        ("Qwen3-30B-A3B", 1, 1, False),
        ("Qwen3-30B-A3B-FP8", 2, 1, True),
        ("gpt-oss-120b", 4, 2, True),
        ("Llama-4-Scout-17B-16E", 4, 1, True),
    ]
]
DURATIONS = [name for name in TimingFit.model_fields if name.endswith("_s")]
EFFICIENCIES = [name for name in TimingFit.model_fields if name.endswith("efficiency")]
LOSSES = ["expert_spread", "expert_crowding", "overlap_loss"]


def with_timing(gpu, **fields):
    return gpu.model_copy(update={"timing": gpu.timing.model_copy(update=fields)})


def better_and_worse(kind, name, low, high):
    """The costs of a kind of deployment with two values, shares or up to a millisecond, of a figure of its GPU."""
    model, tp, pp, ep = kind
    values = (high, low) if name in EFFICIENCIES else (low, high)
    unit = 1e-3 if name in DURATIONS else 1.0
    gpus = (with_timing(H100, **{name: unit * value}) for value in values)
    better, worse = (iteration_cost(model, gpu, tp, 300, pp, ep, greedy=name == "greedy_s") for gpu in gpus)
    return better, worse


shares = st.floats(0.05, 1)
names = st.sampled_from([*DURATIONS, *EFFICIENCIES, *LOSSES])


@given(st.sampled_from(KINDS), names, shares, shares, st.integers(1, 300), contexts, st.floats(0.1, 1))
def test_no_figure_that_gets_worse_shortens_an_iteration(kind, name, a, b, batch, context, clock):
    better, worse = better_and_worse(kind, name, *sorted((a, b)))
    work = (batch, context, context, clock)
    assert iteration_ms(better, *work) <= iteration_ms(worse, *work) + 2e-9  # a picosecond or two of rounding


@pytest.mark.parametrize("name", sorted(TimingFit.model_fields.keys() - {"calibrated", "source"}))
def test_every_figure_of_an_iteration_counts(name):
    costs = [better_and_worse(kind, name, 0.3, 0.6) for kind in KINDS]
    decode, long_decode, prefill = (1, 0, 0), (300, 10**6, 10**6), (300, 0, 10**7)
    assert any(
        iteration_ms(better, *work) < 0.999 * iteration_ms(worse, *work)
        for better, worse in costs
        for work in (decode, long_decode, prefill)
    )


@pytest.mark.parametrize("pp", [1, 2])
@pytest.mark.parametrize("deployment", MIXTURES, ids=lambda d: f"{d[0].name}-{d[1].name}-{d[2]}")
def test_uneven_experts_cost_most_where_tokens_are_few(deployment, pp):
    sliced = iteration_cost(*deployment, TOKENS, pp)
    spread = iteration_cost(*deployment, TOKENS, pp, ep=True)
    if deployment[2] == 1:
        assert all(np.array_equal(table, other) for table, other in zip(sliced, spread, strict=True))
        return
    assert np.array_equal(sliced.link_ps, spread.link_ps)
    for name in ("compute_ps", "memory_ps"):
        extra = getattr(spread, name)[1:] / getattr(sliced, name)[1:]
        assert (extra >= 1).all() and extra[0] > 1.1 and extra[-1] < 1.05


def test_the_first_sequences_of_a_pipeline_fill_it():
    """One sequence takes a lap through all stages; a second and a third pass beside it in no more time."""
    cost = iteration_cost(CATALOG.model("Llama-3.1-70B"), CATALOG.gpu("H100-80GB"), 2, TOKENS, 4)
    tables = (cost.link_ps, cost.compute_ps, cost.memory_ps)
    assert all(len(set(table[1:5].tolist())) == 1 for table in tables)
    assert all(table[5] > table[4] for table in tables)


@given(st.sampled_from(FITTING), st.sampled_from([2, 3, 4, 8]), st.integers(1, TOKENS // 8), st.integers(0, 20_000))
def test_more_stages_with_as_many_sequences_each_are_never_slower_in_all(deployment, pp, batch, context):
    model, gpu, tp = deployment
    one, staged = COSTS[model.name, gpu.name, tp], iteration_cost(model, gpu, tp, TOKENS, pp)
    alone_ms = iteration_ms(one, batch, batch * context, batch * context)
    lap_ms = iteration_ms(staged, pp * batch, pp * batch * context, pp * batch * context)
    assert pp * batch / lap_ms >= batch / alone_ms * (1 - 1e-6)


@given(st.sampled_from(ON_SOME), st.sampled_from([2, 4, 5, 8]))
def test_stages_share_the_work_but_not_the_weights(deployment, pp):
    model, gpu, tp = deployment
    one, staged = COSTS[model.name, gpu.name, tp], iteration_cost(model, gpu, tp, TOKENS, pp)
    largest = -(-model.layers // pp) / model.layers
    assert staged.kv_read_ps == pytest.approx(one.kv_read_ps * largest, abs=1)
    assert staged.attention_ps == pytest.approx(one.attention_ps * largest, abs=1)
    slowest = max(stage.read_bytes for stage in pipeline_stages(model, pp))
    if model.experts == 1:
        bytes_per_s = gpu.memory_bytes_per_s * gpu.timing.memory_efficiency
        streamed_ps = pp * slowest / tp / bytes_per_s * 1e12
        assert staged.memory_ps[1] >= streamed_ps >= 0.999 * (one.memory_ps[1] - one.compute_ps[1])


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
        ("Qwen3-32B", "B200", 1, 128, 880, 24.7),
        ("Llama-3.1-70B", "B200", 2, 64, 530, 21.7),
    ],
)
def test_decode_holds_to_measurements(model, gpu, tp, batch, context, measured_ms):
    within = 0.15 if gpu == "B200" else 0.13  # docs/fidelity.md: 14 % in the median of the fitted runs of B200
    assert decode_ms(model, gpu, tp, batch, context) == pytest.approx(measured_ms, rel=within)


def test_prefill_reaches_a_plausible_share_of_the_peak():
    model = CATALOG.model("Llama-3.1-8B")
    for gpu, peak in (("H100-80GB", 989e12), ("A100-80GB", 312e12)):
        ms = iteration_ms(iteration_cost(model, CATALOG.gpu(gpu), 1), 2048, pairs=2048**2 // 2, sequences=1)
        assert 0.4 < 2 * model.parameters * 2048 / (ms / 1e3) / peak < 0.8


def test_capacity_worked_by_hand():
    model, gpu = CATALOG.model("Llama-3.1-8B"), CATALOG.gpu("H100-80GB")
    free = 85_520_809_984 * 0.9 - 16_060_522_496 - 2e9
    assert kv_capacity_tokens(model, gpu, 1) == int(free / 131_072) // 16 * 16
    assert kv_capacity_tokens(model, gpu, 1, 0.5) < kv_capacity_tokens(model, gpu, 1)


def test_the_stage_with_least_room_decides_how_much_fits():
    """80 layers in three stages are 27, 27 and 26; the first holds the embedding beside its 27."""
    model, gpu = CATALOG.model("Llama-3.1-70B"), CATALOG.gpu("H100-80GB")
    table = 128_256 * 8192
    first = ((70_553_706_496 - 2 * table) * 27 / 80 + table) * 2
    free = 85_520_809_984 * 0.9 - first - 2e9
    assert kv_capacity_tokens(model, gpu, 1, pp=3) == int(free / (327_680 * 27 / 80)) // 16 * 16


@given(st.sampled_from(FITTING), st.integers(1, 8))
def test_more_stages_hold_more(deployment, pp):
    model, gpu, tp = deployment
    assert kv_capacity_tokens(model, gpu, tp, pp=pp + 1) > kv_capacity_tokens(model, gpu, tp, pp=pp)


def test_what_does_not_fit_names_bytes_and_remedy():
    model = CATALOG.model("Llama-3.1-70B")
    with pytest.raises(InputError) as error:
        kv_capacity_tokens(model, CATALOG.gpu("H100-80GB"), 1)
    assert error.value.where == "Llama-3.1-70B on H100-80GB with tp=1"
    assert "needs 144.4 GB on each GPU, 77.0 GB are available" in error.value.problem
    assert error.value.remedy == "Use tp=2, or a smaller model"
    with pytest.raises(InputError, match=r"with tp=1 and pp=2: needs 73\.\d GB .*Use tp=2, or"):
        kv_capacity_tokens(model, CATALOG.gpu("H100-80GB"), 1, 0.8, 2)
    with pytest.raises(InputError, match="smaller model or a GPU with more memory"):
        kv_capacity_tokens(model, CATALOG.gpu("H100-80GB"), 8, 0.1)


@pytest.mark.parametrize("tp", [-1, 0, 3, 5, 16])
def test_tensor_parallelism_must_divide_the_heads(tp):
    with pytest.raises(InputError, match=r"cannot split 32 heads.*Use one of 1, 2, 4, 8"):
        iteration_cost(CATALOG.model("Llama-3.1-8B"), CATALOG.gpu("H200"), tp)


def test_experts_are_spread_over_the_gpus_of_a_mixture_only():
    with pytest.raises(InputError, match="ep: Qwen3-8B is dense"):
        iteration_cost(CATALOG.model("Qwen3-8B"), CATALOG.gpu("H200"), 2, ep=True)


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
