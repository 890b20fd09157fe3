"""Splitwise's table: reading, the engine without CUDA graphs, the two scalars, and how far off the whole is."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcluster.experiments.fidelity import scalars
from llmcluster.experiments.fidelity.batches import decodes, governed, prompts
from llmcluster.experiments.fidelity.eager import Eager, Figures, Waits
from llmcluster.experiments.fidelity.figures import with_file
from llmcluster.experiments.fidelity.skipped import Skipped
from llmcluster.experiments.fidelity.source import Row
from llmcluster.experiments.fidelity.sources.splitwise import Splitwise
from llmcluster.experiments.fidelity.validate import as_json, validate
from llmcluster.simulator.catalog import Catalog, Scale
from llmcluster.simulator.errors import InputError
from llmcluster.simulator.performance import iteration_cost
from llmcluster.simulator.power import power_coefficients

DATA = Path(os.environ.get("LLMCLUSTER_DATA", Path(__file__).parents[1] / "../shared/data")) / "splitwise"
HEADER = (
    "model,hardware,prompt_size,batch_size,token_size,peak_power,average_power,prompt_time,token_time,e2e_time,"
    "tensor_parallel"
)
LINE = "llama2-70b,a100-80gb,512,1,128,1.0,0.73,196.2,54.9,7169.0,2"
TRUE = Eager(launch_s=0.031, first_s=0.014, sequence_s=3e-4, slow_link=3.0, source="made up")
POINTS = [(prompt, 1, 128) for prompt in (128, 256, 512, 1024, 2048, 4096, 8192)]
POINTS += [(512, batch, 128) for batch in (2, 4, 8, 16, 32)]

Write = Callable[..., Path]


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return Catalog.builtin()


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes lines under a header."""

    def made(*lines: str, header: str = HEADER) -> Path:
        path = tmp_path / "perf_model.csv"
        path.write_text("\n".join((header, *lines)) + "\n")
        return path

    return made


def nobody(done: int) -> None:
    """Is told how many rows are done."""


def made_up(figures: Figures, catalog: Catalog, slots: Sequence[tuple[str, str, int]]) -> list[Row]:
    """Rows that an engine with these figures would have given."""
    rows = [
        Row(
            place=f"made-up:{model}:{gpu}:{tp}:{prompt}:{batch}",
            configuration=f"{model}/{gpu}/tp{tp}/prompt{prompt}",
            measured={"prompt_time": 1.0, "token_time": 1.0},
            groups={"model": model, "gpu": gpu, "tp": str(tp)},
            given={"model": model, "gpu": gpu, "tp": tp, "batch": batch, "prompt": prompt, "output": output},
        )
        for model, gpu, tp in slots
        for prompt, batch, output in POINTS
    ]
    simulated = Splitwise(figures).simulate(rows, catalog, 0, nobody)
    return [replace(row, measured=dict(one)) for row, one in zip(rows, simulated, strict=True)]


def test_a_row_is_read_with_the_names_of_the_catalogue(write: Write, catalog: Catalog) -> None:
    path = write(LINE, LINE.replace(",0.73,", ",0,"))
    first, second = Splitwise().read([path], Catalog.builtin())
    assert first.place == f"{path}:2" and second.place == f"{path}:3"
    assert first.measured == {"prompt_time": 196.2, "token_time": 54.9, "power": 0.73}
    assert set(second.measured) == {"prompt_time", "token_time"}  # 0 is not recorded
    assert first.groups == {"gpu": "A100-80GB", "model": "Llama-2-70B", "tp": "2"}
    assert catalog.model(first.groups["model"]).layers == 80
    assert (first.given["batch"], first.given["prompt"], first.given["output"], first.given["tp"]) == (1, 512, 128, 2)


def test_batches_and_outputs_of_a_prompt_length_stay_together(write: Write) -> None:
    other_batch, other_prompt = LINE.replace(",512,1,", ",512,64,"), LINE.replace(",512,1,", ",1024,1,")
    rows = Splitwise().read(
        [write(LINE, LINE.replace(",128,", ",4096,"), other_batch, other_prompt)], Catalog.builtin()
    )
    assert [row.configuration == rows[0].configuration for row in rows] == [True, True, True, False]


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (LINE.replace("196.2", "fast"), "2: prompt_time"),
        (LINE.replace("54.9", "0"), "2: token_time"),
        (LINE.replace("54.9", "nan"), "2: token_time"),
        (LINE.replace(",512,1,", ",512,0,"), "2: batch_size"),
        (LINE.replace(",512,1,", ",512.5,1,"), "2: prompt_size"),
        (LINE.replace("0.73", "-1"), "2: average_power"),
        ("llama2-70b,a100-80gb,512", "2: 3 fields where the header has 11"),
    ],
)
def test_a_value_that_does_not_hold_is_named(write: Write, line: str, named: str) -> None:
    with pytest.raises(InputError, match=named):
        Splitwise().read([write(line)], Catalog.builtin())


