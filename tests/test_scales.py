"""Factors fitted for one model on one GPU: where they come from and what they do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llmcluster.simulator.blueprint import Blueprint
from llmcluster.simulator.catalog import Catalog, Scale
from llmcluster.simulator.cluster import Cluster
from llmcluster.simulator.errors import InputError
from llmcluster.simulator.performance import iteration_cost
from llmcluster.simulator.power import power_coefficients
from llmcluster.simulator.topology import ClusterSpec
from llmcluster.simulator.workload.table import RequestTable

CATALOG = Catalog.builtin()
MODEL, GPU = CATALOG.model("Qwen3-8B"), CATALOG.gpu("H100-80GB")
ENTRY = '[[scales]]\nmodel = "Qwen3-8B"\ngpu = "H100-80GB"\nsource = "a test"\n'


def catalog_with(tmp_path: Path, text: str) -> Catalog:
    path = tmp_path / "scales.toml"
    path.write_text(text)
    return CATALOG.with_file(path)


def test_a_scale_is_found_for_its_cut_alone(tmp_path: Path) -> None:
    catalog = catalog_with(tmp_path, ENTRY + "tp = 2\ntime = 1.5\n")
    assert catalog.scale("Qwen3-8B", "H100-80GB", 2).time == 1.5
    assert catalog.scale("Qwen3-8B", "H100-80GB", 4).time == 1.0
    assert catalog.scale("Qwen3-8B", "H100-80GB", 2, ep=True).time == 1.0
    assert catalog.gpu("H100-80GB") == GPU


def test_time_stretches_all_and_compute_only_the_matrix_work() -> None:
    plain = iteration_cost(MODEL, GPU, 1)
    slower = iteration_cost(MODEL, GPU, 1, scale=Scale(model="m", gpu="g", time=2.0, source="a test"))
    for one, two in zip(plain, slower, strict=True):
        assert np.allclose(2 * np.asarray(one), two, atol=2)
    busier = iteration_cost(MODEL, GPU, 1, scale=Scale(model="m", gpu="g", compute=2.0, source="a test"))
    assert busier.attention_ps == pytest.approx(2 * plain.attention_ps, abs=2)
    assert busier.compute_ps[8192] > 1.9 * plain.compute_ps[8192]
    assert busier.step_ps == plain.step_ps and np.array_equal(busier.memory_ps, plain.memory_ps)
    assert (busier.gap_ps, busier.sample_ps) == (plain.gap_ps, plain.sample_ps)


def test_power_scales_what_is_above_idle() -> None:
    plain = power_coefficients(MODEL, GPU, 2)
    more = power_coefficients(MODEL, GPU, 2, scale=Scale(model="m", gpu="g", power=1.5, source="a test"))
    assert (more.idle_w, more.off_w, more.cap_max_w) == (plain.idle_w, plain.off_w, plain.cap_max_w)
    for name in ("active_w", "compute_w", "memory_w", "link_w"):
        assert getattr(more, name) == pytest.approx(1.5 * getattr(plain, name))


def test_a_cluster_runs_with_the_scale_of_its_slots(tmp_path: Path) -> None:
    catalog = catalog_with(tmp_path, ENTRY + "time = 2.0\npower = 1.5\n")
    spec = ClusterSpec.model_validate(
        {"rows": [{"racks": [{"servers": [{"gpu": "H100-80GB", "gpus": 1, "model": "Qwen3-8B"}]}]}]}
    )
    plain, scaled = (Blueprint.of(spec, each).deployments[0] for each in (CATALOG, catalog))
    assert scaled.cost.step_ps == 2 * plain.cost.step_ps
    assert scaled.power.active_w == pytest.approx(1.5 * plain.power.active_w)


@pytest.mark.parametrize("step_s", [0.004, -0.0001, -0.5])
def test_a_step_adds_to_every_iteration_of_a_run_but_never_below_no_gap(tmp_path: Path, step_s: float) -> None:
    """A prompt and 49 decodes of Qwen3-8B, whose 36 layers leave a gap that a step below zero eats up."""
    spec = ClusterSpec.model_validate(
        {"rows": [{"racks": [{"servers": [{"gpu": "H100-80GB", "gpus": 1, "model": "Qwen3-8B"}]}]}]}
    )
    finish_ps = []
    for catalog in (CATALOG, catalog_with(tmp_path, ENTRY + f"step_s = {step_s}\n")):
        plan, requests = Blueprint.of(spec, catalog), RequestTable.from_columns([0], [100], [50])
        assert plan.deployments[0].cost.gap_ps >= 0  # else time could run backwards, and the run never end
        world = Cluster(plan, requests, np.random.default_rng(0))
        assert world.drain()
        finish_ps.append(int(world.engine.requests["finish_ps"][0]))
    gap_s = 36 * GPU.timing.layer_s
    assert 0.0001 < gap_s < 0.5
    added_ps = 1e12 * max(step_s, -gap_s)
    assert finish_ps[1] - finish_ps[0] == pytest.approx(50 * added_ps, abs=50)


def test_a_step_counts_once_whatever_the_stages_and_beside_time() -> None:
    scale = Scale(model="m", gpu="g", tp=2, pp=4, time=2.0, step_s=0.001, source="a test")
    plain, both = (iteration_cost(MODEL, GPU, 2, pp=4, scale=each) for each in (None, scale))
    assert both.gap_ps == pytest.approx(2 * plain.gap_ps + 10**9, abs=2)
    assert both.step_ps == pytest.approx(2 * plain.step_ps, abs=2)


def test_an_entry_that_refines_itself_stays_calibrated(tmp_path: Path) -> None:
    text = '[gpus."H100-80GB"]\nlike = "H100-80GB"\n[gpus."H100-80GB".power]\nidle_w = 99\n'
    refined = catalog_with(tmp_path, text).gpu("H100-80GB")
    assert refined.power == GPU.power.model_copy(update={"idle_w": 99.0}) and refined.timing == GPU.timing


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("time = 2.0\npower = 1.5\ncompute = 1.1\n", r"scales\[0\].*at most two of time, step_s, compute and power"),
        ("time = 0\n", r"scales\[0\]\.time"),
        ("step_s = 1.5\n", r"scales\[0\]\.step_s"),
        ("step_s = 0.1\ntime = 1.1\npower = 0.9\n", "at most two of time, step_s"),
        ("speed = 2\n", r"scales\[0\]\.speed"),
    ],
)
def test_bad_entries_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        catalog_with(tmp_path, ENTRY + text)


def test_scales_are_a_list_of_tables(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"scales: is not a table .*\[\[scales\]\]"):
        catalog_with(tmp_path, "[scales]\nmodel = 1\n")
