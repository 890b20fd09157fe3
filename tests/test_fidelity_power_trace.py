"""Power from engine counters: files, the arithmetic by hand, and the simulator's own runs as if they were measured."""

from __future__ import annotations

import csv
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llmcluster.experiments.fidelity.batches import Batches, governed
from llmcluster.experiments.fidelity.engine_power import Counted, work
from llmcluster.experiments.fidelity.errors import Comparison
from llmcluster.experiments.fidelity.iteration import Watts
from llmcluster.experiments.fidelity.series import autocorrelation, blocks, compare, second_means, with_intervals
from llmcluster.experiments.fidelity.skipped import Skipped
from llmcluster.experiments.fidelity.source import Row
from llmcluster.experiments.fidelity.sources.power_trace import PowerTrace
from llmcluster.experiments.fidelity.validate import assess
from llmcluster.simulator.blueprint import Blueprint
from llmcluster.simulator.catalog import Catalog, GpuSpec
from llmcluster.simulator.cluster import Cluster
from llmcluster.simulator.errors import InputError
from llmcluster.simulator.kernels.state import J_PER_UNIT
from llmcluster.simulator.performance import iteration_cost
from llmcluster.simulator.power import power_coefficients
from llmcluster.simulator.reference.observer import Observer
from llmcluster.simulator.topology import ClusterSpec
from llmcluster.simulator.units import PS_PER_S
from llmcluster.simulator.workload.table import RequestTable

CATALOG = Catalog.builtin()
MODEL, GPU = CATALOG.model("Qwen3-8B"), CATALOG.gpu("A100-80GB")
COST, POWER = iteration_cost(MODEL, GPU, 1), power_coefficients(MODEL, GPU, 1)
POWER_HEADER = ["t_s", "epoch_s", "power_w", "note"]
ENGINE_HEADER = [
    "epoch_s",
    "num_requests_running",
    "num_requests_waiting",
    "prompt_tokens_total",
    "generation_tokens_total",
    "iterations_total",
]


