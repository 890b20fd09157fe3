"""Figures of the catalogue fitted to runs with a full batch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmcluster.experiments.fidelity import batches
from llmcluster.experiments.fidelity.compositions import Run, compose
from llmcluster.experiments.fidelity.demand import Demand, Served, squeezed
from llmcluster.experiments.fidelity.errors import Comparison
from llmcluster.experiments.fidelity.figures import to_toml
from llmcluster.experiments.fidelity.iteration import Activity
from llmcluster.experiments.fidelity.power_fit import SHARED, fit_power
from llmcluster.experiments.fidelity.prediction import summarise
from llmcluster.experiments.fidelity.robust import minimise
from llmcluster.experiments.fidelity.roofline_fit import RANGES, Seen, fit_timing, needs, seen
from llmcluster.experiments.fidelity.source import Row
from llmcluster.experiments.fidelity.sources.mlenergy import MlEnergy
from llmcluster.experiments.fidelity.sources.mlenergy_fit import stalled
from llmcluster.experiments.fidelity.split import HELD_OUT, part
from llmcluster.simulator.catalog import Catalog, Scale
from llmcluster.simulator.performance import iteration_cost

DATA = Path(os.environ.get("LLMCLUSTER_DATA", Path(__file__).parents[1] / "../shared/data")) / "mlenergy"
CATALOG = Catalog.builtin()
GPU = CATALOG.gpu("H100-80GB")
CUTS = [
    ("Qwen3-8B", 1, False),
    ("Llama-3.1-70B", 4, False),
    ("Qwen3-32B", 2, False),
    ("Qwen3-30B-A3B", 2, True),
    ("Qwen3-30B-A3B", 1, False),
    ("Llama-4-Scout-17B-16E", 4, True),
    ("Llama-3.1-405B-FP8", 8, False),
    ("Qwen3-235B-A22B-FP8", 8, True),
    ("NVIDIA-Nemotron-Nano-9B-v2", 1, False),
    ("gpt-oss-120b", 2, False),
]


@cache
def served(name: str, tp: int, ep: bool, places: int, output: int = 60) -> Served:
    rng = np.random.default_rng(places)
    number = 2 * places + 2
    prompts, outputs = rng.integers(20, 600, number).tolist(), rng.integers(output // 2, 2 * output, number).tolist()
    return Served(compose(Run(prompts, outputs, places, 400_000)), CATALOG.model(name), GPU, tp, ep)


@pytest.mark.parametrize(("name", "tp", "ep"), CUTS)
def test_the_model_that_is_fitted_is_the_roofline_of_the_engine(name: str, tp: int, ep: bool) -> None:
    run = served(name, tp, ep, 40)
    # The engine's times of a pair and of a cached token are a few hundred picoseconds, rounded to whole ones.
    scale = Scale(model=name, gpu=GPU.name, tp=tp, ep=ep, step_s=2e-3, source="a test")
    cost = iteration_cost(run.model, GPU, tp, ep=ep, scale=scale)
    demand = Demand.of([run])
    for clock in (1.0, 0.6):
        ours = needs(demand, GPU.timing.model_dump(), 2e-3).at(clock)
        theirs = batches.needs(cost, run.work.batches).at(clock)
        for mine, its in zip(ours[:-1], theirs[:-1], strict=True):
            assert mine == pytest.approx(its, rel=4e-4)
        assert ours.link == pytest.approx(theirs.link, rel=1e-6, abs=1e-12)
    found, expected = seen(demand, theirs.length)[0], summarise(run.work, theirs)
    assert found.itl_s[0] == pytest.approx(expected.itl_ms / 1e3, rel=1e-6)
    assert found.throughput[0] == pytest.approx(expected.throughput, rel=1e-6)


def test_runs_are_seen_one_by_one() -> None:
    runs = [served("Qwen3-8B", 1, False, places) for places in (4, 24)]
    together, figures = Demand.of(runs), GPU.timing.model_dump()
    both = seen(together, needs(together, figures).at(1.0).length)[0]
    for i, run in enumerate(runs):
        alone = Demand.of([run])
        one = seen(alone, needs(alone, figures).at(1.0).length)[0]
        assert both.itl_s[i] == one.itl_s[0] and both.throughput[i] == pytest.approx(one.throughput[0])


def test_taking_like_iterations_together_changes_little() -> None:
    run = served("Qwen3-30B-A3B", 1, False, 40, 300)
    small = replace(run, work=squeezed(run.work))
    assert len(small.work.count) < len(run.work.count) / 2
    assert small.work.count.sum() == run.work.count.sum()
    figures = GPU.timing.model_dump()
    one, other = (seen(d, needs(d, figures).at(1.0).length)[0] for d in (Demand.of([run]), Demand.of([small])))
    assert other.itl_s == pytest.approx(one.itl_s, rel=0.01)
    assert other.throughput == pytest.approx(one.throughput, rel=1e-3)


def _timed(figures: Mapping[str, float], step_s: Mapping[str, float]) -> tuple[Demand, Seen, np.ndarray[Any, Any]]:
    """Runs of some models in several batches, and what would be measured of them."""
    names = ["Qwen3-8B", "Llama-3.1-8B", "Qwen3-32B", "Qwen3-30B-A3B"]
    key = np.repeat(np.arange(len(names)), 4)
    runs = [served(name, 2 if name == "Qwen3-32B" else 1, False, n) for name in names for n in (2, 8, 32, 128)]
    demand = Demand.of(runs)
    offset = np.array([step_s.get(name, 0.0) for name in names])
    return demand, seen(demand, needs(demand, figures, offset[key][demand.run]).at(1.0).length)[0], key


TRUE = {name: one.start for name, one in RANGES.items()} | {
    "memory_efficiency": 0.72,
    "compute_efficiency": 0.5,
    "step_s": 2e-3,
    "sampling_s": 5e-5,
}


def test_known_figures_are_found_again() -> None:
    demand, measured, key = _timed(TRUE, {})
    start = {name: one.start for name, one in RANGES.items()}
    found = fit_timing(demand, measured, key, start)
    own = needs(demand, found.figures, found.step_s[key][demand.run]).at(1.0)
    again = seen(demand, own.length)[0]
    assert again.itl_s == pytest.approx(measured.itl_s, rel=0.02)
    assert again.throughput == pytest.approx(measured.throughput, rel=0.02)
    for name in ("memory_efficiency", "compute_efficiency"):
        assert found.figures[name] == pytest.approx(TRUE[name], rel=0.08), name
    # A model and batches that were not fitted to: what is not told apart does not matter to them either.
    others = Demand.of([served("Qwen3-14B", 1, False, places) for places in (4, 64)])
    unseen, truly = (seen(others, needs(others, figures).at(1.0).length)[0] for figures in (found.figures, TRUE))
    assert unseen.itl_s == pytest.approx(truly.itl_s, rel=0.04)
    assert unseen.throughput == pytest.approx(truly.throughput, rel=0.04)


def test_an_offset_goes_to_the_model_that_has_it_and_an_outlier_to_none() -> None:
    demand, measured, key = _timed(TRUE, {"Llama-3.1-8B": 4e-3})
    measured.itl_s[1] *= 2
    found = fit_timing(demand, measured, key, TRUE)
    assert found.step_s[1] == pytest.approx(4e-3, rel=0.25)
    assert np.abs(np.delete(found.step_s, 1)).max() < 1e-3
    again = seen(demand, needs(demand, found.figures, found.step_s[key][demand.run]).at(1.0).length)[0]
    assert np.delete(again.itl_s, 1) == pytest.approx(np.delete(measured.itl_s, 1), rel=0.05)


def test_known_watts_are_found_again() -> None:
    rng = np.random.default_rng(0)
    busy_shares = Activity(*(rng.uniform(0.1, 0.9, 60) for _ in range(5)))
    resident, key = rng.uniform(0.1, 0.9, 60), np.repeat(np.arange(6), 10)
    ratio = 0.5
    factor = np.array([1.0, 1.0, 1.2, 0.8, 1.0, 1.0])
    true = {"active_w": 220.0, "compute_w": 400.0, "memory_w": 110.0, "cache_w": 150.0, "link_w": 50.0}
    dynamic = sum(watts * part for watts, part in zip(true.values(), busy_shares, strict=True))
    measured = 100 + factor[key] * np.asarray(dynamic)
    measured[5] *= 1.5
    found = fit_power(busy_shares, resident, measured, 100.0, ratio, key)
    for name in ("active_w", "compute_w", "memory_w", "cache_w"):
        assert found.shared[name] == pytest.approx(true[name], rel=0.08), name
    assert found.shared["resident_w"] < 15 and set(SHARED) < set(found.shared)
    assert found.factor == pytest.approx(factor, abs=0.05)


def test_the_solver_keeps_to_the_bounds_and_ignores_an_outlier() -> None:
    x = np.linspace(0, 1, 20)
    y = 3 * x + 1
    y[7] = 50

    def line(at: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        return at[0] * x + at[1] - y, np.stack([x, np.ones_like(x)], axis=1)

    none, most = np.zeros(2), np.full(2, 10.0)
    assert minimise(line, np.ones(2), none, most, 0.01) == pytest.approx([3, 1], abs=0.01)
    bounded = minimise(line, np.ones(2), none, np.array([2.0, 10.0]), 0.01)
    assert bounded[0] == 2 and 1 < bounded[1] < 2
    counts = np.where(np.arange(20) == 7, 0.0, 1.0)
    assert minimise(line, np.ones(2), none, most, 1e3, counts) == pytest.approx([3, 1], abs=1e-4)


def _rows(source: MlEnergy, catalog: Catalog, bursty: str = "") -> list[Row]:
    """Rows whose measured values are what a catalogue gives; bursts in one configuration."""
    rows = []
    for name, task in (("Qwen3-8B", "lm-arena-chat"), ("Qwen3-8B", "gpqa"), ("Llama-3.1-8B", "lm-arena-chat")):
        for places in (8, 32):
            given: dict[str, Any] = {"model": name, "task": task, "num_gpus": 1, "ep": 1, "dp": 1}
            given |= {"max_num_seqs": places, "avg_output_len": 400.0, "weight_precision": "bfloat16"}
            bare = Row(f"{name}:{task}:{places}", f"{name}|{task}", {}, {"gpu": "H100-80GB", "model": name}, given)
            (measured,) = source.simulate([bare], catalog, 0, lambda done: None)
            rows.append(replace(bare, measured=dict(measured)))
    return [
        replace(row, measured={**row.measured, "itl_p90": 2 * row.measured["itl"]})
        if row.configuration == bursty
        else replace(row, measured={**row.measured, "itl_p90": 1.1 * row.measured["itl"]})
        for row in rows
    ]


def test_a_calibration_is_a_catalogue_file_that_reproduces_its_rows(tmp_path: Path) -> None:
    source = MlEnergy()
    scale = Scale(model="Qwen3-8B", gpu="H100-80GB", power=1.1, source="a test")
    rows = _rows(source, replace(CATALOG, scales={scale.cut: scale}))
    fitted = source.fit(rows, replace(CATALOG, scales={}), np.random.default_rng(0), lambda done: None)
    path = tmp_path / "fitted.toml"
    path.write_text(to_toml(fitted.tables, []))
    catalog = CATALOG.with_file(path)
    assert {cut.model for cut in map(lambda one: Scale(**one).cut, fitted.tables["scales"])} == {
        "Qwen3-8B",
        "Llama-3.1-8B",
    }
    assert all(Scale(**one).step_s == 0 for one in fitted.tables["scales"])
    assert catalog.gpu("H100-80GB").timing.calibrated
    assert catalog.gpu("H100-80GB").timing.attention_efficiency == GPU.timing.attention_efficiency
    again = Comparison.of(rows, source.simulate(rows, catalog, 0, lambda done: None), ["itl", "power"])
    assert np.abs(again.error["itl"]).max() < 0.03
    assert np.abs(again.error["power"]).max() < 0.05
    assert fitted.residuals["itl"] == pytest.approx(again.error["itl"].tolist(), abs=0.02)
    assert fitted.residuals["power"] == pytest.approx(again.error["power"].tolist(), abs=0.02)
    low, high = fitted.intervals["gpus.H100-80GB.timing.memory_efficiency"]
    assert low <= high


def test_configurations_that_stall_are_left_out_by_name(tmp_path: Path) -> None:
    source = MlEnergy()
    rows = _rows(source, CATALOG, bursty="Qwen3-8B|gpqa")
    assert stalled(rows) == {"Qwen3-8B|gpqa"}
    fitted = source.fit(rows, CATALOG, np.random.default_rng(0), lambda done: None)
    assert np.isnan(fitted.residuals["itl"]).tolist() == [row.configuration == "Qwen3-8B|gpqa" for row in rows]
    assert "Qwen3-8B|gpqa" in fitted.tables["gpus"]["H100-80GB"]["timing"]["source"]


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="the ML.ENERGY runs are not under LLMCLUSTER_DATA")
def test_the_catalogue_keeps_near_the_published_runs() -> None:
    source = MlEnergy()
    rows = source.read([DATA / "vllm_steady_state.csv"], CATALOG)
    chosen = [row for row in rows if row.groups["gpu"] == "H100-80GB" and row.given["max_num_seqs"] in (16, 64, 96)]
    found = Comparison.of(chosen, source.simulate(chosen, CATALOG, 0, lambda done: None), ["itl", "power"])
    held = [part(row.configuration) == HELD_OUT for row in chosen]
    for quantity, fit_bound, held_bound in (("itl", 0.04, 0.16), ("power", 0.05, 0.22)):
        errors = np.abs(found.error[quantity])
        assert np.median(errors[np.logical_not(held)]) < fit_bound
        assert np.median(errors[held]) < held_bound
