"""The catalogue: names, sources, the user's own entries, and what it says of bad ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from llmcluster.simulator.catalog import Catalog
from llmcluster.simulator.errors import InputError

CATALOG = Catalog.builtin()


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["A100-80GB", "a100-80gb", "H100-80GB", "H200", "b200", "A40", "V100-32GB", "B300"])
def test_gpus_are_found_in_any_case(name):
    assert CATALOG.gpu(name).name.lower() == name.lower()


@pytest.mark.parametrize("name", ["Llama-3.1-8B", "llama-3.1-70b", "Qwen3-8B", "Qwen3-32B", "QWEN3-30B-A3B"])
def test_models_are_found_in_any_case(name):
    assert CATALOG.model(name).name.lower() == name.lower()


def test_unknown_names_list_the_known_ones_and_the_closest():
    with pytest.raises(InputError) as error:
        CATALOG.gpu("H100-80G")
    assert "Did you mean H100-80GB?" in error.value.remedy
    assert all(name in error.value.remedy for name in CATALOG.gpus)
    with pytest.raises(InputError, match=r"model: unknown name 'gpt-9'.*Known: Llama-3\.1-8B"):
        CATALOG.model("gpt-9")


def test_every_figure_has_a_source():
    for gpu in CATALOG.gpus.values():
        fits = (gpu.host, gpu.timing, gpu.power, gpu.clock, gpu.thermal, gpu.meter)
        assert gpu.source and all(fit.source for fit in fits)
    assert all(model.source for model in CATALOG.models.values())


def test_only_measured_gpus_count_as_calibrated():
    assert {name for name, gpu in CATALOG.gpus.items() if gpu.calibrated} == {"A100-80GB", "H100-80GB", "B200"}


@pytest.mark.parametrize("name", ["Llama-3.1-8B", "Llama-3.1-70B", "Qwen3-8B", "Qwen3-32B", "Qwen3-30B-A3B"])
def test_parameters_follow_from_the_dimensions(name):
    model = CATALOG.model(name)
    qwen = name.startswith("Qwen3")
    attention = 2 * model.hidden * model.head_dim * (model.heads + model.kv_heads) + (2 * model.head_dim if qwen else 0)
    router = model.hidden * model.experts if model.experts > 1 else 0
    block = attention + router + 3 * model.hidden * model.intermediate * model.experts + 2 * model.hidden
    assert model.parameters == model.layers * block + 2 * model.vocab * model.hidden + model.hidden
    idle = 3 * model.hidden * model.intermediate * model.layers * (model.experts - model.experts_per_token)
    assert model.active_parameters == model.parameters - idle


def test_bytes_worked_by_hand():
    model = CATALOG.model("Llama-3.1-8B")
    assert model.weight_bytes == 16_060_522_496
    assert model.kv_bytes_per_token == 2 * 32 * 8 * 128 * 2 == 131_072
    assert model.block_bytes + model.head_bytes == 2 * (8_030_261_248 - 128_256 * 4096)


def test_a_mixture_reads_more_experts_with_more_tokens():
    model = CATALOG.model("Qwen3-30B-A3B")
    expert = 3 * 2048 * 768 * 48
    assert model.expert_bytes == 2 * expert
    touched = [128 - model.untouched_experts(tokens) for tokens in (1, 2, 4096)]
    assert touched == pytest.approx([8, 8 + 8 * 120 / 128, 128])


def test_specs_are_frozen():
    with pytest.raises(ValidationError):
        CATALOG.gpu("H200").cap_max_w = 1.0


def test_one_byte_weights_use_fp8_where_there_is_any():
    h100, a100 = CATALOG.gpu("H100-80GB"), CATALOG.gpu("A100-80GB")
    assert h100.flop_per_s(1) == pytest.approx(2 * h100.flop_per_s(2), rel=1e-3)
    assert a100.flop_per_s(1) == a100.flop_per_s(2) == 312e12


def test_operations_of_mixed_precision_take_the_time_of_each():
    """A quarter in FP8 takes 1/4 of half the time: 1 / (3/4 + 1/8) = 8/7 of the bfloat16 peak."""
    h100, a100 = CATALOG.gpu("H100-80GB"), CATALOG.gpu("A100-80GB")
    assert h100.mixed_flop_per_s(0.25) == pytest.approx(8 / 7 * h100.bf16_flop_per_s, rel=1e-3)
    assert h100.mixed_flop_per_s(0) == h100.bf16_flop_per_s
    assert h100.mixed_flop_per_s(1) == pytest.approx(h100.flop_per_s(1))
    assert a100.mixed_flop_per_s(0.25) == pytest.approx(312e12)


def test_a_file_adds_and_replaces_without_touching_the_original(tmp_path):
    path = write(
        tmp_path / "mine.toml",
        """
        [gpus."H100-PCIe"]
        like = "H100-80GB"
        cap_max_w = 350
        timing.step_s = 0.002
        [models."Llama-3.1-8B-FP8"]
        like = "Llama-3.1-8B"
        dtype_bytes = 1
        """,
    )
    catalog = CATALOG.with_file(path)
    gpu = catalog.gpu("h100-pcie")
    assert (gpu.cap_max_w, gpu.timing.step_s, gpu.memory_bytes_per_s) == (350, 0.002, 3.35e12)
    assert not gpu.calibrated and gpu.power.source.startswith("as H100-80GB: ")
    assert catalog.model("Llama-3.1-8B-FP8").weight_bytes == 8_030_261_248
    assert "H100-PCIe" not in CATALOG.gpus and len(catalog.gpus) == len(CATALOG.gpus) + 1


def test_a_host_table_is_the_default_of_the_files_gpus(tmp_path):
    text = '[host]\nstorage_bytes_per_s = 5e9\n[gpus."X"]\nlike = "H200"\n'
    catalog = CATALOG.with_file(write(tmp_path / "host.toml", text))
    assert catalog.gpu("X").host.storage_bytes_per_s == 5e9
    assert catalog.gpu("X").host.start_s == CATALOG.gpu("H200").host.start_s


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpus = [", "is not TOML"),
        ("gpu = 1", "not a table of the catalogue"),
        ("gpus = 1", "not a table of the catalogue"),
        ('[gpus."X"]\nlike = "nothing"', r"gpus\.X\.like: unknown name 'nothing'"),
        ('[gpus."X"]\nlike = "H200"\nwatts = 3', r"gpus\.X\.watts.*documented in"),
        ('[gpus."X"]\nlike = "H200"\ncap_max_w = -3', r"gpus\.X\.cap_max_w"),
        ('[gpus."X"]\nlike = "H200"\ncap_min_w = 800', "cap_min_w and clock_min_mhz must lie below"),
        ('[gpus."X"]\nlike = "H200"\nclock.ratio = [0.5, 1.0]', "ascend strictly to 1"),
        (
            '[gpus."X"]\nlike = "H200"\nclock.ratio = [0.5, 1.0]\nclock.scale = [0.6, 1.0]',
            "at least as fast as ratio",
        ),
        ('[models."X"]\nlike = "Qwen3-8B"\nactive_parameters = 9_000_000_000', "more parameters or experts"),
        ('[models."X"]\nlike = "Qwen3-8B"\nkv_heads = 7', "the parts exceed the whole"),
        ('[models."X"]\nlike = "Qwen3-8B"\nlayers = 18', "the dimensions make 4,7"),
    ],
)
def test_bad_files_name_the_fault(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        CATALOG.with_file(write(tmp_path / "bad.toml", text))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.toml: cannot be read"):
        CATALOG.with_file(tmp_path / "none.toml")
