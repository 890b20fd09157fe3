"""The models of the catalogue: held to published counts, bytes worked by hand, and guesses for unknown models."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcluster.simulator.catalog import Catalog, ModelSpec
from llmcluster.simulator.errors import InputError
from llmcluster.simulator.parallelism import pipeline_stages, tensor_parallel_sizes
from llmcluster.simulator.performance import iteration_cost, kv_bytes_per_gpu, kv_capacity_tokens

CATALOG = Catalog.builtin()
B200, H100 = CATALOG.gpu("B200"), CATALOG.gpu("H100-80GB")
BILLION = 10**9

PUBLISHED = {
    # Whole numbers are safetensors.total on huggingface.co, image encoder included; others are the publishers' own.
    "Llama-3.1-8B": 8_030_261_248,
    "Llama-3.1-70B": 70_553_706_496,
    "Llama-3.1-405B": 405_853_388_800,
    "Llama-3.1-405B-FP8": 405_853_388_800,
    "Llama-3-8B": 8_030_261_248,
    "Llama-3-70B": 70_553_706_496,
    "Llama-2-7B": 6_738_415_616,
    "Llama-2-13B": 13_015_864_320,
    "Llama-2-70B": 68_976_648_192,
    "Llama-4-Scout-17B-16E": 108_641_793_536,
    "Llama-4-Maverick-17B-128E": 401_583_781_376,
    "Llama-4-Maverick-17B-128E-FP8": 401_583_781_376,
    "Qwen3-4B": 4_022_468_096,
    "Qwen3-8B": 8_190_735_360,
    "Qwen3-14B": 14.8e9,
    "Qwen3-32B": 32_762_123_264,
    "Qwen3-30B-A3B": 30.5e9,
    "Qwen3-30B-A3B-FP8": 30.5e9,
    "Qwen3-235B-A22B": 235e9,
    "Qwen3-235B-A22B-FP8": 235e9,
    "Qwen2.5-72B": 72.7e9,
    "DeepSeek-V3": 671e9,
    "gpt-oss-120b": 116_829_156_672,
    "gpt-oss-20b": 20_914_757_184,
    "Mixtral-8x7B": 46.7e9,
    "Mistral-7B": 7_241_732_096,
    "gemma-3-12b-it": 12_187_325_040,
    "gemma-3-27b-it": 27_432_406_640,
    "NVIDIA-Nemotron-Nano-9B-v2": 8.89e9,
    "NVIDIA-Nemotron-Nano-12B-v2": 12.31e9,
    "BLOOM-176B": 176_247_271_424,
    "Falcon-7B": 7_217_189_760 - 65_024 * 4544,
    "Falcon-40B": 41_835_970_560 - 65_024 * 8192,
}


def test_every_model_has_a_published_count():
    assert set(PUBLISHED) == set(CATALOG.models)


@pytest.mark.parametrize("name", list(CATALOG.models))
def test_parameters_are_the_published_ones_and_those_of_the_dimensions(name):
    model = CATALOG.model(name)
    assert model.parameters + model.vision_parameters == pytest.approx(PUBLISHED[name], rel=0.003)
    if isinstance(PUBLISHED[name], int):
        assert model.parameters + model.vision_parameters == PUBLISHED[name]
    biases_and_norms = model.parameters - model.parameters_of_dimensions
    assert 0 < biases_and_norms < 0.0004 * model.parameters
    idle = (model.experts - model.experts_per_token) * model.expert_parameters
    assert model.active_parameters == model.parameters - idle


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("Qwen3-30B-A3B", 3.3),
        ("Qwen3-235B-A22B", 22),
        ("Llama-4-Scout-17B-16E", 17),
        ("Llama-4-Maverick-17B-128E", 17),
        ("DeepSeek-V3", 37),
        ("Mixtral-8x7B", 12.9),
    ],
)
def test_active_parameters_are_the_published_ones(name, billions):
    assert CATALOG.model(name).active_parameters == pytest.approx(billions * BILLION, rel=0.02)


@pytest.mark.parametrize(("name", "billions", "gibibytes"), [("gpt-oss-120b", 5.13, 60.8), ("gpt-oss-20b", 3.61, 12.8)])
def test_gpt_oss_is_as_large_as_its_model_card_says(name, billions, gibibytes):
    """arXiv 2508.10925, table 1: active parameters without the input embedding, and size of the checkpoint."""
    model = CATALOG.model(name)
    assert model.active_parameters - model.lookup_parameters == pytest.approx(billions * BILLION, rel=0.01)
    assert model.weight_bytes / 2**30 == pytest.approx(gibibytes, rel=0.005)


@pytest.mark.parametrize(
    ("name", "kv_bytes"),
    [
        ("Llama-3.1-8B", 131_072),
        ("Llama-3.1-70B", 327_680),
        ("Llama-3.1-405B", 516_096),
        ("Llama-2-7B", 524_288),
        ("BLOOM-176B", 4_014_080),
        ("Falcon-7B", 8192),
        ("DeepSeek-V3", 61 * (512 + 64) * 2),
        ("gpt-oss-120b", 18 * 2 * 8 * 64 * 2),
        ("gemma-3-12b-it", 48 * 2 * 8 * 256 * 2),
        ("NVIDIA-Nemotron-Nano-9B-v2", 4 * 2 * 8 * 128 * 2),
        ("NVIDIA-Nemotron-Nano-12B-v2", 6 * 2 * 8 * 128 * 2),
    ],
)
def test_keys_and_values_worked_by_hand(name, kv_bytes):
    assert CATALOG.model(name).kv_bytes_per_token == kv_bytes


def test_a_latent_cache_is_whole_on_every_gpu():
    assert kv_bytes_per_gpu(CATALOG.model("DeepSeek-V3"), 8) == 70_272
    assert kv_bytes_per_gpu(CATALOG.model("Qwen3-235B-A22B"), 8) == 192_512 / 4


def test_states_worked_by_hand():
    """Nemotron 9B: 27 layers of 128 heads · 80 · 128 float32 and (10240 + 2·8·128)·3 bfloat16 that wait."""
    nine, twelve = (CATALOG.model(f"NVIDIA-Nemotron-Nano-{n}-v2") for n in ("9B", "12B"))
    layer = 128 * 80 * 128 * 4 + (10_240 + 2048) * 3 * 2
    moved = [model.moved_state_bytes_per_sequence for model in (nine, twelve)]
    assert moved == [2 * 27 * layer, 2 * 28 * layer], "read and written"
    short = CATALOG.model("gpt-oss-120b")
    assert short.moved_state_bytes_per_sequence == 18 * 128 * 2 * 8 * 64 * 2
    assert CATALOG.model("gemma-3-12b-it").moved_state_bytes_per_sequence == 0


def test_layers_are_told_apart():
    nine, scout, maverick = (
        CATALOG.model(n) for n in ("NVIDIA-Nemotron-Nano-9B-v2", "Llama-4-Scout-17B-16E", "Llama-4-Maverick-17B-128E")
    )
    assert (nine.attention_layers, nine.mixer_layers, nine.mlp_layers, nine.all_reduces) == (4, 31, 25, 56)
    assert (scout.moe_layers, maverick.moe_layers, maverick.all_reduces) == (48, 24, 96)
    assert CATALOG.model("DeepSeek-V3").moe_layers == 58
    assert CATALOG.model("Llama-3.1-8B").moe_layers == 0


def test_pairs_worked_by_hand():
    assert CATALOG.model("Llama-3.1-8B").attention_flop_per_pair == 4 * 32 * 32 * 128
    assert CATALOG.model("DeepSeek-V3").attention_flop_per_pair == 61 * 128 * (2 * 192 + 2 * 128)
    assert CATALOG.model("gpt-oss-20b").attention_flop_per_pair == 4 * 12 * 64 * 64
    assert CATALOG.model("NVIDIA-Nemotron-Nano-9B-v2").attention_flop_per_pair == 4 * 4 * 40 * 128


def test_eight_bits_halve_what_they_hold():
    """Block-wise FP8 spares the tables; Meta's FP8 spares attention, or all but routed experts."""
    qwen, llama, maverick = (
        (CATALOG.model(name), CATALOG.model(f"{name}-FP8"))
        for name in ("Qwen3-235B-A22B", "Llama-3.1-405B", "Llama-4-Maverick-17B-128E")
    )
    tables = 2 * 151_936 * 4096
    assert qwen[1].weight_bytes == 235_093_634_560 + tables
    assert qwen[1].fp8_share == pytest.approx(1 - tables / 2 / (qwen[0].active_parameters - tables / 2))
    assert llama[0].weight_bytes - llama[1].weight_bytes == 126 * 3 * 16_384 * 53_248
    assert maverick[0].weight_bytes - maverick[1].weight_bytes == 128 * 24 * 3 * 5120 * 8192
    assert maverick[1].fp8_share == pytest.approx(24 * 3 * 5120 * 8192 / (17.18e9 - 1.03e9), rel=1e-3)
    assert [pair[0].fp8_share for pair in (qwen, llama, maverick)] == [0, 0, 0]
    assert CATALOG.model("gpt-oss-120b").fp8_share == 0


