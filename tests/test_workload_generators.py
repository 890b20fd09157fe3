"""Generators and the workload specification: rates, shapes, determinism, and what is refused."""

import hashlib
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from llmcluster.simulator.errors import InputError
from llmcluster.simulator.workload.arrivals import ARRIVALS, OpenLoop
from llmcluster.simulator.workload.formats import write_workload
from llmcluster.simulator.workload.gaussian import gaussian_series
from llmcluster.simulator.workload.spec import WorkloadSpec, generate
from llmcluster.simulator.workload.table import COLUMNS, RequestTable

PS = 10**12
FIXED = {"kind": "fixed", "prompt_tokens": 100, "output_tokens": 10}
ARRIVAL_KINDS: list[dict[str, Any]] = [
    {"kind": "poisson", "rate_per_s": 5.0},
    {"kind": "gamma", "rate_per_s": 5.0, "cv": 3.0},
    {"kind": "gamma", "rate_per_s": 5.0, "cv": 0.2},
    {"kind": "markov", "rates_per_s": [0.0, 10.0], "mean_dwell_s": [3.0, 3.0]},
    {"kind": "azure-2023-conv", "rate_per_s": 5.0},
    {"kind": "azure-2023-code", "rate_per_s": 5.0},
    {"kind": "closed-loop", "clients": 7, "think_s": 1.0},
]
OPEN_KINDS = ARRIVAL_KINDS[:-1]


def draw(seed: int = 0, duration_s: float = 1000.0, **spec: Any) -> RequestTable:
    spec = {"requests": FIXED} | spec
    return generate(WorkloadSpec.model_validate(spec), duration_s, np.random.default_rng(seed))


def digest(table: RequestTable) -> str:
    return hashlib.sha256(b"".join(getattr(table, name).tobytes() for name in COLUMNS)).hexdigest()


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(ARRIVAL_KINDS), st.integers(0, 2**32), st.floats(0.01, 500.0), st.sampled_from(["fit", "lognormal"])
)
def test_sorted_within_the_run_and_repeatable(arrivals: Any, seed: int, duration_s: float, lengths: str) -> None:
    requests = {
        "fit": {"kind": "azure-2023-code"},
        "lognormal": {
            "kind": "lognormal",
            "prompt_median": 9,
            "prompt_sigma": 2,
            "output_median": 5,
            "output_sigma": 1,
        },
    }[lengths]
    table = draw(seed, duration_s, arrivals=arrivals, requests=requests)
    assert (np.diff(table.arrival_ps) >= 0).all()
    assert (table.arrival_ps >= 0).all() and (table.arrival_ps <= duration_s * PS).all()
    assert table.prompt_tokens.min(initial=1) >= 1 and table.output_tokens.min(initial=1) >= 1
    assert digest(table) == digest(draw(seed, duration_s, arrivals=arrivals, requests=requests))


@pytest.mark.parametrize("arrivals", OPEN_KINDS, ids=lambda a: a["kind"])
def test_the_mean_rate_is_the_one_asked_for(arrivals: dict[str, Any]) -> None:
    counts = [len(draw(seed, 4000.0, arrivals=arrivals)) for seed in range(30)]
    assert np.mean(counts) == pytest.approx(20_000, abs=4 * np.std(counts) / np.sqrt(30))
    assert np.mean(counts) == pytest.approx(20_000, rel=0.06)


@pytest.mark.parametrize("arrivals", OPEN_KINDS, ids=lambda a: a["kind"])
def test_a_run_starts_in_the_steady_state(arrivals: dict[str, Any]) -> None:
    first = [np.count_nonzero(draw(seed, 4.0, arrivals=arrivals).arrival_ps < PS) for seed in range(1500)]
    assert np.mean(first) == pytest.approx(5.0, abs=5 * np.std(first) / np.sqrt(1500))


@pytest.mark.parametrize("cv", [0.3, 1.0, 3.0])
def test_gamma_has_the_burstiness_asked_for(cv: float) -> None:
    gaps = np.diff(draw(1, 20_000.0, arrivals={"kind": "gamma", "rate_per_s": 5.0, "cv": cv}).arrival_ps)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05)


