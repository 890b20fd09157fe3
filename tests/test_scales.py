"""Factors fitted for one model on one GPU: where they come from and what they do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llmcluster.simulator.blueprint import Blueprint
from llmcluster.simulator.catalog import Catalog, Scale
from llmcluster.simulator.errors import InputError
from llmcluster.simulator.performance import iteration_cost
from llmcluster.simulator.power import power_coefficients
from llmcluster.simulator.topology import ClusterSpec

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


def test_power_scales_what_is_above_idle() -> None:
    plain = power_coefficients(MODEL, GPU, 2)
    more = power_coefficients(MODEL, GPU, 2, scale=Scale(model="m", gpu="g", power=1.5, source="a test"))
    assert (more.idle_w, more.off_w, more.cap_max_w) == (plain.idle_w, plain.off_w, plain.cap_max_w)
    assert (more.active_w, more.compute_w, more.memory_w) == tuple(
        pytest.approx(1.5 * watts) for watts in (plain.active_w, plain.compute_w, plain.memory_w)
    )


def test_a_cluster_runs_with_the_scale_of_its_slots(tmp_path: Path) -> None:
    catalog = catalog_with(tmp_path, ENTRY + "time = 2.0\npower = 1.5\n")
    spec = ClusterSpec.model_validate(
        {"rows": [{"racks": [{"servers": [{"gpu": "H100-80GB", "gpus": 1, "model": "Qwen3-8B"}]}]}]}
    )
    plain, scaled = (Blueprint.of(spec, each).deployments[0] for each in (CATALOG, catalog))
    assert scaled.cost.step_ps == 2 * plain.cost.step_ps
    assert scaled.power.active_w == pytest.approx(1.5 * plain.power.active_w)


def test_an_entry_that_refines_itself_stays_calibrated(tmp_path: Path) -> None:
    text = '[gpus."H100-80GB"]\nlike = "H100-80GB"\n[gpus."H100-80GB".power]\nidle_w = 99\n'
    refined = catalog_with(tmp_path, text).gpu("H100-80GB")
    assert refined.power == GPU.power.model_copy(update={"idle_w": 99.0}) and refined.timing == GPU.timing


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("time = 2.0\npower = 1.5\ncompute = 1.1\n", r"scales\[0\].*at most two of time, step_s, compute and power"),
        ("time = 0\n", r"scales\[0\]\.time"),
        ("speed = 2\n", r"scales\[0\]\.speed"),
    ],
)
def test_bad_entries_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        catalog_with(tmp_path, ENTRY + text)


def test_scales_are_a_list_of_tables(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"scales: is not a table .*\[\[scales\]\]"):
        catalog_with(tmp_path, "[scales]\nmodel = 1\n")
