"""Variants: other models and fewer GPUs in a model's place, from the blueprint to the results."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from math import log
from typing import Any

import numpy as np
import pytest

from llmcluster import InputError, LLMClusterEnv
from llmcluster.envs.actions import KEEP, SLEEP, ClusterAction
from llmcluster.simulator.blueprint import Blueprint
from llmcluster.simulator.catalog import Catalog
from llmcluster.simulator.cluster import Cluster
from llmcluster.simulator.kernels.state import DRAINING, EMPTY, LOADING, RUNNING, SERVING, SLEEPING
from llmcluster.simulator.metrics import SloLimits, summarize
from llmcluster.simulator.topology import ClusterSpec
from llmcluster.simulator.units import PS_PER_S, to_ps
from llmcluster.simulator.variants import SCORES, quality_of
from llmcluster.simulator.workload.table import RequestTable

LARGE, SMALL = "Llama-3.1-70B", "Llama-3.1-8B"
SERVERS = [
    {"gpu": "H100-80GB", "gpus": 4, "tp": 4, "model": LARGE},
    {"gpu": "H200", "gpus": 2, "tp": 2, "model": LARGE},
]
FAMILY = [{"serves": LARGE, "model": SMALL, "tp": 1}, {"serves": LARGE, "tp": 2}]


def plan(variants: list[dict[str, Any]] = FAMILY, **more: Any) -> Blueprint:
    rows = [{"racks": [{"servers": SERVERS}]}]
    return Blueprint.of(ClusterSpec.model_validate({"rows": rows, "variants": variants, **more}))


def run(requests: int = 0, output: int = 50, blueprint: Blueprint | None = None) -> Cluster:
    """Requests of 500 tokens, one every two seconds."""
    arrivals = [2 * PS_PER_S * i for i in range(requests)]
    table = RequestTable.from_columns(
        arrivals, [500] * requests, [output] * requests, models=(LARGE,), model=[0] * requests
    )
    return Cluster(blueprint or plan(), table, np.random.default_rng(0), 8)


def states(cluster: Cluster, slot: int) -> list[int]:
    return [t.status for t in cluster.lifecycle.transitions if t.slot == slot]


def test_slots_are_offered_what_fits_them() -> None:
    blueprint = plan()
    names = [[variant.name for variant in own] for own in blueprint.variants]
    # The H200 slot is laid out for tp2 already.
    assert names == [[f"{LARGE} tp4", f"{SMALL} tp1", f"{LARGE} tp2"], [f"{LARGE} tp2", f"{SMALL} tp1"]]
    assert [v.quality for v in blueprint.variants[0]] == [0.836, 0.694, 0.836]
    assert {v.model for own in blueprint.variants for v in own} == {0}
    assert blueprint.tables.deployments["model"].tolist() == [0] * 5
    assert blueprint.quality.tolist() == [0.836, 0.836, 0.694, 0.694, 0.836]


def test_a_cluster_without_variants_is_laid_out_as_ever() -> None:
    blueprint = plan([])
    assert [[v.deployment for v in own] for own in blueprint.variants] == [[0], [1]]
    assert len(blueprint.deployments) == 2


def test_with_several_models_names_tell_which_one_is_stood_for() -> None:
    blueprint = plan([{"serves": LARGE, "model": SMALL, "tp": 1}], models=[LARGE, SMALL])
    assert [v.name for v in blueprint.variants[1]] == [
        f"{LARGE} tp2 for {LARGE}",
        f"{SMALL} tp2 for {SMALL}",
        f"{SMALL} tp1 for {LARGE}",
    ]


@pytest.mark.parametrize(
    ("variant", "where", "problem"),
    [
        ({"serves": SMALL, "tp": 1}, r"variants\[0\].serves", "does not have"),
        ({"serves": LARGE, "model": "Llama-9"}, r"variants\[0\].model", "unknown name"),
        ({"serves": LARGE, "tp": 8}, r"variants\[0\]", "every slot is smaller"),
        ({"serves": LARGE, "tp": 1}, r"variants\[0\]", "fits no slot"),
    ],
)
def test_bad_variants_are_refused(variant: dict[str, Any], where: str, problem: str) -> None:
    with pytest.raises(InputError, match=f"{where}.*{problem}"):
        plan([variant])


def test_a_variant_that_changes_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="is what slots hold anyway"):
        plan([{"serves": LARGE, "model": LARGE}])


def test_gpus_left_over_idle_and_the_others_keep_their_tdp_and_temperature() -> None:
    blueprint, alone = plan(), Catalog.builtin().gpu("H100-80GB")
    power = blueprint.deployments[blueprint.variants[0][1].deployment].power
    rest_w = 3 * alone.power.off_w
    assert power.gpus == 1
    assert power.off_w == pytest.approx(rest_w + alone.power.off_w)
    assert power.cap_max_w == alone.cap_max_w + rest_w
    # At the TDP of the one that works it is as warm as it would be alone.
    heated = power.thermal_r_k_per_w * (alone.cap_max_w + rest_w)
    assert heated == pytest.approx(np.array(alone.thermal.resistance_k_per_w) * alone.cap_max_w)


def test_a_slot_drains_loads_the_other_model_and_serves_with_it() -> None:
    cluster = run(requests=40)
    cluster.route([1.0, 0.0])
    cluster.advance(to_ps(8.1))
    cluster.reconfigure(0, 1)
    cluster.reconfigure(0, 1)  # again: no difference
    cluster.advance(to_ps(8.11))
    assert states(cluster, 0) == [DRAINING]
    assert (cluster.engine.requests["slot"][cluster.engine.requests["status"] == RUNNING] == 0).any()
    cluster.advance(to_ps(150.0))
    assert states(cluster, 0) == [DRAINING, EMPTY, LOADING, SERVING] and states(cluster, 1) == []
    assert cluster.finished and (cluster.engine.requests["status"] == 4).all()
    number = number_of(cluster, 0, 1)
    assert cluster.engine.slots["deployment"][0] == number
    assert [(load.slot, load.deployment) for load in cluster.lifecycle.loads] == [(0, number)]
    started = [t for t in cluster.lifecycle.transitions if t.status in (LOADING, SERVING)]
    expected_s = cluster.blueprint.deployments[number].load_s
    assert (started[1].time_ps - started[0].time_ps) / PS_PER_S == pytest.approx(expected_s, rel=0.16)


def number_of(cluster: Cluster, slot: int, variant: int) -> int:
    return cluster.blueprint.variants[slot][variant].deployment


def test_the_smaller_model_is_faster_and_draws_less() -> None:
    def work(variant: int) -> tuple[float, float]:
        cluster = run(requests=100)
        cluster.route([1.0, 0.0])
        cluster.reconfigure(0, variant)
        cluster.advance(to_ps(200.0))
        requests = cluster.engine.requests[60:]  # when it has been loaded
        taken_ps = (requests["finish_ps"] - requests["arrival_ps"]).mean()
        return float(taken_ps), float(cluster.history.column("energy_j")[120:200, 0].sum())

    (large_ps, large_j), (small_ps, small_j) = work(0), work(1)
    assert small_ps < 0.8 * large_ps and small_j < 0.8 * large_j


def test_the_power_limit_of_a_slot_is_no_more_than_its_working_gpus_may_have() -> None:
    cluster = run()
    full_w, part_w = (cluster.blueprint.deployments[number_of(cluster, 0, v)].power.cap_max_w for v in (0, 1))
    cluster.reconfigure(0, 1)
    cluster.advance(to_ps(120.0))
    assert cluster.engine.slots["cap_w"][0] == part_w < full_w
    cluster.cap(np.array([full_w - 1, 600.0]))
    cluster.advance(to_ps(125.0))
    assert cluster.engine.slots["cap_w"].tolist() == [part_w, 600.0]
    cluster.reconfigure(0, 0)
    cluster.advance(to_ps(400.0))
    assert cluster.engine.slots["cap_w"][0] == full_w - 1


def test_a_sleeper_takes_the_variant_when_it_is_woken_and_then_loads_cold() -> None:
    cluster = run()
    cluster.command(0, SLEEP)
    cluster.advance(to_ps(1.0))
    cluster.reconfigure(0, 1)
    cluster.advance(to_ps(60.0))
    assert states(cluster, 0) == [DRAINING, SLEEPING]
    cluster.command(0, 3)
    cluster.advance(to_ps(200.0))
    assert states(cluster, 0)[2:] == [EMPTY, LOADING, SERVING]
    assert cluster.engine.slots["deployment"][0] == number_of(cluster, 0, 1)


def test_a_load_that_has_begun_is_carried_through_first() -> None:
    cluster = run()
    cluster.reconfigure(0, 1)
    cluster.advance(to_ps(5.0))
    cluster.reconfigure(0, 0)
    cluster.advance(to_ps(400.0))
    assert states(cluster, 0) == [DRAINING, EMPTY, LOADING, SERVING, DRAINING, EMPTY, LOADING, SERVING]
    assert cluster.engine.slots["deployment"][0] == number_of(cluster, 0, 0)


def test_changing_ones_mind_while_draining_costs_nothing() -> None:
    cluster = run(requests=4, output=2000)
    cluster.advance(to_ps(8.0))
    cluster.reconfigure(0, 1)
    cluster.advance(to_ps(9.0))
    cluster.reconfigure(0, 0)
    cluster.advance(to_ps(10.0))
    assert states(cluster, 0) == [DRAINING, SERVING] and cluster.lifecycle.starts == 0


def test_no_such_variant() -> None:
    with pytest.raises(InputError, match="has no variant 2"):
        run().reconfigure(1, 2)


def test_quality_is_that_of_the_models_that_answered() -> None:
    cluster = run(requests=100)
    limits = SloLimits(np.array([to_ps(60.0)]), np.array([to_ps(1.0)]))
    cluster.route([1.0, 0.0])
    cluster.advance(to_ps(30.0))
    assert summarize(cluster, limits).quality == pytest.approx(0.836)
    cluster.reconfigure(0, 1)
    cluster.advance(to_ps(300.0))
    (load,) = cluster.lifecycle.loads
    # The other slot takes over while this one loads.
    requests = cluster.engine.requests
    large = np.count_nonzero((requests["finish_ps"] <= load.time_ps) | (requests["slot"] == 1))
    assert 15 < large < 60 and cluster.finished
    expected = (large * 0.836 + (100 - large) * 0.694) / 100
    assert summarize(cluster, limits).quality == pytest.approx(expected)


def test_quality_without_scores_or_requests_is_unknown() -> None:
    assert np.isnan(quality_of("BLOOM-176B", Catalog.builtin()))
    limits = SloLimits(np.array([to_ps(60.0)]), np.array([to_ps(1.0)]))
    assert np.isnan(summarize(run(), limits).quality)


def test_every_score_is_a_share_of_a_known_model_and_has_a_source() -> None:
    catalog = Catalog.builtin()
    for name, entry in tomllib.loads(SCORES.read_text())["scores"].items():
        assert catalog.model(name).name == name and 0 < entry["score"] < 1
        assert entry["benchmark"] and entry["source"]
    sizes = [quality_of(f"Llama-3.1-{size}", catalog) for size in ("8B", "70B", "405B")]
    assert sizes == sorted(sizes)


def test_a_saved_run_goes_on_with_its_variants() -> None:
    cluster, other = run(requests=60), run(requests=60)
    cluster.advance(to_ps(20.0))
    cluster.reconfigure(0, 1)
    cluster.advance(to_ps(60.0))
    other.restore_state(cluster.save_state())
    for one in (cluster, other):
        one.reconfigure(1, 1)
        one.advance(to_ps(200.0))
    assert other.lifecycle.loads == cluster.lifecycle.loads and len(other.lifecycle.loads) == 2
    assert (other.engine.requests == cluster.engine.requests).all()
    assert (other.engine.slots == cluster.engine.slots).all()


def scenario(tiny: Callable[..., dict[str, Any]], **sections: Any) -> dict[str, Any]:
    servers = [{"gpu": "H100-80GB", "gpus": 2, "tp": 2, "model": "Qwen3-14B"}] * 2
    made = tiny(servers, actions={"groups": ("reconfigure",), "levels": 3}, horizon_s=120, **sections)
    family = [{"serves": "Qwen3-14B", "model": "Qwen3-8B"}, {"serves": "Qwen3-14B", "tp": 1}]
    made["cluster"]["variants"] = family
    return made


def test_the_action_chooses_and_the_observation_tells(tiny: Callable[..., dict[str, Any]]) -> None:
    env = LLMClusterEnv(scenario(tiny))
    observation, info = env.reset(seed=0)
    names = ("keep", "Qwen3-14B tp2", "Qwen3-8B tp2", "Qwen3-14B tp1")
    assert env.fleet.variants == (names, names)
    assert env.codec.layout.levels == 4 and info["action_mask"].all()
    features = [f.name for f in env.observations.slot_features]
    assert features[-4:] == [*(f"variant_{name}" for name in names[1:]), "quality"]
    assert observation["slots"].reshape(2, -1)[:, -4:] == pytest.approx(np.array([[1, 0, 0, 0.8482]] * 2))
    env.step([2, KEEP])
    for _ in range(11):
        observation, *_ = env.step([KEEP, KEEP])
    told = [[0, 1, 0, 0.8179], [1, 0, 0, 0.8482]]
    assert observation["slots"].reshape(2, -1)[:, -4:] == pytest.approx(np.array(told))
    assert env.telemetry.status.tolist() == [SERVING, SERVING]
    assert env.plant is not None and 0.8179 < env.plant.summary().quality < 0.8482


def test_reconfigure_needs_variants(tiny: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(InputError, match="nothing to choose from"):
        LLMClusterEnv(tiny(actions={"groups": ("reconfigure",)}))


def test_in_flight_limits_hold_work_back(tiny: Callable[..., dict[str, Any]]) -> None:
    env = LLMClusterEnv(tiny(rate_per_s=20.0, actions={"groups": ("concurrency",)}, budget={"levels": [1.0]}))
    env.reset(seed=0)
    assert env.plant is not None
    env.plant.apply(ClusterAction(concurrency=np.array([3, 1])))
    env.plant.advance()
    telemetry = env.plant.read()
    assert (telemetry.running + telemetry.waiting <= [3, 1]).all() and telemetry.held_at_gateway > 10
    share = env.codec.encode(ClusterAction(concurrency=np.array([3, 1])))
    assert share.tolist() == [round(4 * log(3) / log(256)), 0]
