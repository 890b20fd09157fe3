"""The three NLR sources: reading, simulated runs, the node's meter, and the power of the host."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcluster.experiments.fidelity.figures import flat, to_toml
from llmcluster.experiments.fidelity.sources.nlr_lengths import DATASETS, log_normal, normal, with_mean
from llmcluster.experiments.fidelity.sources.nlr_node import GPU, Load, Work, idle_gpus_w, node, play
from llmcluster.experiments.fidelity.sources.nlr_offline import NlrOffline
from llmcluster.experiments.fidelity.sources.nlr_online import MEASURED, NlrOnline
from llmcluster.experiments.fidelity.sources.nlr_online_fit import SOURCE, scale_of
from llmcluster.experiments.fidelity.sources.nlr_rate import NlrRate
from llmcluster.experiments.fidelity.sources.nlr_source import NlrSource, band
from llmcluster.simulator.blueprint import Blueprint
from llmcluster.simulator.catalog import Catalog, Scale
from llmcluster.simulator.cluster import Cluster
from llmcluster.simulator.errors import InputError
from llmcluster.simulator.host import host_energy_j, host_power_w
from llmcluster.simulator.topology import ClusterSpec, RackSpec, RowSpec, ServerSpec
from llmcluster.simulator.workload.table import RequestTable

DATA = Path(os.environ.get("LLMCLUSTER_DATA", Path(__file__).parents[1] / "../shared/data")) / "nlr_h100"
measured = pytest.mark.skipif(not DATA.is_dir(), reason="the NLR runs are not under LLMCLUSTER_DATA")

ONLINE = {
    "dataset": "likaixin/InstructCoder",
    "output_len": 256,
    "request_rate": 20,
    "num_prompts": 200.0,
    "completed": 200.0,
    "total_input_tokens": 34_800,
    "total_output_tokens": 31_800,
} | dict.fromkeys(MEASURED.values(), 1.0)
RATE = {
    "dataset": "mgoin/mlperf-inference-llama2-data",
    "num_prompts": 1200,
    "request_rate": 4,
    "duration_s": 30.0,
    "mean_power_w": 2000,
}
OFFLINE = {"batch_size": 50, "max_output_tokens": 512, "repeat": 0, "elapsed_s": 10.5, "mean_power_w": 2100}

Cells = Mapping[str, object]
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes rows of one layout as CSV."""

    def make(*rows: Cells) -> Path:
        path = tmp_path / "rows.csv"
        lines = [",".join(rows[0]), *(",".join(str(cell) for cell in row.values()) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
        return path

    return make


def run(source: NlrSource, path: Path, seed: int = 0) -> list[Mapping[str, float]]:
    """Reads and simulates."""
    return source.simulate(source.read([path], Catalog.builtin()), Catalog.builtin(), seed, lambda done: None)


class TestReading:
    @pytest.mark.parametrize(("source", "row"), [(NlrOnline(), ONLINE), (NlrRate(), RATE), (NlrOffline(), OFFLINE)])
    def test_a_row(self, source: NlrSource, row: Cells, write: Write) -> None:
        (read,) = source.read([write(row)], Catalog.builtin())
        assert read.place.endswith("rows.csv:2")
        assert set(read.measured) == set(source.quantities)
        assert read.groups["gpu"] == "H100-80GB"
        assert read.groups["model"] == "Llama-3.1-70B"

    def test_all_rates_of_a_sweep_are_one_configuration(self, write: Write) -> None:
        rows = NlrOnline().read(
            [write(ONLINE, ONLINE | {"request_rate": 50}, ONLINE | {"output_len": 512})], Catalog.builtin()
        )
        assert rows[0].configuration == rows[1].configuration != rows[2].configuration

    def test_means_come_from_the_totals(self, write: Write) -> None:
        (row,) = NlrOnline().read([write(ONLINE)], Catalog.builtin())
        assert (row.given["prompt_mean"], row.given["output_mean"]) == (174.0, 159)

    @pytest.mark.parametrize(
        ("source", "row", "complaint"),
        [
            (NlrRate(), RATE | {"dataset": "alpaca"}, "'alpaca'"),
            (
                NlrOnline(),
                ONLINE | {"model": "Qwen3-8B"},
                "model is Qwen3-8B; nlr-online simulates Llama-3.1-70B on 4 x",
            ),
            (NlrOffline(), OFFLINE | {"gpu": "NVIDIA A100-SXM4-80GB"}, "gpu is A100-80GB; nlr-offline simulates"),
            (NlrOnline(), ONLINE | {"mean_tpot_ms": "fast"}, "mean_tpot_ms"),
            (NlrOnline(), ONLINE | {"completed": 0}, "completed"),
            (NlrRate(), RATE | {"request_rate": -1}, "request_rate"),
            (NlrRate(), {key: RATE[key] for key in list(RATE)[:-1]}, "mean_power_w"),
            (NlrOffline(), OFFLINE | {"repeat": -1}, "repeat"),
            (NlrOffline(), OFFLINE | {"elapsed_s": "nan"}, "elapsed_s"),
        ],
    )
    def test_bad_input(self, source: NlrSource, row: Cells, complaint: str, write: Write) -> None:
        with pytest.raises(InputError, match=complaint) as caught:
            source.read([write(row)], Catalog.builtin())
        assert "rows.csv:" in caught.value.where
        assert caught.value.remedy

    def test_a_file_may_tell_the_node_in_other_words(self, write: Write) -> None:
        told = {"model": "meta-llama/Llama-3.1-70B-Instruct", "gpu": "NVIDIA H100 80GB HBM3"}
        (read,) = NlrRate().read([write(RATE | told)], Catalog.builtin())
        assert (read.groups["model"], read.groups["gpu"]) == ("Llama-3.1-70B", "H100-80GB")

    def test_another_data_set_has_its_own_means_and_the_spread_of_the_first(self, write: Write) -> None:
        source = NlrOnline()
        known, other = run(source, write(ONLINE, ONLINE | {"dataset": "alpaca"}))
        assert other["tpot"] == pytest.approx(known["tpot"], rel=0.02)
        (longer,) = run(source, write(ONLINE | {"dataset": "alpaca", "total_output_tokens": 45_000}))
        assert longer["throughput"] != pytest.approx(other["throughput"], rel=0.02)

    def test_bands(self) -> None:
        assert [band(value, (10, 50), "req/s") for value in (1, 10, 11, 51)] == [
            "1-10 req/s",
            "1-10 req/s",
            "11-50 req/s",
            "over 50 req/s",
        ]


class TestLengths:
    @given(st.floats(30, 220), st.sampled_from(sorted(DATASETS)), st.integers(0, 99))
    def test_outputs_have_the_mean_and_the_limit(self, mean: float, name: str, seed: int) -> None:
        lengths = with_mean(mean, 256, DATASETS[name].output_quantiles, 500, np.random.default_rng(seed))
        assert lengths.mean() == pytest.approx(mean, abs=0.6)
        assert lengths.min() >= 1
        assert lengths.max() <= 256

    def test_the_shapes_agree_with_both_published_limits(self) -> None:
        """Means that the runs of 10 req/s had when cut at 256 and at 1024 tokens, with one stretch for both."""
        for name, means in {
            "likaixin/InstructCoder": (159, 195),
            "mgoin/mlperf-inference-llama2-data": (205, 244),
        }.items():
            quantiles = DATASETS[name].output_quantiles
            long = with_mean(means[1], 1024, quantiles, 2000, np.random.default_rng(0))
            assert np.minimum(long, 256).mean() == pytest.approx(means[0], rel=0.03)

    def test_prompts(self) -> None:
        lengths = log_normal(174.0, 1000, np.random.default_rng(0))
        assert lengths.mean() == pytest.approx(174, abs=0.6)
        assert np.log(lengths).std() == pytest.approx(0.5, abs=0.02)

    def test_offline_outputs_are_cut(self) -> None:
        lengths = normal(760, 320, 1024, 1000, np.random.default_rng(0))
        assert np.median(lengths) == pytest.approx(760, abs=2)
        assert np.count_nonzero(lengths == 1024) == pytest.approx(205, abs=5)


class TestOnline:
    def test_figures_hang_together(self, write: Write) -> None:
        (row,) = run(NlrOnline(), write(ONLINE))
        assert 199 / 20 < row["duration"] < 199 / 20 + 10
        assert row["throughput"] * row["duration"] == pytest.approx(34_800 + 31_800, rel=0.01)
        assert 12 < row["itl"] < 40
        assert row["tpot"] == pytest.approx(row["itl"], rel=0.1)
        assert 1000 < row["power"] < 3200

    def test_more_load_is_slower_and_hungrier(self, write: Write) -> None:
        slow, fast = run(NlrOnline(), write(ONLINE | {"request_rate": 20}, ONLINE | {"request_rate": 1000}))
        assert fast["tpot"] > slow["tpot"]
        assert fast["duration"] < slow["duration"]
        assert fast["throughput"] > slow["throughput"]

    def test_repeats_share_a_run_and_neighbours_do_not_matter(self, write: Write) -> None:
        first, other, again = run(NlrOnline(), write(ONLINE, ONLINE | {"request_rate": 50}, ONLINE))
        assert first == again != other
        assert run(NlrOnline(), write(ONLINE)) == [first]

    def test_prompts_are_new_at_the_first_rate_only(self, write: Write) -> None:
        new, known = run(NlrOnline(), write(ONLINE | {"request_rate": 10}, ONLINE | {"request_rate": 10.01}))
        assert known["ttft"] < 0.95 * new["ttft"]


class TestOthers:
    def test_offline_repeats_find_their_prompts_in_the_cache(self, write: Write) -> None:
        new, known = run(NlrOffline(), write(OFFLINE | {"batch_size": 300}, OFFLINE | {"batch_size": 300, "repeat": 1}))
        assert known["elapsed"] < 0.97 * new["elapsed"]

    def test_longer_outputs_take_longer(self, write: Write) -> None:
        short, long = run(NlrOffline(), write(OFFLINE, OFFLINE | {"max_output_tokens": 1024}))
        assert 1.8 < long["elapsed"] / short["elapsed"] < 2.3

    def test_power_grows_with_the_rate(self, write: Write) -> None:
        rows = (RATE | {"request_rate": rate, "num_prompts": 300 * rate} for rate in (1, 8, 20))
        watts = [row["power"] for row in run(NlrRate(), write(*rows))]
        assert watts == sorted(watts)
        assert watts[-1] > 1.1 * watts[0]


class TestMeter:
    def test_what_the_host_draws_above_idle_counts_twice(self) -> None:
        host = Catalog.builtin().gpu(GPU).host.model_copy(update={"idle_w": 200, "active_w": 30, "request_w": 0.1})
        assert Load(gpu_w=1000.0, busy=0.5, running=40.0).node_w(host) == pytest.approx(1000 + 200 + 2 * (15 + 4))

    def test_a_window_after_the_work_shows_an_idle_node(self) -> None:
        blueprint = node(Catalog.builtin())
        work = Work(np.zeros(1), np.array([50]), np.array([20]), cached=False)
        after = play(blueprint, work, np.random.default_rng(0), (100.0, 160.0)).load
        idle_w = idle_gpus_w(blueprint)
        assert after == Load(pytest.approx(idle_w), 0.0, 0.0)

    def test_the_tail_of_the_last_second_is_left_out(self) -> None:
        """The mean over a run does not depend on where in a second it ends, and lies near that of its middle."""
        blueprint, rng = node(Catalog.builtin()), np.random.default_rng(0)
        runs = [
            play(blueprint, Work(np.zeros(8), np.full(8, 50), np.full(8, tokens), cached=False), rng)
            for tokens in (2000, 2030, 2090)
        ]
        watts = [one.load.gpu_w for one in runs]
        assert len({int(one.duration_s) for one in runs}) > 1
        assert watts == pytest.approx([watts[0]] * 3, rel=0.005)
        middle = play(blueprint, Work(np.zeros(8), np.full(8, 50), np.full(8, 2000), cached=False), rng, (10.0, 20.0))
        idle_w = idle_gpus_w(blueprint)
        # The meter's memory shows half a second of the idle node before the run.
        expected_w = middle.load.gpu_w - (middle.load.gpu_w - idle_w) * 0.5 / runs[0].duration_s
        assert watts[0] == pytest.approx(expected_w, rel=0.01)


class TestHost:
    def test_power_is_linear(self) -> None:
        host = Catalog.builtin().gpu(GPU).host.model_copy(update={"idle_w": 200, "active_w": 30, "request_w": 0.1})
        assert host_power_w(host, 0, 0) == 200
        assert host_power_w(host, 2, 50) == pytest.approx(200 + 60 + 5)

    def test_energy_of_a_cluster(self) -> None:
        """Two servers for 10 s; one of them works, on both of its slots."""
        servers = (ServerSpec(gpu=GPU, gpus=2, model="Llama-3.1-8B"), ServerSpec(gpu=GPU, gpus=1, model="Qwen3-8B"))
        spec = ClusterSpec(rows=(RowSpec(racks=(RackSpec(servers=servers),)),))
        n = 8
        requests = RequestTable.from_columns(
            np.zeros(n), np.full(n, 100), np.full(n, 5000), models=("Llama-3.1-8B",), model=np.zeros(n)
        )
        cluster = Cluster(Blueprint.of(spec), requests, np.random.default_rng(0))
        catalog = Catalog.builtin()
        assert host_energy_j(cluster, catalog) == 0
        cluster.advance(10 * 10**12)
        host = catalog.gpu(GPU).host
        assert host_energy_j(cluster, catalog) == pytest.approx(
            10 * (2 * host.idle_w + 2 * host.active_w + n * host.request_w)
        )


def written(tables: Mapping[str, object], folder: Path) -> Path:
    """Fitted figures as a file."""
    path = folder / "fitted.toml"
    path.write_text(to_toml(tables, []))
    return path


class TestFit:
    def test_planted_figures_are_found_and_can_be_read_back(self, write: Write, tmp_path: Path) -> None:
        catalog, source = Catalog.builtin(), NlrOffline()
        gpu = catalog.gpu(GPU)
        idle_w = 700 - idle_gpus_w(node(catalog))
        host = gpu.host.model_copy(update={"idle_w": idle_w, "active_w": 40.0, "request_w": 0.2})
        path = write(*(OFFLINE | {"batch_size": batch} for batch in (25, 75, 150, 300, 700)))
        loads = [
            one.load for one in source._runs(source.read([path], Catalog.builtin()), catalog, 0, lambda done: None)
        ]
        rows = [
            replace(row, measured={**row.measured, "power": load.node_w(host)})
            for row, load in zip(source.read([path], Catalog.builtin()), loads, strict=True)
        ]
        found = source.fit(rows, catalog, np.random.default_rng(0), lambda done: None)
        table = found.tables["gpus"][GPU]["host"]
        assert table["idle_w"] == pytest.approx(idle_w)
        assert table["active_w"] == pytest.approx(40, rel=0.05)
        assert table["request_w"] == pytest.approx(0.2, rel=0.05)
        assert np.abs(found.residuals["power"]).max() < 0.005
        low, high = found.intervals[f"gpus.{GPU}.host.active_w"]
        assert low <= table["active_w"] + 1e-3
        assert high >= table["active_w"] - 1e-3

        lines = [f'[gpus."{GPU}"]', f'like = "{GPU}"', f'[gpus."{GPU}".host]']
        written = tmp_path / "fitted.toml"
        written.write_text("\n".join([*lines, *(f"{key} = {json.dumps(value)}" for key, value in table.items())]))
        again = catalog.with_file(written).gpu(GPU)
        assert again.host.active_w == table["active_w"]
        assert again.timing == gpu.timing
        assert again.calibrated

    def test_a_planted_choice_and_factor_are_found(self, write: Write, tmp_path: Path) -> None:
        builtin, source = Catalog.builtin(), NlrOnline()
        before = Scale(model="Llama-3.1-70B", gpu=GPU, tp=4, step_s=1e-3, source="runs of others")
        catalog = replace(builtin, scales={**builtin.scales, before.cut: before})
        gpu = catalog.gpu(GPU)
        timing = gpu.timing.model_copy(update={"greedy_s": 30e-6})
        scale = before.model_copy(update={"power": 0.93})
        planted = replace(
            catalog,
            gpus={**catalog.gpus, GPU: gpu.model_copy(update={"timing": timing})},
            scales={**catalog.scales, scale.cut: scale},
        )
        rows = source.read(
            [write(*(ONLINE | {"request_rate": rate} for rate in (20, 50, 100, 1000)))], Catalog.builtin()
        )
        simulated = source.simulate(rows, planted, 0, lambda done: None)
        rows = [replace(row, measured={**row.measured, **one}) for row, one in zip(rows, simulated, strict=True)]
        found = source.fit(rows, catalog, np.random.default_rng(0), lambda done: None)
        assert found.tables["gpus"][GPU]["timing"]["greedy_s"] == pytest.approx(30e-6, rel=0.1)
        (entry,) = found.tables["scales"]
        assert entry["power"] == pytest.approx(0.93, rel=0.01)
        assert Scale.model_validate(entry).cut == scale.cut
        assert entry["step_s"] == 1e-3, "what others fitted stays"
        assert entry["source"] == f"runs of others; power: {SOURCE}"
        assert np.median(np.abs(found.residuals["tpot"])) < 0.005
        assert set(found.intervals) <= set(flat(found.tables))
        for value, (low, high) in zip((30e-6, 0.93), found.intervals.values(), strict=True):
            assert low <= value * 1.03 and high >= value * 0.97 and high - low < 0.2 * value
        again = catalog.with_file(written(found.tables, tmp_path))
        assert scale_of(again, 0.9).source == entry["source"], "a second calibration says nothing twice"
        assert scale_of(builtin, 0.9).source == SOURCE

    def test_intervals_are_of_configurations_that_differ(self, write: Write) -> None:
        """One limit is measured 4 % slower and 6 % hungrier than simulated: the figures lie between."""
        catalog, source = Catalog.builtin(), NlrOnline()
        cells = [ONLINE | {"request_rate": rate, "output_len": most} for most in (256, 512) for rate in (20, 50, 200)]
        rows = source.read([write(*cells)], catalog)
        simulated = source.simulate(rows, catalog, 0, lambda done: None)
        rows = [
            replace(row, measured=one | ({"tpot": 1.04 * one["tpot"], "power": 1.06 * one["power"]} if i > 2 else {}))
            for i, (row, one) in enumerate(zip(rows, simulated, strict=True))
        ]
        found = source.fit(rows, catalog, np.random.default_rng(0), lambda done: None)
        (greedy, power), known = found.intervals.values(), catalog.gpu(GPU).timing.greedy_s
        assert greedy[0] == pytest.approx(known, rel=0.2) and greedy[1] > 1.3 * known
        assert power[1] / power[0] > 1.05
        fitted = (found.tables["gpus"][GPU]["timing"]["greedy_s"], found.tables["scales"][0]["power"])
        for value, (low, high) in zip(fitted, (greedy, power), strict=True):
            assert low <= value <= high

    def test_figures_are_never_negative(self, write: Write) -> None:
        (row,) = NlrOffline().read([write(OFFLINE)], Catalog.builtin())
        row = replace(row, measured={**row.measured, "power": 1000.0})
        found = NlrOffline().fit([row], Catalog.builtin(), np.random.default_rng(0), lambda done: None)
        host = found.tables["gpus"][GPU]["host"]
        assert (host["active_w"], host["request_w"]) == (0, 0)

    def test_nothing_to_fit_to(self) -> None:
        with pytest.raises(InputError, match="no row"):
            NlrRate().fit([], Catalog.builtin(), np.random.default_rng(0), lambda done: None)


@measured
class TestPublished:
    """Bounds that only tell a broken simulation from a sound one; what it really misses by is in the error table."""

    @pytest.mark.parametrize(
        ("source", "file", "rows"),
        [
            (NlrOnline(), "online_finite.csv", 682),
            (NlrRate(), "online_rate.csv", 134),
            (NlrOffline(), "offline.csv", 900),
        ],
    )
    def test_medians(self, source: NlrSource, file: str, rows: int) -> None:
        read = source.read([DATA / file], Catalog.builtin())
        assert len(read) == rows
        simulated = source.simulate(read[::7], Catalog.builtin(), 0, lambda done: None)
        for quantity in set(source.quantities) - {"ttft"}:
            error = [s[quantity] / row.measured[quantity] - 1 for s, row in zip(simulated, read[::7], strict=True)]
            assert np.median(np.abs(error)) < 0.2, quantity
