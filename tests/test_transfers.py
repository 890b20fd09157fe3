"""Loading, waking from both levels of sleep, and handing a prompt's cache over: measured times and figures by hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from llmcluster.simulator.blueprint import Blueprint
from llmcluster.simulator.catalog import Catalog
from llmcluster.simulator.errors import InputError
from llmcluster.simulator.topology import ClusterSpec, EngineSpec
from llmcluster.simulator.transfers import kv_transfer_s, load_time_s, wake_time_s

CATALOG = Catalog.builtin()
A100, H100 = CATALOG.gpu("A100-80GB"), CATALOG.gpu("H100-80GB")
EVEN = [model for model in CATALOG.models.values() if model.heads % 8 == 0]
MODELS, GPUS = st.sampled_from(EVEN), st.sampled_from(list(CATALOG.gpus.values()))
SIZES = st.sampled_from([1, 2, 4, 8])


@given(MODELS, GPUS, SIZES, st.integers(1, 8))
def test_waking_is_faster_than_loading_and_from_host_memory_faster_still(model, gpu, tp, pp):
    deep, light = wake_time_s(model, gpu, tp, pp), wake_time_s(model, gpu, tp, pp, sleep_level=1)
    assert 0 < light < deep < load_time_s(model, gpu, tp, pp)


@pytest.mark.parametrize(
    ("model", "tp"),
    [("Llama-3.1-8B", 1), ("Qwen3-8B", 1), ("Qwen3-32B", 2), ("Llama-3.1-70B", 4), ("Qwen3-30B-A3B", 2)],
)
def test_loading_takes_20_to_60_seconds(model, tp):
    assert 20 <= load_time_s(CATALOG.model(model), H100, tp) <= 60


def test_waking_an_8b_model_takes_20_seconds():
    assert wake_time_s(CATALOG.model("Llama-3.1-8B"), H100, 1) == pytest.approx(20.06, abs=0.01)


@pytest.mark.parametrize(("weight_bytes", "measured_s"), [(1.2e9, 0.26), (8.3e9, 0.82), (61.1e9, 2.87)])
def test_waking_from_host_memory_holds_to_measurements(weight_bytes, measured_s):
    """vLLM blog, 2025-10-26, one A100: Qwen3-0.6B, Phi-3-vision and Qwen3-Coder-30B-A3B from sleep level 1."""
    model = CATALOG.model("Qwen3-30B-A3B").model_copy(update={"parameters": round(weight_bytes / 2)})
    assert wake_time_s(model, A100, 1, sleep_level=1) == pytest.approx(measured_s, abs=0.15)


def test_the_stage_with_most_weights_is_ready_last():
    """70B in two stages: 40 layers and one table each; in three: 27 layers and the embedding."""
    model, table = CATALOG.model("Llama-3.1-70B"), 128_256 * 8192
    assert load_time_s(model, H100, 1, 2) == pytest.approx(8 + 70_553_706_496 / 1e9 + 12)
    first = ((70_553_706_496 - 2 * table) * 27 / 80 + table) * 2
    assert load_time_s(model, H100, 1, 3) == pytest.approx(8 + first / 1e9 + 12)


def test_handing_over_worked_by_hand():
    """327,680 bytes a token over 50 GB/s a GPU: an eighth on each of eight; in three stages of one GPU, 27/80."""
    model = CATALOG.model("Llama-3.1-70B")
    assert kv_transfer_s(model, H100, 1) == pytest.approx(327_680 / 50e9)
    assert kv_transfer_s(model, H100, 8) == pytest.approx(327_680 / 8 / 50e9)
    assert kv_transfer_s(model, H100, 1, 3) == pytest.approx(327_680 * 27 / 80 / 50e9)
    assert kv_transfer_s(model, A100, 8) == pytest.approx(2 * kv_transfer_s(model, H100, 8))
    qwen = CATALOG.model("Qwen3-30B-A3B")
    assert kv_transfer_s(qwen, H100, 8) == kv_transfer_s(qwen, H100, 4), "with 4 KV heads, two GPUs hold the same"


def test_what_cannot_be_cut_is_refused():
    model = CATALOG.model("Llama-3.1-8B")
    for time_s in (load_time_s, wake_time_s, kv_transfer_s):
        with pytest.raises(InputError, match="cannot split 32 heads"):
            time_s(model, H100, 3)
        with pytest.raises(InputError, match="cannot cut 32 layers"):
            time_s(model, H100, 1, 33)


def deployment(**engine: Any):
    servers = [{"gpu": "H100-80GB", "tp": 2, "pp": 2, "model": "Llama-3.1-70B"}]
    spec = {"rows": [{"racks": [{"servers": servers}]}], "engine": engine}
    return Blueprint.of(ClusterSpec.model_validate(spec)).deployments[0]


def test_a_deployment_knows_its_times():
    model, deep, light = CATALOG.model("Llama-3.1-70B"), deployment(), deployment(sleep_level=1)
    assert deep.load_s == light.load_s == load_time_s(model, H100, 2, 2)
    assert (deep.wake_s, light.wake_s) == (wake_time_s(model, H100, 2, 2), wake_time_s(model, H100, 2, 2, 1))
    assert deep.kv_transfer_ps == round(327_680 / 4 / 50e9 * 1e12) and deep.kv_transfer_latency_ps == 5 * 10**9


def test_there_are_two_levels_of_sleep():
    assert EngineSpec().sleep_level == 2
    with pytest.raises(ValidationError, match="1 or 2"):
        EngineSpec(sleep_level=3)