def test_a_file_that_is_none_is_named(write: Write, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="token_time"):
        Splitwise().read([write(LINE, header=HEADER.replace("token_time", "tpot"))], Catalog.builtin())
    with pytest.raises(InputError, match=r"perf_model.csv:3: 11 fields where the header has 12"):
        Splitwise().read([write(f"{LINE},x", LINE, header=f"{HEADER},note")], Catalog.builtin())
    with pytest.raises(InputError, match="no row"):
        Splitwise().read([write()], Catalog.builtin())
    with pytest.raises(InputError, match="no such file"):
        Splitwise().read([tmp_path / "none.csv"], Catalog.builtin())


def test_an_unknown_model_or_gpu_is_left_out_and_the_others_are_not(write: Write, catalog: Catalog) -> None:
    lines = (LINE.replace("llama2-70b", "gpt-9"), LINE.replace("a100-80gb", "x999"), LINE)
    strange, other, known = Splitwise().simulate(
        Splitwise().read([write(*lines)], Catalog.builtin()), catalog, 0, nobody
    )
    assert strange == Skipped("the catalogue has no model gpt-9", "Give its entry with --catalog FILE")
    assert other == replace(strange, reason="the catalogue has no GPU x999") and known["prompt_time"] > 0


def test_synthetic_rows_and_batches_that_do_not_fit_are_left_out_and_named(write: Write, catalog: Catalog) -> None:
    capped, crowded = LINE.replace("a100-80gb", "h100-80gb-pcap"), LINE.replace(",512,1,", ",512,64,")
    rows = Splitwise().read([write(LINE, capped, crowded, crowded.replace("9.0,2", "9.0,4"))], Catalog.builtin())
    simulated = Splitwise().simulate(rows, catalog, 0, nobody)
    assert [one for one in simulated if isinstance(one, Skipped)] == simulated[1:3]
    assert "synthetic" in simulated[1].reason and "does not fit the KV cache" in simulated[2].reason
    (weights,) = Splitwise().simulate([replace(rows[0], given={**rows[0].given, "tp": 1})], catalog, 0, nobody)
    assert "Llama-2-70B on A100-80GB with tp=1" in weights.reason and "tp=" in weights.remedy


def test_a_repeat_far_from_the_others_is_named(write: Write, catalog: Catalog) -> None:
    rows = Splitwise().read([write(LINE, LINE, LINE.replace("196.2", "220.0"))], Catalog.builtin())
    assert Splitwise().outliers(rows) == {"prompt_time is over 10% from the median of its repeats": [rows[2].place]}
    assert not Splitwise().outliers(rows[:2])
    told = as_json(validate(Splitwise(), rows, catalog, 0, nobody))
    assert told["rows"] == 3 and told["outliers"] == Splitwise().outliers(rows) and told["skipped"] == []


def test_what_was_measured_does_not_matter(write: Write, catalog: Catalog) -> None:
    once, twice = Splitwise().read([write(LINE, LINE.replace("196.2,54.9", "1,1"))], Catalog.builtin())
    found = Splitwise().simulate([once, twice], catalog, 0, nobody)
    assert found[0] == found[1] and set(found[0]) == {"prompt_time", "token_time", "power"}


