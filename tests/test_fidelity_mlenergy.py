"""The runs of the ML.ENERGY leaderboard as a source."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from llmcluster.experiments.fidelity.errors import Comparison
from llmcluster.experiments.fidelity.skipped import Skipped
from llmcluster.experiments.fidelity.sources.mlenergy import FOLDER, MlEnergy
from llmcluster.experiments.fidelity.sources.mlenergy_sensitivity import VARIANTS, sensitivity, sent_once
from llmcluster.experiments.fidelity.sources.mlenergy_tasks import MAX_MODEL_LEN, TASKS, lengths, requests_sent
from llmcluster.simulator.catalog import Catalog
from llmcluster.simulator.errors import InputError

DATA = Path(os.environ.get("LLMCLUSTER_DATA", Path(__file__).parents[1] / "../shared/data")) / "mlenergy"
CELLS = {
    "model": "Qwen3-8B",
    "task": "lm-arena-chat",
    "architecture": "Dense Transformer",
    "params_b": "8.0",
    "activated_params_b": "8.0",
    "weight_precision": "bfloat16",
    "gpu_model": "H100",
    "num_gpus": "1",
    "tp": "1",
    "ep": "1",
    "dp": "1",
    "max_num_seqs": "16",
    "avg_batch_size": "15.9",
    "avg_output_len": "660.125",
    "median_itl_ms": "8.9",
    "p90_itl_ms": "9.8",
    "p99_itl_ms": "15.2",
    "avg_power_watts": "451",
    "energy_per_token_joules": "0.25",
    "output_throughput": "1745",
}


def written(folder: Path, *changes: dict[str, str]) -> Path:
    path = folder / "runs.csv"
    lines = [",".join(CELLS), *(",".join((CELLS | change).values()) for change in changes or ({},))]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_what_was_not_measured_is_not_compared_and_costs_nothing_else(tmp_path: Path) -> None:
    source, catalog = MlEnergy(), Catalog.builtin()
    rows = source.read([written(tmp_path, {"avg_power_watts": ""}, {"p90_itl_ms": "", "avg_batch_size": ""})], catalog)
    compared = Comparison.of(rows, source.simulate(rows, catalog, 0, lambda done: None), source.quantities)
    assert np.isnan(compared.error["power"]).tolist() == [True, False]
    assert np.isnan(compared.error["batch"]).tolist() == [False, True]
    assert np.isfinite(compared.error["itl"]).all()
    assert source.served(rows, catalog) == [None, None], "a fit takes whole rows alone"


def test_a_row_is_read(tmp_path: Path) -> None:
    first, second = MlEnergy().read(
        [written(tmp_path, {}, {"gpu_model": "B200", "max_num_seqs": "32"})], Catalog.builtin()
    )
    assert first.place.endswith("runs.csv:2")
    assert first.configuration == "Qwen3-8B|lm-arena-chat|bfloat16|H100|1|1|1|1"
    assert first.measured["itl"] == 8.9 and first.measured["energy_per_token"] == 0.25
    assert set(first.measured) == set(MlEnergy.quantities)
    assert first.groups["gpu"] == "H100-80GB" and second.groups["gpu"] == "B200"
    assert first.given["max_num_seqs"] == 16


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"max_num_seqs": "8.5"}, "max_num_seqs is 8.5"),
        ({"avg_power_watts": "nan"}, "avg_power_watts is 'nan'"),
        ({"output_throughput": "-1"}, "output_throughput is -1"),
        ({"task": ""}, "task is empty"),
        ({"num_gpus": "2", "tp": "4"}, "do not hold tp 4"),
    ],
)
def test_bad_rows_are_refused(tmp_path: Path, change: dict[str, str], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        MlEnergy().read([written(tmp_path, change)], Catalog.builtin())


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_text(path.read_text().replace("avg_output_len", "length"))
    with pytest.raises(InputError, match="avg_output_len"):
        MlEnergy().read([path], Catalog.builtin())


def test_an_unknown_task_is_taken_for_a_chat(tmp_path: Path) -> None:
    source = MlEnergy()
    rows = source.read([written(tmp_path, {"task": "haiku"}, {})], Catalog.builtin())
    haiku, chat = source.simulate(rows, Catalog.builtin(), 0, lambda done: None)
    assert haiku["itl"] == pytest.approx(chat["itl"], rel=0.03)
    assert rows[0].groups["task"] == "haiku"
    # Outputs may be longer than those of any chat.
    long = source.read([written(tmp_path, {"task": "haiku", "avg_output_len": "6000"})], Catalog.builtin())
    assert source.simulate(long, Catalog.builtin(), 0, lambda done: None)[0]["itl"] > haiku["itl"]


def test_an_unknown_model_has_usual_dimensions(tmp_path: Path) -> None:
    source = MlEnergy()
    new = {"model": "someone/New-8B", "params_b": "8.2", "activated_params_b": "8.2"}
    rows = source.read([written(tmp_path, new, new | {"weight_precision": "fp8"}, {})], Catalog.builtin())
    bf16, fp8, known = source.simulate(rows, Catalog.builtin(), 0, lambda done: None)
    assert bf16["itl"] == pytest.approx(known["itl"], rel=0.15)
    assert fp8["itl"] < 0.95 * bf16["itl"]
    assert [row.groups["calibrated"] for row in rows] == ["no", "no", "yes"]


def test_an_unknown_precision_leaves_out_its_row_alone(tmp_path: Path) -> None:
    source = MlEnergy()
    rows = source.read([written(tmp_path, {"weight_precision": "int3"}, {})], Catalog.builtin())
    strange, known = source.simulate(rows, Catalog.builtin(), 0, lambda done: None)
    assert isinstance(strange, Skipped) and strange.reason == "weight_precision 'int3' is unknown"
    assert not isinstance(known, Skipped) and known["itl"] > 0 and rows[0].groups["calibrated"] == "no"


def test_calibrated_are_those_that_have_a_scale(tmp_path: Path) -> None:
    changes = ({}, {"num_gpus": "2", "tp": "2"}, {"gpu_model": "B200"})
    rows = MlEnergy().read([written(tmp_path, *changes)], Catalog.builtin())
    assert [row.groups["calibrated"] for row in rows] == ["yes", "no", "no"]


def test_names_and_factors_are_those_of_the_catalogue_that_is_given(tmp_path: Path) -> None:
    more = tmp_path / "more.toml"
    more.write_text(
        '[gpus.H100]\nlike = "H200"\n\n[models.New-8B]\nlike = "Qwen3-8B"\naliases = ["New-8B-chat"]\n\n'
        '[[scales]]\nmodel = "New-8B"\ngpu = "H100"\ntp = 1\nstep_s = 0.5\nsource = "test"\n'
    )
    path, catalog = written(tmp_path, {"model": "someone/New-8B-chat"}), Catalog.builtin().with_file(more)
    (plain,), (row,) = MlEnergy().read([path], Catalog.builtin()), MlEnergy().read([path], catalog)
    assert (plain.groups["gpu"], plain.groups["model"]) == ("H100-80GB", "someone/New-8B-chat")
    assert plain.groups["calibrated"] == "no"
    assert (row.groups["gpu"], row.groups["model"], row.groups["calibrated"]) == ("H100", "New-8B", "yes")
    (found,) = MlEnergy().simulate([row], catalog, 0, lambda done: None)
    assert found["itl"] > 500


def test_runs_are_kept_in_memory_and_in_the_folder_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = MlEnergy().read([written(tmp_path)], Catalog.builtin())
    folder = tmp_path / "runs"
    monkeypatch.setenv(FOLDER, str(folder))
    source = MlEnergy()
    first = source.simulate(rows, Catalog.builtin(), 0, lambda done: None)
    (kept,) = folder.glob("*.npz")
    assert MlEnergy().simulate(rows, Catalog.builtin(), 0, lambda done: None) == first
    kept.write_bytes(b"spoilt")
    # What this source has in memory it does not read again; a new one does, and says what is wrong.
    assert source.simulate(rows, Catalog.builtin(), 0, lambda done: None) == first
    with pytest.raises(InputError, match="holds no compositions"):
        MlEnergy().simulate(rows, Catalog.builtin(), 0, lambda done: None)


def test_runs_are_simulated_and_never_look_at_what_was_measured(tmp_path: Path) -> None:
    source, catalog, told = MlEnergy(), Catalog.builtin(), []
    plain = source.read([written(tmp_path)], Catalog.builtin())
    other = source.read(
        [written(tmp_path, {name: "1" for name in ("median_itl_ms", "avg_power_watts", "avg_batch_size")})],
        Catalog.builtin(),
    )
    (one,) = source.simulate(plain, catalog, 0, told.append)
    (two,) = source.simulate(other, catalog, 0, told.append)
    assert one == two and told == [1, 1]
    assert set(one) == set(source.quantities)
    assert one["energy_per_token"] == pytest.approx(one["power"] / one["throughput"])
    assert one["itl"] < one["itl_p90"] < one["itl_p99"]
    assert 15 < one["batch"] <= 16
    # Sixteen requests get a token in every iteration, of which few are longer than the median.
    assert one["throughput"] == pytest.approx(16e3 / one["itl"], rel=0.1)


def test_what_cannot_be_simulated_has_no_figures(tmp_path: Path) -> None:
    source, catalog = MlEnergy(), Catalog.builtin()
    changes = ({"dp": "2", "num_gpus": "2"}, {"model": "Qwen3-32B", "gpu_model": "A100-40GB"}, {"gpu_model": "L40S"})
    rows = source.read([written(tmp_path, *changes)], Catalog.builtin())
    several, heavy, unknown = source.simulate(rows, catalog, 0, lambda done: None)
    assert isinstance(several, Skipped) and several.reason.startswith("dp is above 1")
    assert isinstance(heavy, Skipped) and heavy.reason.startswith("Qwen3-32B on A100-40GB with tp=1: needs")
    assert heavy.remedy.startswith("Use tp=")
    assert unknown == Skipped("the catalogue has no GPU L40S", "Give its entry with --catalog FILE")


def test_a_larger_batch_is_slower_and_serves_more(tmp_path: Path) -> None:
    source = MlEnergy()
    rows = source.read([written(tmp_path, *({"max_num_seqs": str(n)} for n in (8, 32, 128)))], Catalog.builtin())
    found = source.simulate(rows, Catalog.builtin(), 0, lambda done: None)
    assert found[0]["itl"] < found[1]["itl"] < found[2]["itl"]
    assert found[0]["throughput"] < found[1]["throughput"] < found[2]["throughput"]
    assert found[0]["energy_per_token"] > found[1]["energy_per_token"] > found[2]["energy_per_token"]


def test_requests_are_repeated_as_the_mean_output_tells() -> None:
    chat, gpqa = TASKS["lm-arena-chat"], TASKS["gpqa"]
    assert requests_sent(chat, 864.9384765625, 8) == 1024
    assert requests_sent(chat, 864.9384, 8) == 1024
    assert requests_sent(chat, float(Fraction(1_000_001, 3 * 1024)), 512) == 3 * 1024
    assert requests_sent(chat, 864.9384765625, 1024) == 2048
    assert requests_sent(gpqa, 9000.0, 128) == 198
    assert requests_sent(gpqa, 9000.0, 256) == 396
    # Just two for every place would leave no steady part.
    assert requests_sent(chat, 864.9384765625, 512) == 2048
    # A rounded mean tells nothing.
    assert requests_sent(gpqa, 9000.1234567, 384) == 594


@pytest.mark.parametrize(("name", "mean"), [("lm-arena-chat", 640.0), ("gpqa", 11_800.0), ("gpqa", 1700.0)])
def test_lengths_have_the_mean_and_keep_to_the_limits(name: str, mean: float) -> None:
    task = TASKS[name]
    prompt, output = lengths(task, mean, 2 * task.requests, np.random.default_rng(0))
    assert np.array_equal(prompt[task.requests :], prompt[: task.requests])
    assert prompt.mean() == pytest.approx(task.prompt_mean, rel=0.01)
    assert output.mean() == pytest.approx(mean, rel=0.01)
    assert output.max() <= task.output_most and (prompt + output).max() <= MAX_MODEL_LEN
    assert output.min() >= 1
    assert abs(np.corrcoef(prompt, output)[0, 1]) < 0.15


def test_an_impossible_mean_is_refused() -> None:
    with pytest.raises(InputError, match="4096 is the most"):
        lengths(TASKS["lm-arena-chat"], 5000.0, 100, np.random.default_rng(0))


def test_longer_prompts_cost_more(tmp_path: Path) -> None:
    rows = MlEnergy().read([written(tmp_path, {"max_num_seqs": "64"})], Catalog.builtin())
    with pytest.raises(InputError, match="none of the rows"):
        sensitivity([], Catalog.builtin(), 0, lambda done: None)
    table = sensitivity(rows, Catalog.builtin(), 0, lambda done: None)
    assert set(table) == set(VARIANTS)
    assert table["prompts halved"]["throughput"][0] > 0 > table["prompts doubled"]["throughput"][0]
    assert table["prompts doubled"]["itl"][0] > 0


def test_requests_sent_once_end_before_contexts_have_grown(tmp_path: Path) -> None:
    once = MlEnergy().read([written(tmp_path, {"max_num_seqs": "64"})], Catalog.builtin())
    with pytest.raises(InputError, match="no row sends requests again"):
        sent_once(once, Catalog.builtin(), 0)
    # 198 requests do not keep 192 places full for long, so that they are taken to be sent several times.
    twice = MlEnergy().read([written(tmp_path, {"max_num_seqs": "192", "task": "gpqa"})], Catalog.builtin())
    change = sent_once([*once, *twice], Catalog.builtin(), 0)
    assert set(change) == set(MlEnergy.quantities)
    assert change["itl"][0] < -0.05 and change["throughput"][0] > 0.05
    assert change["itl"] == (change["itl"][0], -change["itl"][0])


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="the ML.ENERGY runs are not under LLMCLUSTER_DATA")
def test_the_published_file_is_read_whole() -> None:
    source = MlEnergy()
    rows = source.read([DATA / "vllm_steady_state.csv"], Catalog.builtin())
    assert len(rows) == 344
    assert {row.groups["gpu"] for row in rows} == {"H100-80GB", "B200"}
    # What is taken for the number of requests makes every mean output length a whole number of tokens.
    for row in rows:
        task, mean = TASKS[row.given["task"]], row.given["avg_output_len"]
        total = requests_sent(task, mean, row.given["max_num_seqs"]) * mean
        assert total == pytest.approx(round(total), abs=1e-4)