def streamed_bytes(model: ModelSpec, tokens: float) -> float:
    """What an iteration over so many tokens reads of the weights."""
    return model.block_bytes + model.head_bytes - model.expert_bytes * model.untouched_experts(tokens)


def test_a_token_reads_shared_experts_and_dense_layers_whatever_it_is_routed_to():
    model = CATALOG.model("Llama-4-Maverick-17B-128E-FP8")
    outside = model.parameters - 128 * model.expert_parameters - 202_048 * 5120
    assert streamed_bytes(model, 1) == pytest.approx(2 * outside + model.expert_parameters)
    assert streamed_bytes(model, 10**6) == pytest.approx(2 * outside + 128 * model.expert_parameters)
    half = CATALOG.model("gpt-oss-120b")
    assert half.expert_bytes == half.expert_parameters * 4.25 / 8


def test_an_image_encoder_is_held_but_not_read():
    model = CATALOG.model("gemma-3-12b-it")
    first, last = pipeline_stages(model, 2)
    assert model.weight_bytes == 2 * 12_187_325_040
    assert first.resident_bytes - first.read_bytes == 2 * (421_290_864 + 262_208 * 3840)
    assert last.resident_bytes == last.read_bytes


@pytest.mark.parametrize("name", list(CATALOG.models))
def test_every_model_runs_on_some_slot(name):
    model = CATALOG.model(name)
    tp = max(tensor_parallel_sizes(model))
    assert kv_capacity_tokens(model, B200, tp) > 0
    cost = iteration_cost(model, B200, tp, 64)
    for table in (cost.link_ps, cost.compute_ps, cost.memory_ps):
        assert np.all(np.diff(table) >= 0)
    assert cost.kv_read_ps > 0 and cost.attention_ps > 0