@pytest.mark.parametrize("gpu", ["A100-80GB", "H100-80GB"])
def test_iterations_are_those_of_the_engine_at_the_clock_of_the_tdp(catalog: Catalog, gpu: str) -> None:
    model, chip = catalog.model("Llama-2-70B"), catalog.gpu(gpu)
    cost, power = iteration_cost(model, chip, 4, 8192), power_coefficients(model, chip, 4)
    cost = cost._replace(gap_ps=0, sample_ps=0)
    batch, prompt = np.array([1, 16, 1]), np.array([512, 512, 8192])
    ran = governed(cost, power, prompts(batch, prompt))
    for i, tokens in enumerate((batch * prompt).tolist()):
        pairs = batch[i] * prompt[i] * (prompt[i] + 1) / 2
        other_s = (cost.step_ps + cost.sequence_ps * batch[i] + cost.link_ps[tokens]) / 1e12
        ratio = (cost.compute_ps[tokens] + cost.attention_ps * pairs) / 1e12 / (ran.times.length[i] - other_s)
        assert np.isclose(power.clock_ratio, ratio).any()  # compute-bound, at a clock of the ladder
        assert ran.power_w[i] <= power.cap_max_w
    uncapped = governed(cost, power._replace(cap_max_w=1e9), prompts(batch, prompt))
    assert (uncapped.times.length <= ran.times.length).all() and (uncapped.power_w >= ran.power_w).all()
    token = governed(cost, power, decodes(np.array([1, 32]), np.array([576, 576]))).times
    read_s = (cost.memory_ps[[1, 32]] + cost.kv_read_ps * np.array([576, 32 * 576])) / 1e12
    assert np.allclose(token.memory + token.cache, read_s) and np.allclose(token.link, cost.link_ps[[1, 32]] / 1e12)
    assert np.allclose(token.length, token.host + token.link + read_s)


def test_launches_hide_behind_work_or_the_work_behind_them() -> None:
    waits = Waits(
        host_s=np.array([0.001, 0.001, 0.001]),
        gpu_s=np.array([0.010, 0.100, 0.100]),
        large_s=np.array([0.0, 0.0, 0.02]),
        sequences=np.array([1, 10, 1]),
        prompt=np.array([False, False, True]),
    )
    assert np.allclose(waits.length_s(TRUE.figures), [0.0323, 0.104, 0.1753])
    assert np.allclose(waits.length_s(Eager(source="none").figures), waits.host_s + waits.gpu_s)


def test_waiting_for_launches_costs_power(catalog: Catalog) -> None:
    slots = [("Llama-2-70B", "A100-80GB", 8)]
    slow = made_up(Figures(engines={"A100-80GB": TRUE}), catalog, slots)[0].measured
    quick = made_up(Figures(), catalog, slots)[0].measured
    idle = catalog.gpu("A100-80GB").power.idle_w / catalog.gpu("A100-80GB").cap_max_w
    assert idle < slow["power"] < 0.8 * quick["power"] and slow["token_time"] > 2 * quick["token_time"]


