"""Speed and power under caps: reading, the governor on steady work, and fits, against rows made by the test itself."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest

from llmcluster.experiments.fidelity.least_squares import least_squares
from llmcluster.experiments.fidelity.operating import Phase, Work, power_w, settle
from llmcluster.experiments.fidelity.skipped import Skipped
from llmcluster.experiments.fidelity.source import Row, Simulated
from llmcluster.experiments.fidelity.sources.caps import WORKS, Caps
from llmcluster.simulator.catalog import Catalog
from llmcluster.simulator.errors import InputError
from llmcluster.simulator.power import clock_ladder

CATALOG = Catalog.builtin()
A100 = CATALOG.gpu("A100-80GB-PCIe")
CLOCK_X_CAP = "bench,gpu,variant,mem_clock_mhz,max_clock_mhz,power_cap_w,time_s,energy_wh,bandwidth_gbs,avg_power_w"
RUNGS = "rung,op,enforced_limit_w,avg_w,peak_w,delay_per_work_s,extra"
TRAINING = "dataset,network,batch_size,optimizer,power_limit,time_per_epoch,average_power"


def write(path: Path, header: str, *lines: str) -> Path:
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def errors(rows: list[Row], simulated: list[Simulated], quantity: str, **groups: str) -> list[float]:
    return [
        abs(s[quantity] / r.measured[quantity] - 1)
        for r, s in zip(rows, simulated, strict=True)
        if quantity in r.measured and all(r.groups[k] == v for k, v in groups.items())
    ]


def simulate(rows: list[Row], catalog: Catalog = CATALOG) -> list[Simulated]:
    return Caps().simulate(rows, catalog, 0, lambda done: None)


# --------------------------------------------------------------------------------------------------------------- read


def test_speeds_are_relative_to_the_highest_cap_and_clock_of_the_same_bench(tmp_path: Path) -> None:
    path = write(
        tmp_path / "grid.csv",
        CLOCK_X_CAP,
        "pi-solver,cricket-a100,,,1005,300,20,1,,135",
        "pi-solver,cricket-a100,,,1410,300,10,1,,290",
        "pi-solver,cricket-a100,,,1410,150,12.5,1,,149",
        "babelstream,cricket-a100,,,1410,300,7,1,1690,228",
    )
    rows = Caps().read([path], CATALOG)
    assert [row.measured for row in rows] == [
        {"power": 135, "speed": 0.5},
        {"power": 290},
        {"power": 149, "speed": 0.8},
        {"power": 228},
    ]
    assert [row.place for row in rows] == [f"{path}:{line}" for line in (2, 3, 4, 5)]
    assert rows[0].groups == {"gpu": "A100-80GB-PCIe", "work": "compute-bound", "cap": "A100-80GB-PCIe 300 W"}
    # A sweep of caps is one configuration; another clock or bench is another.
    assert rows[1].configuration == rows[2].configuration
    assert len({row.configuration for row in rows}) == 3


def test_of_the_b300_rungs_known_work_in_a_steady_state_counts(tmp_path: Path) -> None:
    path = write(
        tmp_path / "b300.csv",
        RUNGS,
        "cap-1100w,powervirus,1100,787,1026,0.0005,a",
        "cap-450w,powervirus,450,448,449,0.0010,b",
        "soak-30min,powervirus,1100,1038,1053,0.0005,c",
        "duty-1ms,powervirus,1100,582,1085,0.001,d",
        "idle,observe,1100,183,189,1.0,e",
    )
    rows = Caps().read([path], CATALOG)
    assert [(row.place.rsplit(":")[-1], dict(row.measured)) for row in rows] == [
        ("3", {"power": 448, "speed": 0.5}),
        ("4", {"power": 1038}),
        ("6", {"power": 183}),
    ]
    assert simulate(rows)[2] == {"power": CATALOG.gpu("B300").power.idle_w}


def test_training_takes_its_level_from_the_highest_cap(tmp_path: Path) -> None:
    lines = [f"squad,bert,32,adamw,{cap},{time},{power}" for cap, time, power in [(100, 40, 106), (300, 10, 267)]]
    rows = Caps().read([write(tmp_path / "train_a40.csv", TRAINING, *lines)], CATALOG)
    assert [(row.measured, row.given["level_w"]) for row in rows] == [({"power": 106, "speed": 0.25}, 267)]
    simulated = simulate(rows)[0]
    assert simulated["power"] <= 100 and 0 < simulated["speed"] < 0.4


@pytest.mark.parametrize(
    ("name", "header", "line", "message"),
    [
        ("x.csv", "a,b", "1,2", "no known layout.*bench, gpu, .*; or rung, enforced_limit_w, .*; or dataset, network"),
        ("x.csv", CLOCK_X_CAP, "pi-solver,a100,,,1005,300,0,1,,135", "time_s is 0"),
        ("x.csv", CLOCK_X_CAP, "pi-solver,a100,,,1005,300,fast,1,,135", "time_s is 'fast'"),
        ("b300.csv", RUNGS, "cap-450w,powervirus,450,,449,0.001,b", "avg_w is empty"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path: Path, name: str, header: str, line: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Caps().read([write(tmp_path / name, header, line)], CATALOG)


def test_a_gpu_without_an_entry_is_not_simulated(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", CLOCK_X_CAP, "pi-solver,rtxpro6000,fp64,,1005,300,20,1,,66")
    (one,) = simulate(Caps().read([path], CATALOG))
    assert isinstance(one, Skipped) and one.reason == "no GPU of the catalogue goes by RTX-PRO-6000"
    more = tmp_path / "more.toml"
    more.write_text('[gpus.RTX-Pro-6000]\nlike = "A100-80GB-PCIe"\n')
    catalog = CATALOG.with_file(more)
    (row,) = Caps().read([path], catalog)
    assert row.groups["gpu"] == "RTX-Pro-6000" and simulate([row], catalog)[0]["power"] > 0


def test_a_file_of_a_layout_may_have_any_name(tmp_path: Path) -> None:
    """The GPU is in a column, or a word of the name as the catalogue has it; else the rows are skipped, and say so."""
    line = "squad,bert,32,adamw,{},{},{}"
    lines = [line.format(*cells) for cells in ((100, 40, 106), (300, 10, 267))]
    named = [("column.csv", "A40"), ("x_H200_run.csv", "H200"), ("a100-80gb-pcie.csv", A100.name), ("x.csv", "x")]
    for name, gpu in named:
        column = name == "column.csv"
        cells = [f"{one},nvidia a40" for one in lines] if column else lines
        path = write(tmp_path / name, f"{TRAINING},gpu" if column else TRAINING, *cells)
        (row,) = Caps().read([path], CATALOG)
        assert row.groups["gpu"] == gpu
        (one,) = simulate([row])
        assert (one if isinstance(one, Skipped) else None) == (one if gpu == "x" else None)
    assert one.reason == "no GPU of the catalogue goes by x" and "a column gpu" in one.remedy


def test_work_that_nobody_knows_is_skipped_and_not_fitted_to(tmp_path: Path) -> None:
    lines = [f"linpack,a100,,,{clock},300,20,1,,{clock / 10}" for clock in (1005, 1131, 1260, 1410)]
    rows = Caps().read([write(tmp_path / "x.csv", CLOCK_X_CAP, *lines)], CATALOG)
    assert {str(one) for one in simulate(rows)} == {
        "nobody knows what linpack keeps busy. Give rows of babelstream, pi-solver"
    }
    with pytest.raises(InputError, match="no GPU has 4 rows"):
        Caps().fit(rows, CATALOG, np.random.default_rng(1), lambda done: None)


# ----------------------------------------------------------------------------------------------------------- simulate


def test_the_governor_takes_the_highest_clock_under_the_cap() -> None:
    ratios, scales = clock_ladder(A100)
    for name in ("compute-bound", "memory-bound", "gemm"):
        work = WORKS[name]
        watts = [power_w(A100, work, r, s) for r, s in zip(ratios, scales, strict=True)]
        for cap_w in (150, 180, 220, 260, 300):
            point = settle(A100, work, cap_w)
            highest = max(k for k in range(len(watts)) if watts[k] <= cap_w)
            assert (point.ratio, point.power_w) == (ratios[highest], watts[highest])


def test_compute_follows_the_clock_and_memory_does_not() -> None:
    locked = settle(A100, WORKS["compute-bound"], 300, 1005)
    assert locked.ratio <= 1005 / 1410 and locked.speed == pytest.approx(locked.ratio)
    assert settle(A100, WORKS["memory-bound"], 300, 1005).speed == 1
    assert settle(A100, Work(0, 0.8, 1), 300, 1005).speed == pytest.approx(locked.ratio / 0.8)


def test_power_by_hand() -> None:
    """At half the clock and 0.3 of the dynamic power: compute takes 1.2 of 1.4 time units, memory 0.5."""
    power = A100.power
    by_hand = power.idle_w + (0.3 * (1.2 * power.active_w + 1.2 * power.compute_w) + 0.5 * power.memory_w) / 1.4
    assert power_w(A100, Work(0.2, 0.6, 0.5), 0.5, 0.3) == pytest.approx(by_hand)


def test_waiting_dilutes_what_a_cap_does() -> None:
    whole, half = settle(A100, WORKS["compute-bound"], 150), Phase(WORKS["compute-bound"], 0.5).settle(A100, 150)
    assert half.speed == pytest.approx(1 / (0.5 + 0.5 / whole.speed))
    works = 0.5 / whole.speed
    assert half.power_w == pytest.approx((0.5 * A100.power.idle_w + works * whole.power_w) / (0.5 + works))


# ---------------------------------------------------------------------------------------------------------------- fit


def test_a_fit_finds_the_curve_and_the_coefficients_that_made_the_rows() -> None:
    power, lines = A100.power, []
    for clock in (1005, 1131, 1260, 1410):
        ratio = clock / 1410
        scale = ratio**3
        watts = {
            "compute-bound": power.idle_w + scale * (140 + 90),
            "memory-bound": power.idle_w + scale * 140 + 40,
        }
        for work, value in watts.items():
            given = {"work": work, "cap_w": 300.0, "clock_mhz": float(clock)}
            lines.append(Row(f"{work}:{clock}", f"{work}/{clock}", {"power": value}, {"gpu": A100.name}, given))
    done: list[int] = []
    fitted = Caps().fit(lines, CATALOG, np.random.default_rng(1), done.append)
    entry = fitted.tables["gpus"][A100.name]
    assert entry["clock"]["ratio"] == pytest.approx([0.713, 0.802, 0.894, 1.0])
    assert entry["clock"]["scale"] == pytest.approx([0.713**3, 0.802**3, 0.894**3, 1.0], rel=0.03)
    found = {key: entry["power"][key] for key in ("idle_w", "active_w", "compute_w", "memory_w")}
    assert found == pytest.approx({"idle_w": power.idle_w, "active_w": 140, "compute_w": 90, "memory_w": 40}, rel=0.04)
    assert max(abs(error) for error in fitted.residuals["power"]) < 0.01 and done == [len(lines)]
    for key, value in found.items():
        if key != "idle_w":
            low, high = fitted.intervals[f"gpus.{A100.name}.power.{key}"]
            assert low <= value + 0.05 and value - 0.05 <= high and high - low < value


def test_what_a_fit_writes_the_catalogue_reads(tmp_path: Path) -> None:
    header = [f"squad,bert,32,adamw,{cap},{time},{watts}" for cap, time, watts in V100_LIKE]
    rows = Caps().read([write(tmp_path / "v100.csv", TRAINING, *header)], CATALOG)
    fitted = Caps().fit(rows, CATALOG, np.random.default_rng(1), lambda done: None)
    entry = fitted.tables["gpus"]["V100-32GB"]
    spec = type(A100).model_validate(entry | {"name": "V100-32GB"})
    # Training alone cannot tell the coefficients apart: they stay.
    assert spec.power == CATALOG.gpu("V100-32GB").power and spec.clock != CATALOG.gpu("V100-32GB").clock
    assert not any(".power." in key for key in fitted.intervals)
    refitted = Catalog({**CATALOG.gpus, "V100-32GB": spec}, CATALOG.models)
    before, after = (np.mean(errors(rows, simulate(rows, c), "speed")) for c in (CATALOG, refitted))
    assert after < before


V100_LIKE = [
    (100, 19, 99),
    (125, 15, 124),
    (150, 12, 149),
    (175, 11, 174),
    (200, 10.5, 199),
    (225, 10.2, 220),
    (250, 10, 228),
]


def test_without_rows_there_is_no_fit() -> None:
    with pytest.raises(InputError, match="no GPU has 4 rows"):
        Caps().fit([], CATALOG, np.random.default_rng(1), lambda done: None)


def test_least_squares_finds_a_known_minimum() -> None:
    t = np.linspace(0, 2, 20)
    found = least_squares(lambda x: x[0] * np.exp(-x[1] * t) - 3 * np.exp(-0.7 * t), np.array([1.0, 0.1]))
    assert found == pytest.approx([3, 0.7], rel=1e-5)
    assert not math.isnan(least_squares(lambda x: np.array([x[0] ** 4 + 1]), np.array([2.0]))[0])


# -------------------------------------------------------------------------------------------------- as it was measured


@pytest.fixture(scope="module")
def published() -> list[Row]:
    folder = Path(os.environ.get("LLMCLUSTER_DATA", Path(__file__).parents[1] / "../shared/data")) / "power_caps"
    if not folder.is_dir():
        pytest.skip("the published sweeps of power caps are not under LLMCLUSTER_DATA")
    return Caps().read(sorted(folder.glob("*.csv")), CATALOG)


@pytest.mark.data
@pytest.mark.parametrize(
    ("gpu", "work"), [("A100-80GB-PCIe", "compute-bound"), ("A100-80GB-PCIe", "memory-bound"), ("B300", "gemm")]
)
def test_speed_and_power_hold_at_every_cap(published: list[Row], gpu: str, work: str) -> None:
    simulated = simulate(published)
    caps = {row.groups["cap"] for row in published if row.groups["gpu"] == gpu and row.groups["work"] == work}
    assert len(caps) >= 5
    for cap in caps:
        for quantity in ("speed", "power"):
            found = errors(published, simulated, quantity, gpu=gpu, work=work, cap=cap)
            assert not found or np.median(found) <= 0.03, (cap, quantity)


@pytest.mark.data
def test_training_rows_are_all_simulated(published: list[Row]) -> None:
    training = [row for row in published if row.groups["work"] == "training"]
    assert len(training) == 453 + 476 - 53 - 68 and all(simulate(training))