def test_a_hybrid_reduces_once_a_layer():
    model = CATALOG.model("NVIDIA-Nemotron-Nano-9B-v2")
    two, four = (iteration_cost(model.model_copy(update={"mlp_only_layers": n}), H100, 2, 1) for n in (25, 0))
    each_ps = (H100.timing.message_s + 4480 * 2 / (450e9 * H100.timing.link_efficiency)) * 1e12
    assert four.link_ps[1] - two.link_ps[1] == pytest.approx(56 * each_ps, abs=2)


# -------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("published", "name"),
    [
        ("Qwen/Qwen3-235B-A22B-Instruct-2507", "Qwen3-235B-A22B"),
        ("Qwen/Qwen3-235B-A22B-Thinking-2507", "Qwen3-235B-A22B"),
        ("Qwen/Qwen3-235B-A22B-Thinking-2507-FP8", "Qwen3-235B-A22B-FP8"),
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", "Qwen3-30B-A3B"),
        ("Qwen/Qwen3-30B-A3B-Thinking-2507", "Qwen3-30B-A3B"),
        ("Qwen/Qwen3-32B", "Qwen3-32B"),
        ("Qwen/Qwen3-8B", "Qwen3-8B"),
        ("deepseek-ai/DeepSeek-R1-0528", "DeepSeek-V3"),
        ("deepseek-ai/DeepSeek-V3.1", "DeepSeek-V3"),
        ("google/gemma-3-12b-it", "gemma-3-12b-it"),
        ("meta-llama/Llama-3.1-405B-Instruct", "Llama-3.1-405B"),
        ("meta-llama/Llama-3.1-405B-Instruct-FP8", "Llama-3.1-405B-FP8"),
        ("meta-llama/Llama-3.1-70B-Instruct", "Llama-3.1-70B"),
        ("meta-llama/Llama-3.1-8B-Instruct", "Llama-3.1-8B"),
        ("meta-llama/Llama-4-Maverick-17B-128E-Instruct-FP8", "Llama-4-Maverick-17B-128E-FP8"),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", "Llama-4-Scout-17B-16E"),
        ("nvidia/NVIDIA-Nemotron-Nano-12B-v2", "NVIDIA-Nemotron-Nano-12B-v2"),
        ("nvidia/NVIDIA-Nemotron-Nano-9B-v2", "NVIDIA-Nemotron-Nano-9B-v2"),
        ("openai/gpt-oss-120b", "gpt-oss-120b"),
        ("llama2-70b", "Llama-2-70B"),
        ("bloom-176b", "BLOOM-176B"),
        ("meta-llama/Llama-2-7b-hf", "Llama-2-7B"),
        ("meta-llama/Meta-Llama-3-8B", "Llama-3-8B"),
        ("Llama-2-13b-chat-hf", "Llama-2-13B"),
        ("Mistral-7B-v0.1", "Mistral-7B"),
        ("Mixtral-8x7B-v0.1", "Mixtral-8x7B"),
        ("falcon-40b", "Falcon-40B"),
    ],
)
def test_published_names_are_found(published, name):
    assert CATALOG.model(published).name == name


