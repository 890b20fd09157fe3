"""The fitted models against the traces they were fitted to, and that these checks would notice a bad model."""

import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from llmcluster.experiments.fit_workload import dispersions, ks_distance, main
from llmcluster.simulator.errors import InputError
from llmcluster.simulator.units import PS_PER_S
from llmcluster.simulator.workload.fitted import load_fit
from llmcluster.simulator.workload.formats import read_workload
from llmcluster.simulator.workload.spec import WorkloadSpec, generate
from llmcluster.simulator.workload.table import RequestTable

DATA = Path(os.environ.get("LLMCLUSTER_DATA", Path(__file__).parents[1] / "../shared/data")) / "azure_llm_2023"
FILES = {f"azure-2023-{name}": DATA / f"AzureLLMInferenceTrace_{name}.csv" for name in ("conv", "code")}
SEEDS, HOURS, MAX_KS = range(8), 40, 0.03

measured = pytest.mark.skipif(not DATA.is_dir(), reason="the Azure 2023 traces are not under LLMCLUSTER_DATA")
both = pytest.mark.parametrize("name", FILES)


@cache
def trace(name: str) -> RequestTable:
    return read_workload(FILES[name])


def gaps_s(table: RequestTable) -> np.ndarray:
    return np.diff(table.arrival_ps) / PS_PER_S


@pytest.mark.data
@measured
@both
@pytest.mark.parametrize("seed", SEEDS)
def test_distributions(name: str, seed: int) -> None:
    real, rng = trace(name), np.random.default_rng(seed)
    gaps, lengths = load_fit(name)
    prompt, output = lengths.sample(len(real), rng)
    assert stats.ks_2samp(prompt, real.prompt_tokens).statistic <= MAX_KS
    assert stats.ks_2samp(output, real.output_tokens).statistic <= MAX_KS
    assert stats.ks_2samp(gaps.sample(len(real) - 1, rng), gaps_s(real)).statistic <= MAX_KS
    expected = stats.spearmanr(real.prompt_tokens, real.output_tokens).statistic
    assert stats.spearmanr(prompt, output).statistic == pytest.approx(expected, abs=0.05)


@pytest.mark.data
@measured
@both
def test_counts_are_as_dispersed_as_measured(name: str) -> None:
    real = gaps_s(trace(name))
    drawn = [load_fit(name)[0].sample(len(real), np.random.default_rng(1000 + seed)) for seed in range(HOURS)]
    ratios = [dispersions(np.cumsum(gaps)) for gaps in drawn]
    assert np.mean(ratios, axis=0) == pytest.approx(dispersions(np.cumsum(real)), rel=0.15)


@pytest.mark.data
@measured
@both
def test_generated_hours_are_as_dispersed_as_measured(name: str) -> None:
    real = trace(name)
    spec = WorkloadSpec(requests={"kind": name}, arrivals={"kind": name})
    hours = [generate(spec, real.duration_s, np.random.default_rng(seed)) for seed in range(HOURS)]
    ratios = [dispersions(hour.arrival_ps / PS_PER_S) for hour in hours]
    assert np.mean(ratios, axis=0) == pytest.approx(dispersions(real.arrival_ps / PS_PER_S), rel=0.15)
    assert np.mean([len(hour) for hour in hours]) == pytest.approx(len(real), rel=0.05)


@pytest.mark.data
@measured
@both
def test_these_checks_can_fail(name: str) -> None:
    """Poisson arrivals and shuffled gaps miss the dispersion at every scale; a log-normal misses the lengths."""
    real, rng = gaps_s(trace(name)), np.random.default_rng(0)
    target = dispersions(np.cumsum(real))
    poisson = rng.exponential(real.mean(), len(real))
    assert (dispersions(np.cumsum(poisson)) < 0.85 * target).all()
    if name == "azure-2023-code":  # the gaps of the conversation trace are near-exponential: KS 0.02
        assert stats.ks_2samp(poisson, real).statistic > 10 * MAX_KS
    shuffled = np.mean([dispersions(np.cumsum(rng.permutation(real))) for _ in range(10)], axis=0)
    assert (shuffled < 0.85 * target).all()
    lognormal = np.rint(rng.lognormal(*_log_moments(trace(name).prompt_tokens), len(real)))
    assert stats.ks_2samp(lognormal, trace(name).prompt_tokens).statistic > MAX_KS


@pytest.mark.data
@measured
@both
def test_the_joint_lengths_are_paired_as_measured(name: str) -> None:
    """Mean output by quartile of the prompt: a copula that only matched one coefficient would miss it."""
    real = trace(name)
    prompt, output = load_fit(name)[1].sample(200_000, np.random.default_rng(0))
    edges = np.quantile(real.prompt_tokens, [0.25, 0.5, 0.75])
    for quarter in range(4):
        measured_mean = real.output_tokens[np.digitize(real.prompt_tokens, edges) == quarter].mean()
        assert output[np.digitize(prompt, edges) == quarter].mean() == pytest.approx(measured_mean, rel=0.12)
    assert prompt.mean() == pytest.approx(real.prompt_tokens.mean(), rel=0.02)
    assert output.mean() == pytest.approx(real.output_tokens.mean(), rel=0.02)


def test_ks_distance_counts_ties() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, 400), rng.integers(1, 6, 300)
    assert ks_distance(a, b) == pytest.approx(stats.ks_2samp(a, b).statistic)


def test_weights_leave_room_for_white_noise() -> None:
    for name in FILES:
        gaps = load_fit(name)[0]
        assert sum(weight for _, weight in gaps.memories) + gaps.cycle_weight < 1
        assert (np.diff(gaps.gap_s) >= 0).all()


def test_fitting_refuses_an_unknown_trace(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a trace with a fitted name"):
        main([tmp_path / "mine.csv"], tmp_path / "out.toml")


@pytest.mark.slow
@pytest.mark.data
@measured
def test_the_shipped_figures_are_what_the_script_writes(tmp_path: Path) -> None:
    main([FILES["azure-2023-conv"], FILES["azure-2023-code"]], tmp_path / "out.toml")
    shipped = Path(__file__).parents[1] / "simulator/workload/azure_2023.toml"
    assert (tmp_path / "out.toml").read_text() == shipped.read_text()


def _log_moments(tokens: np.ndarray) -> tuple[float, float]:
    logs = np.log(tokens)
    return float(logs.mean()), float(logs.std())