def test_a_row_is_what_its_figures_say_by_hand(catalog: Catalog) -> None:
    """4096 prompt tokens on a chip that no limit slows down: launches are hidden in the prompt, not in the decodes."""
    gpu = catalog.gpu("H100-80GB").model_copy(update={"cap_max_w": 5000.0})
    roomy = replace(catalog, gpus={**catalog.gpus, gpu.name: gpu})
    scale = Scale(model="BLOOM-176B", gpu=gpu.name, tp=8, time=1.2, compute=0.7, source="made up")
    figures = Figures(engines={gpu.name: TRUE}, scales=(scale,))
    row = made_up(figures, roomy, [("BLOOM-176B", gpu.name, 8)])[0]
    row = replace(row, given={**row.given, "batch": 4, "prompt": 1024, "output": 201})
    (found,) = Splitwise(figures).simulate([row], roomy, 0, nobody)

    cost = iteration_cost(catalog.model("BLOOM-176B"), gpu, 8, 4096, scale=scale.model_copy(update={"time": 1.0}))
    power = power_coefficients(catalog.model("BLOOM-176B"), gpu, 8)
    host_ps = cost.step_ps + 4 * cost.sequence_ps
    compute_ps = int(cost.compute_ps[4096]) + cost.attention_ps * 4 * (1024 * 1025 // 2)
    slowed_ps = TRUE.slow_link * (cost.link_ps[4096] - cost.link_ps[2048])
    working_ps = cost.link_ps[4096] + slowed_ps + compute_ps
    prompt_ps = host_ps + working_ps + (TRUE.first_s + 4 * TRUE.sequence_s) * 1e12
    cache_ps = cost.kv_read_ps * 4 * (1024 + 100)
    memory_ps = cost.memory_ps[4] + cache_ps
    token_ps = host_ps + (TRUE.launch_s + 4 * TRUE.sequence_s) * 1e12
    assert memory_ps < TRUE.launch_s * 1e12 < working_ps
    assert found["prompt_time"] == pytest.approx(1.2 * prompt_ps / 1e9)
    assert found["token_time"] == pytest.approx(1.2 * token_ps / 1e9)

    busy = power.active_w * working_ps + power.compute_w * compute_ps + power.memory_w * cost.memory_ps[4096]
    decode_compute_ps = cost.compute_ps[4] + cost.attention_ps * 4 * (1024 + 100)
    decode = power.active_w * (cost.link_ps[4] + memory_ps) + power.compute_w * decode_compute_ps
    length_ps = prompt_ps + 200 * token_ps
    decode += power.memory_w * cost.memory_ps[4] + power.cache_w * cache_ps
    energy = power.idle_w * length_ps + busy + 200 * decode
    assert power.link_w == 0
    assert found["power"] == pytest.approx(energy / length_ps / power.cap_max_w)


@given(st.integers(1, 63), st.sampled_from([(1.0, 1.0), (1.3, 0.6)]), st.sampled_from(["A100-80GB", "H100-80GB"]))
def test_more_requests_never_take_less_time(batch: int, factors: tuple[float, float], gpu: str) -> None:
    builtin = Catalog.builtin()
    scale = Scale(model="Llama-2-70B", gpu=gpu, tp=4, time=factors[0], compute=factors[1], source="made up")
    source = Splitwise(Figures(engines={gpu: TRUE}, scales=(scale,)))
    row = made_up(Figures(), builtin, [("Llama-2-70B", gpu, 4)])[0]
    pair = [replace(row, given={**row.given, "batch": n}) for n in (batch, batch + 1)]
    less, more = source.simulate(pair, builtin, 0, nobody)
    assert less["prompt_time"] <= more["prompt_time"] and less["token_time"] <= more["token_time"]


def test_the_fit_finds_what_rows_were_made_with(catalog: Catalog, tmp_path: Path) -> None:
    slots = [("Llama-2-70B", "H100-80GB", 4), ("BLOOM-176B", "H100-80GB", 8), ("Llama-2-70B", "H100-80GB", 2)]
    rows = made_up(Figures(engines={"H100-80GB": TRUE}), catalog, slots)
    fitted = Splitwise(Figures()).fit(rows, catalog, np.random.default_rng(1), nobody)
    engine = fitted.tables["engines"]["H100-80GB"]
    assert engine["launch_s"] == TRUE.launch_s and engine["first_s"] == TRUE.first_s
    assert engine["sequence_s"] == TRUE.sequence_s and engine["slow_link"] == TRUE.slow_link
    assert [(scale["time"], scale["compute"]) for scale in fitted.tables["scales"]] == [(1.0, 1.0)] * 3
    assert max(abs(value) for name in ("prompt_time", "token_time") for value in fitted.residuals[name]) < 1e-9
    low, high = fitted.intervals["engines.H100-80GB.launch_s"]
    assert low <= TRUE.launch_s <= high
    assert "scales.BLOOM-176B.H100-80GB.8.1.False.time" in fitted.intervals


def test_a_row_drawn_twice_counts_twice(catalog: Catalog) -> None:
    rows = made_up(Figures(), catalog, [("Llama-2-70B", "A100-80GB", 4)])
    slower = [replace(row, measured={name: 1.5 * value for name, value in row.measured.items()}) for row in rows]
    for i, row in enumerate(slower):
        slower[i] = replace(row, place=f"other:{i}", given={**row.given, "output": 130})
    even = Splitwise().fit([*rows, *rows, *slower], catalog, np.random.default_rng(1), nobody)
    odd = Splitwise().fit([*rows, *slower, *slower], catalog, np.random.default_rng(1), nobody)
    off = [float(np.median(np.abs(f.residuals["token_time"][: len(rows)]))) for f in (even, odd)]
    assert off[0] < 0.01 < 0.2 < off[1]


def test_a_file_of_figures_is_simulated_as_it_was_fitted(catalog: Catalog, tmp_path: Path) -> None:
    slots = [("Llama-2-70B", "A100-80GB", 4), ("BLOOM-176B", "A100-80GB", 8)]
    scale = Scale(model="BLOOM-176B", gpu="A100-80GB", tp=8, time=1.2, compute=0.7, source="made up")
    figures = Figures(engines={"A100-80GB": TRUE}, scales=(scale,))
    rows = made_up(figures, catalog, slots)
    path = tmp_path / "figures.toml"
    engine = "\n".join(f"{key} = {value!r}" for key, value in TRUE.model_dump(exclude={"source"}).items())
    path.write_text(
        f'[engines."A100-80GB"]\n{engine}\nsource = "made up"\n\n[[scales]]\nmodel = "BLOOM-176B"\n'
        'gpu = "A100-80GB"\ntp = 8\ntime = 1.2\ncompute = 0.7\nsource = "made up"\n'
    )
    simulated = Splitwise().with_figures(path).simulate(rows, catalog, 0, nobody)
    assert [dict(one) for one in simulated] == [dict(row.measured) for row in rows]


def test_a_file_of_gpus_goes_to_the_catalogue(write: Write, catalog: Catalog, tmp_path: Path) -> None:
    more = tmp_path / "more.toml"
    more.write_text('[gpus.X999]\nlike = "A100-80GB"\nmemory_bytes_per_s = 1e12\n')
    source, known = with_file(Splitwise(), catalog, more)
    path = write(LINE.replace("a100-80gb", "x999"), LINE)
    slower, row = source.simulate(rows := source.read([path], known), known, 0, nobody)
    assert rows[0].groups["gpu"] == "X999" and slower["token_time"] > row["token_time"]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('[engines."A100-80GB"]\nlaunch_s = -1\nsource = "x"', "engines.A100-80GB.launch_s"),
        ('[engines."A100-80GB"]\nlunch_s = 1\nsource = "x"', "lunch_s"),
        ('[[scales]]\nmodel = "x"\ngpu = "y"\ntime = 0\nsource = "x"', "scales.0.time"),
        ("engines", "cannot be read as TOML"),
    ],
)
def test_figures_that_do_not_hold_are_named(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "figures.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=named):
        Splitwise().with_figures(path)


def test_scalars_are_found_exactly_and_stay_at_one_where_nothing_tells() -> None:
    compute_share = np.array([0.0, 0.0, 1.0, 1.0])
    simulated = 1.0 + compute_share * (scalars.COMPUTE[:, None] - 1.0)
    true = scalars.COMPUTE[37]
    measured = 1.7 * (1.0 + compute_share * (true - 1.0))
    outlier = measured * np.array([1.0, 1.0, 1.0, 9.0])
    weights = np.array([1.0, 1.0, 1.0, 0.5])
    assert scalars.fit(np.log(measured / simulated), weights) == pytest.approx((1.7, true))
    assert scalars.fit(np.log(outlier / simulated), weights) == pytest.approx((1.7, true))
    untold = np.log(np.full((len(scalars.COMPUTE), 3), 2.0))
    assert scalars.fit(untold, np.ones(3)) == pytest.approx((2.0, 1.0))


def test_intervals_hold_the_truth_and_shrink_with_the_scatter() -> None:
    rng = np.random.default_rng(3)
    names = [f"c{i}" for i in range(12)]
    widths = []
    for scatter in (0.02, 0.2):
        logs = np.tile(np.log(1.5) + rng.normal(0, scatter, 12), (len(scalars.COMPUTE), 1))
        (low, high), _ = scalars.intervals(logs, np.ones(12), names, np.random.default_rng(5))
        assert low <= 1.5 <= high
        widths.append(high - low)
    assert widths[0] < widths[1]


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="splitwise's perf_model.csv is not under LLMCLUSTER_DATA")
def test_the_shipped_figures_meet_the_published_medians(catalog: Catalog) -> None:
    source = Splitwise()
    rows = source.read([DATA / "perf_model.csv"], Catalog.builtin())
    simulated = source.simulate(rows, catalog, 0, nobody)
    for gpu in ("A100-80GB", "H100-80GB"):
        for quantity in ("prompt_time", "token_time"):
            off = [
                abs(one[quantity] / row.measured[quantity] - 1)
                for row, one in zip(rows, simulated, strict=True)
                if not isinstance(one, Skipped) and row.groups["gpu"] == gpu
            ]
            assert len(off) >= 415 and float(np.median(off)) < 0.10
    reasons = Counter(one.reason.partition(":")[0] for one in simulated if isinstance(one, Skipped))
    assert sorted(reasons.values()) == [10, 420] and reasons["synthetic"] == 420