def test_no_two_entries_share_a_name():
    names = [n.lower() for m in CATALOG.models.values() for n in (m.name, *m.aliases)]
    assert len(names) == len(set(names))


def test_what_is_like_another_has_its_own_aliases(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[models."Mine"]\nlike = "Llama-3.1-8B"\naliases = ["ours"]\n', encoding="utf-8")
    catalog = CATALOG.with_file(path)
    assert catalog.model("OURS").name == "Mine"
    assert catalog.model("Llama-3.1-8B-Instruct").name == "Llama-3.1-8B"


# ---------------------------------------------------------------------------------------------------------- bad entries


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window_layers": 33, "window_tokens": 128}, "fewer layers than kinds"),
        ({"mlp_only_layers": 32, "window_layers": 1, "window_tokens": 128}, "fewer layers than kinds"),
        ({"window_layers": 4}, "window_layers goes with window_tokens"),
        ({"experts": 8, "dense_layers": 1}, "dense_layers with dense_intermediate"),
        ({"shared_intermediate": 64}, "dense model has no shared"),
        ({"expert_dtype_bytes": 1}, "dense model has no shared"),
        ({"latent": {"query_rank": 1, "kv_rank": 1, "rope_dim": 1}}, "kv_heads = 1"),
        ({"intermediate": 30_000}, "the parts exceed the whole"),
        ({"dtype_bytes": 0}, "greater than 0"),
    ],
)
def test_bad_entries_are_explained(change: dict[str, Any], message: str) -> None:
    fields = CATALOG.model("Llama-3.1-8B").model_dump() | change
    with pytest.raises(ValueError, match=message):
        ModelSpec.model_validate(fields)


# -------------------------------------------------------------------------------------------------------------- generic


@pytest.mark.parametrize(
    "name", ["Llama-3.1-8B", "Llama-3.1-70B", "Llama-3.1-405B", "Qwen3-8B", "Qwen3-14B", "Qwen3-32B", "Qwen2.5-72B"]
)
def test_dense_guesses_come_close(name):
    model = CATALOG.model(name)
    guess = ModelSpec.generic("guess", model.parameters, model.active_parameters)
    assert guess.layers == pytest.approx(model.layers, rel=0.15)
    assert guess.hidden == pytest.approx(model.hidden, rel=0.21)
    assert guess.kv_bytes_per_token == pytest.approx(model.kv_bytes_per_token, rel=0.15)
    assert guess.attention_flop_per_pair == pytest.approx(model.attention_flop_per_pair, rel=0.3)
    assert streamed_bytes(guess, 64) == pytest.approx(streamed_bytes(model, 64), rel=0.05)


@pytest.mark.parametrize("name", ["Qwen3-30B-A3B", "Qwen3-235B-A22B", "DeepSeek-V3", "gpt-oss-120b", "Mixtral-8x7B"])
def test_guessed_mixtures_read_about_as_much(name):
    model = CATALOG.model(name)
    guess = ModelSpec.generic("guess", model.parameters, model.active_parameters, model.weight_bytes / model.parameters)
    for tokens in (1, 16, 256):
        ratio = streamed_bytes(guess, tokens) / streamed_bytes(model, tokens)
        assert 1 / 2 < ratio < 2
    assert streamed_bytes(guess, 4096) == pytest.approx(streamed_bytes(model, 4096), rel=0.05)


@given(st.floats(math.log(5e8), math.log(1.5e12)), st.one_of(st.just(1.0), st.floats(1.5, 30)))
def test_any_usual_size_has_a_guess_that_adds_up(log_active, sparsity):
    active = round(math.exp(log_active))
    parameters = round(active * sparsity)
    model = ModelSpec.generic("guess", parameters, active, 1)
    assert model.guessed and "guessed" in model.source
    assert model.parameters_of_dimensions == pytest.approx(parameters, rel=0.01)
    assert model.weight_bytes == parameters
    assert set(tensor_parallel_sizes(model)) >= {1, 2, 4, 8}
    assert (model.experts == 1) == (parameters == active) and model.experts % 8 in (0, 1)


@pytest.mark.parametrize(("parameters", "active"), [(0, 0), (1000, 1000), (10**10, 2 * 10**10), (10**10, 10**6)])
def test_impossible_sizes_are_explained(parameters, active):
    with pytest.raises(InputError, match=r"guess: .* make no model"):
        ModelSpec.generic("guess", parameters, active)
