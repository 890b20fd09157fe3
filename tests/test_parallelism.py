"""How models are cut over GPUs: stages, whole experts and their uneven load, messages by hand, slots of a cluster."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from llmcluster.simulator.blueprint import Blueprint
from llmcluster.simulator.catalog import Catalog, ModelSpec
from llmcluster.simulator.cluster import Cluster
from llmcluster.simulator.communication import hand_on_s
from llmcluster.simulator.errors import InputError
from llmcluster.simulator.experts import busiest_experts, busiest_pairs, normal_maximum
from llmcluster.simulator.parallelism import check_ep, pipeline_stages
from llmcluster.simulator.performance import kv_capacity_tokens
from llmcluster.simulator.topology import ClusterSpec, ServerSpec
from llmcluster.simulator.workload.table import RequestTable

CATALOG = Catalog.builtin()
H100 = CATALOG.gpu("H100-80GB")
DENSE, MIXTURE = CATALOG.model("Llama-3.1-70B"), CATALOG.model("Qwen3-30B-A3B")
TIED = CATALOG.model("Qwen3-8B").model_copy(
    update={"tied_embeddings": True, "parameters": CATALOG.model("Qwen3-8B").parameters - 151_936 * 4096}
)
MODELS = st.sampled_from([*CATALOG.models.values(), TIED])


def mixture(experts: int, chosen: int) -> ModelSpec:
    parameters = MIXTURE.parameters + (experts - 128) * MIXTURE.expert_parameters
    fields = {"experts": experts, "experts_per_token": chosen, "parameters": parameters}
    return MIXTURE.model_copy(update=fields)


# ------------------------------------------------------------------------------------------------------------- stages


@given(MODELS, st.integers(1, 16))
def test_stages_hold_every_layer_once(model: ModelSpec, pp: int) -> None:
    stages = pipeline_stages(model, pp)
    assert len(stages) == pp and sum(s.share for s in stages) == pytest.approx(1)
    assert max(s.share for s in stages) * model.layers == pytest.approx(-(-model.layers // pp))
    assert sum(s.read_bytes for s in stages) == pytest.approx(model.block_bytes + model.head_bytes)
    copied = model.head_bytes if model.tied_embeddings and pp > 1 else 0
    assert sum(s.resident_bytes for s in stages) == pytest.approx(model.weight_bytes + copied)


@pytest.mark.parametrize(
    ("layers", "pp", "expected"), [(22, 4, [5, 6, 6, 5]), (61, 4, [15, 15, 16, 15]), (3, 2, [2, 1])]
)
def test_layers_that_do_not_divide_go_where_vllm_puts_them(layers: int, pp: int, expected: list[int]) -> None:
    model = DENSE.model_copy(update={"layers": layers})
    assert [round(s.share * layers) for s in pipeline_stages(model, pp)] == expected


def test_embedding_and_head_stand_at_the_ends() -> None:
    first, middle, last = pipeline_stages(DENSE.model_copy(update={"layers": 81}), 3)
    head = 128_256 * 8192 * 2
    assert first.resident_bytes - middle.resident_bytes == pytest.approx(head)
    assert last.resident_bytes - middle.resident_bytes == pytest.approx(head)
    assert last.read_bytes - first.read_bytes == pytest.approx(head)


@pytest.mark.parametrize("pp", [-1, 0, 81])
def test_a_stage_needs_a_layer(pp: int) -> None:
    with pytest.raises(InputError, match=r"pp: cannot cut 80 layers .* Use 1 to 80"):
        pipeline_stages(DENSE, pp)


# ----------------------------------------------------------------------------------------------------------- messages


def test_handing_on_worked_by_hand() -> None:
    """100 tokens of two tensors of 8192 bfloat16 numbers are 3,276,800 bytes; a GPU sends 1/4, then gathers 3/4."""
    link, message_s = 450e9 * H100.timing.link_efficiency, H100.timing.message_s
    tokens = np.array([100.0])
    assert hand_on_s(DENSE, H100, 1, tokens)[0] == pytest.approx(message_s + 3_276_800 / link)
    assert hand_on_s(DENSE, H100, 4, tokens)[0] == pytest.approx(2 * message_s + (819_200 + 2_457_600) / link)


# ------------------------------------------------------------------------------------------------------ uneven experts


def test_the_maximum_of_normals_is_the_tabulated_one() -> None:
    """David and Nagaraja, Order Statistics: 1/√π of two, 1.0294 of four, 1.4236 of eight."""
    assert [normal_maximum(n) for n in (1, 2, 4, 8)] == pytest.approx([0, np.pi**-0.5, 1.0294, 1.4236], abs=1e-4)


@pytest.mark.parametrize("n", [1, 8, 64, 512])
@pytest.mark.parametrize("gpus", [2, 4, 8])
@pytest.mark.parametrize(("experts", "chosen"), [(128, 8), (16, 1), (8, 2)])
def test_the_busiest_gpu_is_as_busy_as_with_random_routing(experts: int, chosen: int, gpus: int, n: int) -> None:
    rng = np.random.default_rng(0)
    pairs, touched = [], []
    for _ in range(400):
        routed = rng.permuted(np.tile(np.arange(experts), (n, 1)), axis=1)[:, :chosen]
        gpu_of = routed * gpus // experts
        pairs.append(np.bincount(gpu_of.ravel()).max())
        touched.append(np.bincount(np.unique(routed) * gpus // experts).max())
    model, tokens, error = mixture(experts, chosen), np.array([float(n)]), 0.1 if n < 64 else 0.025
    assert busiest_pairs(model, gpus, tokens)[0] == pytest.approx(np.mean(pairs), rel=error)
    assert busiest_experts(model, gpus, tokens)[0] == pytest.approx(np.mean(touched), rel=error)


@given(st.sampled_from([(128, 8), (16, 1), (64, 6), (8, 2)]), st.sampled_from([1, 2, 4, 8]))
def test_the_busiest_gpu_has_its_part_at_least_and_gets_busier(size: tuple[int, int], gpus: int) -> None:
    model, tokens = mixture(*size), np.arange(1, 3000, dtype=np.float64)
    experts, chosen = size
    pairs, held = busiest_pairs(model, gpus, tokens), busiest_experts(model, gpus, tokens)
    touched = experts - np.array([model.untouched_experts(n) for n in tokens])
    assert (pairs >= tokens * chosen / gpus - 1e-9).all() and (pairs <= tokens * chosen).all()
    assert (held >= touched / gpus - 1e-9).all() and (held <= experts / gpus).all()
    assert (np.diff(pairs) >= 0).all() and (np.diff(held) >= 0).all()
    assert pairs[-1] / (tokens[-1] * chosen / gpus) < 1.15


def test_experts_are_spread_only_where_there_are_some_and_they_divide() -> None:
    with pytest.raises(InputError, match=r"ep: Llama-3\.1-70B is dense and has no experts to spread\. Leave ep out"):
        check_ep(DENSE, 4)
    with pytest.raises(InputError, match=r"cannot spread 60 experts .* whole over 8 GPUs\. Use a tp of 1, 2, 4, or"):
        check_ep(mixture(60, 4), 8)
    check_ep(mixture(60, 4), 4)


# ------------------------------------------------------------------------------------------------------------- a slot


def blueprint(*servers: dict[str, Any], **fields: Any) -> Blueprint:
    spec = {"rows": [{"racks": [{"servers": servers}]}], **fields}
    return Blueprint.of(ClusterSpec.model_validate(spec))


def server(model: str = "Qwen3-30B-A3B", **fields: Any) -> dict[str, Any]:
    return {"gpu": "H100-80GB", "model": model, **fields}


def test_a_slot_has_the_gpus_of_all_its_stages() -> None:
    plan = blueprint(server("Llama-3.1-70B", tp=2, pp=2))
    assert [s.name[-5:] for s in plan.slots] == ["slot0", "slot1"]
    assert plan.cap_max_w.tolist() == [4 * 700.0] * 2
    (deployment,) = plan.deployments
    assert deployment.power.gpus == 4
    assert deployment.kv_blocks == kv_capacity_tokens(DENSE, H100, 2, pp=2) // 16


def test_stages_must_divide_the_server() -> None:
    with pytest.raises(
        ValidationError, match=r"tp 4 times pp 3 cannot be laid .* use a product of 1, 2, 4, 8, or more"
    ):
        ServerSpec(gpu="H100-80GB", tp=4, pp=3, model="Qwen3-8B")


def test_slots_that_are_cut_differently_are_different_deployments() -> None:
    cuts = [{"tp": 4}, {"tp": 4, "ep": True}, {"tp": 2, "pp": 2}, {"tp": 2, "pp": 2, "ep": True}]
    plan = blueprint(*(server(gpus=4, **cut) for cut in (*cuts, *cuts)))
    assert plan.index[:, 0].tolist() == [0, 1, 2, 3] * 2
    assert len({(d.cost.link_ps[100], d.cost.memory_ps[100]) for d in plan.deployments}) == 4


def test_a_dense_model_does_not_fit_where_experts_are_spread() -> None:
    plan = blueprint(server(tp=4, ep=True), models=["Qwen3-8B"])
    assert plan.models == ("Qwen3-8B", "Qwen3-30B-A3B") and plan.index.tolist() == [[-1, 0]] * 2
    with pytest.raises(InputError, match=r"servers\[0\]: ep: Qwen3-8B is dense"):
        blueprint(server("Qwen3-8B", ep=True))


@pytest.mark.parametrize("cut", [{"pp": 2}, {"tp": 2, "ep": True}, {"tp": 2, "pp": 4, "ep": True}])
def test_a_request_decodes_at_the_pace_of_its_slot(cut: dict[str, Any]) -> None:
    plan = blueprint(server(**cut))
    requests = RequestTable.from_columns([0], [100], [51])
    world = Cluster(plan, requests, np.random.default_rng(0))
    world.advance(10**13)
    (row,) = world.engine.requests
    cost = plan.deployments[0].cost
    once_ps = cost.step_ps + cost.gap_ps + int(cost.link_ps[1]) + int(cost.memory_ps[1])
    lap_ps = once_ps + cost.sequence_ps + cost.sample_ps + cost.state_ps
    reads_ps = cost.kv_read_ps * sum(range(101, 151))
    assert row["finish_ps"] - row["first_token_ps"] == pytest.approx(50 * lap_ps + reads_ps, rel=1e-4)


def test_a_budget_whose_iterations_would_exceed_the_range_of_energies_is_refused() -> None:
    def spec(budget: int) -> ClusterSpec:
        server = {"gpu": "A100-80GB", "gpus": 8, "tp": 8, "model": "Llama-3.1-70B"}
        engine = {"max_num_batched_tokens": budget}
        return ClusterSpec.model_validate({"rows": [{"racks": [{"servers": [server]}]}], "engine": engine})

    assert Blueprint.of(spec(16384))
    with pytest.raises(InputError, match="Give about"):
        Blueprint.of(spec(65536))