def write(path: Path, header: list[str], rows: list[list[float]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def pair(folder: Path, power: list[list[float]], engine: list[list[float]], name: str = "a100_qwen3-8b") -> list[Path]:
    return [
        write(folder / f"{name}_power.csv", POWER_HEADER, power),
        write(folder / f"{name}_engine.csv", ENGINE_HEADER, engine),
    ]


def idle_power(seconds: int, start_s: float = 1000.0) -> list[list[float]]:
    return [[k / 4, start_s + k / 4, 82.0, 0] for k in range(4 * seconds)]


def counters(looks: int, start_s: float = 1000.0, every_s: float = 0.25) -> list[list[float]]:
    """An engine that decodes four sequences with 20 iterations from look to look."""
    return [[start_s + k * every_s, 4, 0, 400, 80 * k, 20 * k] for k in range(looks)]


def predict(rows: list[Row], catalog: Catalog = CATALOG) -> np.ndarray:
    return PowerTrace().simulate(rows, catalog, 0, lambda done: None)[0].power_w  # type: ignore[attr-defined]


# --------------------------------------------------------------------------------------------------------------- read


def test_a_pair_is_one_row_whatever_the_order_and_further_columns(tmp_path: Path) -> None:
    files = pair(tmp_path, idle_power(10), counters(41), "A100-80GB_qwen3-8b_tp2_run")
    one, other = PowerTrace().read(files, CATALOG), PowerTrace().read(files[::-1], CATALOG)
    assert len(one) == 1 and one[0].configuration == other[0].configuration
    assert one[0].groups == {"gpu": "A100-80GB", "model": "Qwen3-8B"} and one[0].given["tp"] == 2
    assert one[0].measured == {"energy": pytest.approx(820)}


def test_pairs_are_told_apart_by_name(tmp_path: Path) -> None:
    files = [
        *pair(tmp_path, idle_power(10), counters(41), "h100_llama-3.1-8b_200rps"),
        *pair(tmp_path, idle_power(4), counters(17)),
    ]
    rows = PowerTrace().read(files, CATALOG)
    assert [row.groups["gpu"] for row in rows] == ["H100-80GB", "A100-80GB"]
    assert [row.measured["energy"] for row in rows] == pytest.approx([820, 328])
    with pytest.raises(InputError, match="other half"):
        PowerTrace().read(files[:3], CATALOG)


@pytest.mark.parametrize(
    ("power", "engine", "name", "message"),
    [
        (idle_power(10), counters(41), "run1", "does not tell the GPU"),
        (idle_power(10), counters(41), "a100_run", "does not tell the model"),
        (idle_power(10), counters(41, 5000.0), "a100_qwen3-8b", "does not overlap"),
        (idle_power(1), counters(41), "a100_qwen3-8b", "only 4 samples"),
        (idle_power(10), counters(20) + counters(41)[:20], "a100_qwen3-8b", "goes back in time"),
        (idle_power(10), [*counters(20), [1005.0, 4, 0, 400, 1, 1]], "a100_qwen3-8b", "a counter falls"),
        (idle_power(10), [[1000.0, -1, 0, 0, 0, 0], *counters(20)[1:]], "a100_qwen3-8b", "negative"),
    ],
)
def test_bad_pairs_are_refused(
    tmp_path: Path, power: list[list[float]], engine: list[list[float]], name: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        PowerTrace().read(pair(tmp_path, power, engine, name), CATALOG)


def test_names_are_those_of_the_catalogue_that_is_given(tmp_path: Path) -> None:
    more = tmp_path / "more.toml"
    more.write_text('[gpus.Z9]\nlike = "A100-80GB"\npower.idle_w = 60\n\n[models.New-8B]\nlike = "Qwen3-8B"\n')
    files, catalog = pair(tmp_path, idle_power(10), counters(41), "z9_new-8b"), CATALOG.with_file(more)
    with pytest.raises(InputError, match=r"does not tell the GPU.*--catalog FILE"):
        PowerTrace().read(files, CATALOG)
    rows = PowerTrace().read(files, catalog)
    assert rows[0].groups == {"gpu": "Z9", "model": "New-8B"}
    assert np.nanmin(predict(rows, catalog)) >= 60


def test_a_pair_that_cannot_be_is_skipped_with_its_reason(tmp_path: Path) -> None:
    files = [
        *pair(tmp_path, idle_power(10), counters(41), "a100_qwen3-8b_tp3"),
        *pair(tmp_path, idle_power(10), counters(41), "a100_qwen3-8b_tp1"),
    ]
    rows = PowerTrace().read(files, CATALOG)
    outcomes = PowerTrace().simulate(rows, CATALOG, 0, lambda done: None)
    assert isinstance(outcomes[0], Skipped) and outcomes[0].reason.startswith("tp: ")
    validation = assess(PowerTrace(), Comparison.of(rows, outcomes, ["energy"]), np.random.default_rng(0))
    assert validation.summaries["energy"].count == 1
    assert [score.name for score in validation.scores] == ["energy_error"], "the power does not change: no dynamics"


def test_a_file_of_neither_kind_is_refused(tmp_path: Path) -> None:
    files = pair(tmp_path, idle_power(10), counters(41))
    with pytest.raises(InputError, match="neither a power trace nor an engine trace"):
        PowerTrace().read([files[0], write(tmp_path / "x_engine.csv", ["epoch_s", "tokens"], [[1, 2]])], CATALOG)


# --------------------------------------------------------------------------------------------------------- arithmetic


def test_an_iteration_by_hand() -> None:
    """Eight decodes of 500 tokens of context."""
    found = work(COST, POWER, Counted(1, 0, 8, 0, 500))
    host = (COST.step_ps + 8 * COST.sequence_ps) / PS_PER_S
    memory = (int(COST.memory_ps[8]) + 4000 * COST.kv_read_ps) / PS_PER_S
    compute = (int(COST.compute_ps[8]) + 4000 * COST.attention_ps) / PS_PER_S
    gap, samples = COST.gap_ps / PS_PER_S, 8 * COST.sample_ps / PS_PER_S
    assert compute < memory and gap > 0 and samples > 0
    works = gap + samples + memory
    assert (found.length, found.host) == pytest.approx((host + works, host))
    cache = 4000 * COST.kv_read_ps / PS_PER_S
    assert tuple(found.activity) == pytest.approx((works, compute, memory - cache + samples, cache, 0))


def test_a_long_prompt_is_held_down_to_the_tdp() -> None:
    long, short = (work(COST, POWER, Counted(1, tokens, 0, 1, 0)) for tokens in (8192, 16))
    for busy in (long, short):
        assert POWER.idle_w + Watts.of(POWER).above_idle(busy.activity) / busy.length <= POWER.cap_max_w
    assert long.activity.active < long.length - long.host
    assert short.activity.active == pytest.approx(short.length - short.host)


def test_counters_that_leap_stay_within_the_tables() -> None:
    """More prompt tokens than the budget in the only iteration counted: they take as long as the budget does."""
    leap, full = (work(COST, POWER, Counted(1, tokens, 0, 1, 0)) for tokens in (20_000, 8192))
    assert leap.length > full.length and leap.activity.link == full.activity.link
    assert leap.activity.memory == pytest.approx(full.activity.memory)


def test_work_adds_up_over_iterations() -> None:
    assert work(COST, POWER, Counted(0, 0, 0, 0, 0)).length == 0
    decodes = work(COST, POWER, Counted(20, 0, 80, 0, 300))
    one = governed(COST, POWER, Batches(*(np.array([value]) for value in (4, 4, 1200, 1200)))).times
    assert decodes.length == pytest.approx(20 * one.length[0])
    mixed = work(COST, POWER, Counted(20, 1000, 81, 1, 300))
    prompt = (1004, 5, 1200 + 1000 * 1001 / 2, 1200)
    prefill = governed(COST, POWER, Batches(*(np.array([value]) for value in prompt))).times
    assert mixed.length == pytest.approx(decodes.length * 19 / 20 + prefill.length[0])
    assert mixed.activity.compute > decodes.activity.compute


# ------------------------------------------------------------------------------------------------------------- series


def test_means_of_seconds_leave_gaps_out() -> None:
    time_s = np.array([10.0, 10.25, 10.5, 10.75, 11.0, 11.25, 11.5, 11.75, 12.9, 13.0, 13.25, 13.5, 13.75])
    means = second_means(time_s, np.arange(13.0))
    assert means[[0, 1, 3]] == pytest.approx([1.5, 5.5, 10.5]) and np.isnan(means[2]) and len(means) == 4


def test_autocorrelation_is_the_usual_one() -> None:
    values = np.random.default_rng(1).normal(size=200).cumsum()
    centred = values - values.mean()
    usual = [float(centred[:-k] @ centred[k:] / (centred @ centred)) for k in range(1, 21)]
    assert autocorrelation(values) == pytest.approx(usual)
    assert not autocorrelation(np.ones(50)).any()


def test_errors_by_hand() -> None:
    measured = np.array([100.0, 200, 300, 400, np.nan, 100])
    found = compare(measured, measured * 1.1, 300)
    assert found["energy_error"] == pytest.approx(0.1) and found["acf_r2"] == pytest.approx(1)
    assert found["nrmse"] == pytest.approx(np.sqrt((10**2 + 20**2 + 30**2 + 40**2 + 10**2) / 5) / 300)


def test_intervals_hold_the_figure_and_narrow_with_length() -> None:
    rng = np.random.default_rng(3)
    widths = []
    for length in (100, 1600):
        measured = 300 + 60 * np.sin(np.arange(length) / 9) + rng.normal(0, 5, length)
        found = with_intervals(measured, measured * 1.02 + rng.normal(0, 30, length), np.random.default_rng(0))
        assert all(found[f"{k}_low"] <= found[k] <= found[f"{k}_high"] for k in ("energy_error", "nrmse"))
        widths.append(found["energy_error_high"] - found["energy_error_low"])
    assert widths[1] < widths[0] / 2
    assert (np.diff(blocks(45, rng, 3)[:, :20], axis=1) == 1).all() and blocks(45, rng, 3).shape == (3, 45)


# ---------------------------------------------------------------------------------------------------------- simulate


def test_before_and_after_the_engine_the_gpu_idles(tmp_path: Path) -> None:
    looks = [[1005 + k / 4, 4 if k < 12 else 0, 0, 400, 80 * min(k, 12), 20 * min(k, 12)] for k in range(20)]
    watts = predict(PowerTrace().read(pair(tmp_path, idle_power(15), looks), CATALOG))
    assert watts[[0, 1, 2, 3, 12, 13]] == pytest.approx(GPU.power.idle_w)
    level = governed(COST, POWER, Batches(*(np.array([value]) for value in (4, 4, 0, 0)))).power_w[0]
    assert watts[[5, 6]] == pytest.approx(level, rel=0.1)


def test_totals_from_before_the_first_look_are_not_work(tmp_path: Path) -> None:
    looks = [[1000 + k / 4, 0, 0, 10**6, 10**6, 10**6] for k in range(41)]
    assert predict(PowerTrace().read(pair(tmp_path, idle_power(10), looks), CATALOG)) == pytest.approx(GPU.power.idle_w)


class Log(Observer):
    """Counters after every iteration, and who runs."""

    def __init__(self) -> None:
        self.looks: list[tuple[float, int, int, int, int]] = []
        self.flights: list[tuple[float, float, float]] = []
        self.running = self.prompt = self.output = 0

    def admitted(self, slot: int, request: int, t: int, hit_tokens: int) -> None:
        self.running += 1

    def first_token(self, slot: int, request: int, t: int) -> None:
        self.output += 1

    def left(self, slot: int, request: int, t: int, status: int) -> None:
        self.running -= 1

    def iteration(
        self, slot: int, start_ps: int, end_ps: int, decodes: int, prefill_tokens: int, step: int, energy: int
    ) -> None:
        self.prompt += prefill_tokens
        self.output += decodes
        self.flights.append((start_ps / PS_PER_S, end_ps / PS_PER_S, energy * J_PER_UNIT))
        self.looks.append((end_ps / PS_PER_S, self.running, self.prompt, self.output, len(self.flights)))


def simulated_pair(folder: Path, rate_per_s: float, seconds: int = 60) -> tuple[list[Path], float]:
    """A run of the reference engine, looked at as the published one was; the last is the energy of its bins, joules."""
    rng = np.random.default_rng(5)
    arrival_s = 5 + rng.exponential(1 / rate_per_s, int(rate_per_s * (seconds - 15))).cumsum()
    lengths = rng.integers(20, 900, len(arrival_s)), rng.integers(20, 300, len(arrival_s))
    requests = RequestTable.from_columns((arrival_s * PS_PER_S).astype(np.int64), *lengths)
    servers = [{"gpu": GPU.name, "gpus": 1, "model": MODEL.name}]
    spec = ClusterSpec.model_validate(
        {"rows": [{"racks": [{"servers": servers}]}], "engine": {"max_num_batched_tokens": 8192}}
    )
    log = Log()
    world = Cluster(Blueprint.of(spec), requests, np.random.default_rng(0), engine="reference", observer=log)
    world.advance(seconds * PS_PER_S)
    ends = np.array([look[0] for look in log.looks])
    engine = []
    for at in np.arange(4, seconds, 0.257):
        last = int(np.searchsorted(ends, at, side="right")) - 1
        engine.append([1e9 + at, *([log.looks[last][1], 0, *log.looks[last][2:]] if last >= 0 else [0] * 5)])
    # The energy up to a time, for a meter of 0.1 s read four times a second.
    starts, energy = np.array([f[0] for f in log.flights]), np.array([f[2] for f in log.flights])
    knots = np.concatenate([[0.0], np.stack([starts, ends], axis=1).ravel(), [seconds]])
    steps = np.zeros(len(knots) - 1)
    steps[1::2] = energy
    steps[0::2] = GPU.power.idle_w * np.diff(knots)[0::2]
    total = np.concatenate([[0.0], steps.cumsum()])
    sampled = np.arange(0.25, seconds, 0.25)
    watts = (np.interp(sampled, knots, total) - np.interp(sampled - 0.1, knots, total)) / 0.1
    power = [[t, 1e9 + t, w, 0] for t, w in zip(sampled.tolist(), watts.tolist(), strict=True)]
    bins_j = float(world.history.column("energy_j", seconds).sum())
    assert bins_j == pytest.approx(total[-1], rel=1e-6)
    return pair(folder, power, engine), bins_j


@pytest.mark.parametrize("rate_per_s", [0.5, 3.0, 10.0])
def test_counters_tell_the_power_of_the_simulators_own_engine(tmp_path: Path, rate_per_s: float) -> None:
    files, bins_j = simulated_pair(tmp_path, rate_per_s)
    rows = PowerTrace().read(files, CATALOG)
    assert rows[0].measured["energy"] == pytest.approx(bins_j, rel=0.03)
    simulated = PowerTrace().simulate(rows, CATALOG, 0, lambda done: None)
    found = PowerTrace().summary(rows, simulated)
    assert simulated[0]["energy"] == pytest.approx(rows[0].measured["energy"] * (1 + found["energy_error"]))
    assert abs(found["energy_error"]) < 0.03 and found["nrmse"] < 0.1 and found["acf_r2"] > 0.95


def test_a_fit_finds_the_power_that_made_the_trace(tmp_path: Path) -> None:
    rows = PowerTrace().read(simulated_pair(tmp_path, 3.0)[0], CATALOG)
    wrong = GPU.model_copy(update={"power": GPU.power.model_copy(update={"active_w": 60.0, "idle_w": 120.0})})
    catalog = replace(CATALOG, gpus={**CATALOG.gpus, GPU.name: wrong})
    done: list[int] = []
    fitted = PowerTrace().fit(rows, catalog, np.random.default_rng(0), done.append)
    entry = fitted.tables["gpus"][GPU.name]
    assert entry["power"]["idle_w"] == pytest.approx(GPU.power.idle_w, rel=0.03) and done == [1]
    better = replace(CATALOG, gpus={**CATALOG.gpus, GPU.name: GpuSpec.model_validate(entry | {"name": GPU.name})})
    truth = rows[0].given["power_w"]
    before, after = (np.sqrt(np.nanmean((predict(rows, c) - truth) ** 2)) for c in (catalog, better))
    assert after < 0.5 * before and abs(fitted.residuals["energy"][0]) < 0.01
    low, high = fitted.intervals[f"gpus.{GPU.name}.power.active_w"]
    assert low < high
    with pytest.raises(InputError, match="no trace"):
        PowerTrace().fit([], catalog, np.random.default_rng(0), done.append)


# -------------------------------------------------------------------------------------------------- as it was measured


@pytest.fixture(scope="module")
def published() -> list[Row]:
    root = Path(os.environ.get("LLMCLUSTER_DATA", Path(__file__).parents[1] / "../shared/data")) / "vllm_serving"
    files = [root / f"a100_qwen3-8b_r2p5_smooth_{kind}.csv" for kind in ("power", "engine")]
    if not all(path.is_file() for path in files):
        pytest.skip("the published pair of traces is not under LLMCLUSTER_DATA")
    return PowerTrace().read(files, CATALOG)


@pytest.mark.data
@pytest.mark.parametrize("fitted_first", [False, True])
def test_the_published_pair_is_met(published: list[Row], fitted_first: bool) -> None:
    entry = PowerTrace().fit(published, CATALOG, np.random.default_rng(0), lambda done: None).tables["gpus"][GPU.name]
    fitted = replace(CATALOG, gpus={**CATALOG.gpus, GPU.name: GpuSpec.model_validate(entry | {"name": GPU.name})})
    catalog = fitted if fitted_first else CATALOG
    found = PowerTrace().summary(published, PowerTrace().simulate(published, catalog, 0, lambda done: None))
    assert abs(found["energy_error"]) <= 0.03 and found["nrmse"] <= 0.1 and found["acf_r2"] >= 0.95