def test_poisson_counts_are_not_dispersed_and_markov_counts_are() -> None:
    def ratio(arrivals: dict[str, Any]) -> float:
        counts = np.bincount(draw(3, 20_000.0, arrivals=arrivals).arrival_ps // PS)
        return float(counts.var() / counts.mean())

    assert ratio(OPEN_KINDS[0]) == pytest.approx(1.0, abs=0.05)
    # Rate 0 or 10 with switching rate 2/3 per second: 1 + 2 var/(mean s) (1 - (1 - exp(-s))/s), s = 2/3.
    s = 2 / 3
    assert ratio(OPEN_KINDS[3]) == pytest.approx(1 + 2 * 25 / (5 * s) * (1 - (1 - np.exp(-s)) / s), rel=0.08)


def test_markov_stays_as_long_as_told() -> None:
    slow = {"kind": "markov", "rates_per_s": [1.0, 9.0], "mean_dwell_s": [30.0, 10.0]}
    rates = [len(draw(seed, 2000.0, arrivals=slow)) / 2000 for seed in range(40)]
    assert np.mean(rates) == pytest.approx(3.0, rel=0.06)


@pytest.mark.parametrize("arrivals", OPEN_KINDS[:3], ids=lambda a: a["kind"])
def test_diurnal_modulation_multiplies_the_rate(arrivals: dict[str, Any]) -> None:
    cycle = {"kind": "diurnal", "period_s": 1000.0, "low": 0.5, "high": 3.5}
    table = draw(2, 40_000.0, arrivals=arrivals, modulation=cycle)
    turns = table.arrival_ps / PS % 1000 / 1000
    counts = np.histogram(turns, np.linspace(0, 1, 11))[0] / (40_000 / 10) / 5
    middle = np.linspace(0.05, 0.95, 10)
    expected = 0.5 + 3.0 * (1 - np.cos(2 * np.pi * middle) * np.sin(np.pi / 10) / (np.pi / 10)) / 2
    assert counts == pytest.approx(expected, rel=0.12)


def test_phases_shift_the_cycle_and_random_ones_differ() -> None:
    def early(seed: int, phase: Any) -> int:
        cycle = {"kind": "diurnal", "period_s": 1000.0, "low": 0.1, "high": 1.0, "phase": phase}
        return len(draw(seed, 100.0, arrivals={"kind": "poisson", "rate_per_s": 50.0}, modulation=cycle))

    assert early(0, 0.5) > 3 * early(0, 0.0)
    assert np.std([early(seed, "random") for seed in range(20)]) > 500


def test_piecewise_modulation_follows_its_points() -> None:
    ramp = {"kind": "piecewise", "period_s": 100.0, "times_s": [0.0, 50.0], "factors": [0.0, 2.0]}
    table = draw(0, 1000.0, arrivals={"kind": "poisson", "rate_per_s": 200.0}, modulation=ramp)
    folded = table.arrival_ps / PS % 100
    counts = np.histogram(folded, [0, 25, 50, 75, 100])[0] / 50_000
    assert counts == pytest.approx([0.5, 1.5, 1.5, 0.5], rel=0.03)


def test_closed_loop_has_one_session_a_client_and_bounds_that_hold() -> None:
    table = draw(0, 600.0, arrivals={"kind": "closed-loop", "clients": 20, "think_s": 2.0})
    assert sorted(np.unique(table.session)) == list(range(20))
    for client in range(20):
        rows = np.flatnonzero(table.session == client)
        assert table.think_ps[rows[0]] == -1
        think = table.think_ps[rows[1:]]
        assert (think >= 0).all()
        assert np.diff(table.arrival_ps[rows]).tolist() == think.tolist()
    assert table.think_ps[table.think_ps >= 0].mean() / PS == pytest.approx(2.0, rel=0.05)


def test_closed_loop_never_runs_dry() -> None:
    table = draw(0, 600.0, arrivals={"kind": "closed-loop", "clients": 50, "think_s": 0.0})
    assert np.bincount(table.session).min() * FIXED["output_tokens"] * 0.002 > 600.0


def test_lengths_do_not_depend_on_the_arrivals() -> None:
    lengths = {"kind": "lognormal", "prompt_median": 500, "prompt_sigma": 1, "output_median": 9, "output_sigma": 1}
    a, b = (draw(5, 50.0, requests=lengths, arrivals=ARRIVAL_KINDS[i]).prompt_tokens for i in (0, 1))
    n = min(len(a), len(b))
    assert n > 100
    assert a[:n].tolist() == b[:n].tolist()


def test_lognormal_medians_and_correlation() -> None:
    lengths = {"kind": "lognormal", "prompt_median": 500, "prompt_sigma": 0.8, "output_median": 200}
    table = draw(0, 4000.0, requests=lengths | {"output_sigma": 0.5, "correlation": -0.6}, arrivals=OPEN_KINDS[0])
    assert np.median(table.prompt_tokens) == pytest.approx(500, rel=0.03)
    assert np.median(table.output_tokens) == pytest.approx(200, rel=0.03)
    logs = np.log([table.prompt_tokens, table.output_tokens])
    assert np.corrcoef(logs)[0, 1] == pytest.approx(-0.6, abs=0.03)


def test_gaussian_series_has_the_memory_asked_for() -> None:
    z = gaussian_series(400_000, [(10.0, 0.5), (100.0, 0.2)], np.random.default_rng(0), white=0.3)
    assert z.var() == pytest.approx(1.0, abs=0.03)
    for lag in (1, 10, 50):
        expected = 0.5 * np.exp(-lag / 10) + 0.2 * np.exp(-lag / 100)
        assert (z[:-lag] * z[lag:]).mean() == pytest.approx(expected, abs=0.03)


def test_a_million_requests_take_about_a_second() -> None:
    draw(0, 1.0, requests={"kind": "azure-2023-conv"}, arrivals={"kind": "azure-2023-conv"})  # loads the figures
    began = time.perf_counter()
    table = draw(
        0,
        1000.0,
        requests={"kind": "azure-2023-conv"},
        arrivals={"kind": "azure-2023-conv", "rate_per_s": 1000.0},
        modulation={"kind": "diurnal", "low": 1.0, "high": 1.0},
    )
    assert len(table) > 900_000
    assert time.perf_counter() - began < 5.0  # a second on an idle core; tests share theirs


def test_streams_are_labelled_merged_and_independent() -> None:
    chat = {"requests": FIXED, "arrivals": OPEN_KINDS[0], "model": "m", "slo_class": "fast", "timeout_s": 2.5}
    batch = {"requests": FIXED, "arrivals": ARRIVAL_KINDS[-1], "priority": 3}
    names = {"models": ("other", "m"), "slo_classes": ("slow", "fast")}
    both = generate(WorkloadSpec(streams=(chat, batch)), 100.0, np.random.default_rng(0), **names)
    alone = generate(WorkloadSpec(streams=(chat,)), 100.0, np.random.default_rng(0), **names)
    of_chat = both.priority == 0
    assert both.arrival_ps[of_chat].tolist() == alone.arrival_ps.tolist()
    assert set(both.model[of_chat]) == {1} and set(both.model[~of_chat]) == {-1}
    assert set(both.slo_class[of_chat]) == {1} and set(both.timeout_ps[of_chat]) == {2_500_000_000_000}
    assert set(both.session[of_chat]) == {-1} and (both.session[~of_chat] >= 0).all()


def test_a_file_plays_scaled_cut_and_repeated(tmp_path: Path) -> None:
    table = RequestTable.from_columns(np.arange(10) * 10 * PS, np.arange(1, 11), np.ones(10))
    write_workload(table, tmp_path / "t.csv", "vidur")

    def play(**spec: Any) -> list[int]:
        played = generate(WorkloadSpec(file="t.csv", **spec), 30.0, np.random.default_rng(0), folder=tmp_path)
        assert played.arrival_ps[0] < 10 * PS
        return played.prompt_tokens.tolist()

    assert play() == [1, 2, 3]
    assert play(rate_factor=2.0) == [1, 2, 3, 4, 5, 6]
    assert play(start_s=45.0) == [6, 7, 8]
    assert play(start_s=85.0) == [10]
    assert play(start_s=85.0, repeat=True) == [10, 1, 2]
    assert len(play(rate_factor=10.0, repeat=True)) == 30
    assert len(play(start_s="random")) == 3
    with pytest.raises(InputError, match="past the trace's end"):
        play(start_s=91.0)


def test_a_trace_names_models_that_the_scenario_may_have(tmp_path: Path) -> None:
    rows = "5,ChatGPT,1,1,2,API log\n6,GPT-4,1,1,2,API log\n"
    (tmp_path / "b.csv").write_text("Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n" + rows)
    spec, rng = WorkloadSpec(file="b.csv"), np.random.default_rng(0)
    assert generate(spec, 9.0, rng, models=("x", "GPT-4"), folder=tmp_path).model.tolist() == [-1, 1]


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    for tokens in (7, 8):
        path.write_text(f"arrived_at,num_prefill_tokens,num_decode_tokens\n0,{tokens},{tokens}\n")
        os.utime(path, ns=(tokens, tokens))
        assert generate(WorkloadSpec(file=str(path)), 1.0, np.random.default_rng(0)).prompt_tokens[0] == tokens


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "give either file, or both requests and arrivals"),
        ({"requests": FIXED}, "give either file, or both requests and arrivals"),
        ({"file": "x", "requests": FIXED}, "file excludes requests"),
        ({"requests": FIXED, "arrivals": OPEN_KINDS[0], "repeat": True}, "repeat only go with file"),
        ({"requests": FIXED, "arrivals": {"kind": "sometimes"}}, "no arrivals of kind 'sometimes'; give one of azure"),
        ({"requests": FIXED, "arrivals": {"kind": "poisson", "rate": 1}}, "rate_per_s: Field required; rate: Extra"),
        ({"requests": FIXED, "arrivals": {"kind": "poisson", "rate_per_s": float("inf")}}, "finite number"),
        ({"requests": {"kind": "fixed", "prompt_tokens": 0, "output_tokens": 1}}, "prompt_tokens: Input should be"),
        ({"file": "x", "start_s": -1.0}, "start_s must not be negative"),
        ({"file": "x", "speed": 2}, "Extra inputs are not permitted"),
        ({"file": "x", "streams": [{"file": "y"}]}, "move file into the streams"),
        (
            {"requests": FIXED, "arrivals": {"kind": "markov", "rates_per_s": [1, 2], "mean_dwell_s": [1]}},
            "mean_dwell_s has 1 values for 2 states",
        ),
        (
            {"requests": FIXED, "arrivals": {"kind": "markov", "rates_per_s": [0], "mean_dwell_s": [1]}},
            "one of them must be above 0",
        ),
        ({"modulation": {"kind": "diurnal", "low": 2, "high": 1}}, "low 2.0 is above high 1.0"),
        (
            {"modulation": {"kind": "piecewise", "period_s": 5, "times_s": [0, 5], "factors": [1, 1]}},
            "times_s must ascend within",
        ),
    ],
)
def test_bad_specifications_say_what_to_do(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as told:
        WorkloadSpec.model_validate(spec)
    assert message in str(told.value)


def test_bad_runs_say_what_to_do() -> None:
    spec = WorkloadSpec(requests=FIXED, arrivals=OPEN_KINDS[0], model="m")
    with pytest.raises(InputError, match=r"workload\.model: the scenario has no model 'm'. Give one of a, b"):
        generate(spec, 1.0, np.random.default_rng(0), models=("a", "b"))
    streams = WorkloadSpec(streams=({"requests": FIXED, "arrivals": OPEN_KINDS[0], "slo_class": "z"},))
    with pytest.raises(InputError, match=r"workload\.streams\[0\]\.slo_class: the scenario has no SLO class 'z'"):
        generate(streams, 1.0, np.random.default_rng(0))
    with pytest.raises(InputError, match="duration_s"):
        draw(duration_s=0.0, arrivals=OPEN_KINDS[0])
    with pytest.raises(InputError, match="a closed loop has no rate to modulate"):
        draw(arrivals=ARRIVAL_KINDS[-1], modulation={"kind": "diurnal", "low": 1, "high": 2})


@pytest.mark.parametrize("arrivals", ARRIVAL_KINDS, ids=lambda a: a["kind"])
def test_specifications_survive_a_dump(arrivals: dict[str, Any]) -> None:
    spec = WorkloadSpec(requests={"kind": "azure-2023-code"}, arrivals=arrivals)
    assert WorkloadSpec.model_validate(spec.model_dump(mode="json")) == spec


def test_users_add_their_own_kind() -> None:
    @ARRIVALS.register("every-second")
    class EverySecond(OpenLoop):
        kind: str = "every-second"

        def times_s(self, duration_s: float, rng: np.random.Generator) -> np.ndarray:
            return np.arange(0.0, duration_s)

    try:
        assert len(draw(arrivals={"kind": "every-second"}, duration_s=10.0)) == 10
    finally:
        del ARRIVALS.classes["every-second"]
