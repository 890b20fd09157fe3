"""Workload models: fits find what they were made of, sweeps agree with long runs, lengths are those of the past."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from llmcluster import InputError
from llmcluster.agents.offline_optimal.lengths import OutputLengths
from llmcluster.agents.offline_optimal.models import Fitted, WorkloadModel, coefficients, regress, regressors
from llmcluster.agents.offline_optimal.simulated import simulated_model
from llmcluster.agents.sweep import alone, steady_state
from llmcluster.simulator.catalog.energy_inference import Regression
from llmcluster.simulator.topology import EngineSpec, ServerSpec

SLOT = ServerSpec(gpu="A100-80GB", gpus=1, model="Llama-3.1-8B")
GRID = np.array([(i, o) for i in (8, 64, 512, 2048) for o in (8, 64, 512, 2048)], float)
NUMBERS = st.floats(-10, 10).map(lambda x: round(x, 3))


@given(st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS), st.sampled_from([3, 4]))
def test_fits_find_known_coefficients(known: tuple[float, ...], count: int) -> None:
    assume(any(known[:count]))
    terms = regressors(*GRID.T)[:, :count]
    fitted = regress(terms, terms @ np.array(known[:count]))
    assert coefficients(fitted)[:count] == pytest.approx(known[:count], abs=1e-6)
    assert coefficients(fitted)[count:].tolist() == [0.0] * (4 - count)


def test_centred_r2_is_the_stricter_one() -> None:
    rng = np.random.default_rng(0)
    terms = regressors(*GRID.T)
    measured = 5000 + terms @ np.array([1.0, 3.0, 0.0, 0.001]) + rng.normal(0, 500, len(terms))
    paper, ours = regress(terms[:, :3], measured), regress(terms, measured)
    assert paper.r2_centred < paper.r2_uncentred < ours.r2_uncentred < 1
    left = measured - terms @ coefficients(ours)
    assert ours.r2_centred == pytest.approx(1 - left.var() / measured.var() - left.mean() ** 2 / measured.var())


def test_too_few_lengths_are_refused() -> None:
    with pytest.raises(InputError, match="do not determine 4 coefficients"):
        regress(regressors([8, 8, 8, 8], [8, 16, 32, 64]), np.ones(4))
    with pytest.raises(InputError, match="0 of them"):
        regress(regressors([], []), np.zeros(0))
    with pytest.raises(InputError, match="all of them took 7"):
        regress(regressors(*GRID.T), np.full(len(GRID), 7.0))


def test_a_model_is_not_believed_below_what_was_measured() -> None:
    terms = regressors(*GRID.T)
    fitted = Fitted(Regression(input=-1.0, output=3.0, product=0.01, r2_uncentred=1.0, r2_centred=1.0), 50.0)
    assert fitted([100_000, 512], [1, 512]) == pytest.approx([50.0, -512 + 3 * 512 + 0.01 * 512**2])
    cpu = Fitted.to(terms, 10 + terms[:, 1])
    model = WorkloadModel("m", fitted, cpu, cpu)
    assert model.energy_j(512, 512) == pytest.approx(fitted(512, 512) + cpu(512, 512))
    assert WorkloadModel("m", fitted, None, cpu).energy_j(512, 512) == fitted(512, 512)


def test_sweeps_see_batches_and_caps() -> None:
    engine = EngineSpec()
    one, full = (steady_state(SLOT, engine, 512, 128, n) for n in (1, 32))
    assert one.requests_per_s < full.requests_per_s < 32 * one.requests_per_s
    assert one.residence_s < full.residence_s
    assert one.residence_s * one.requests_per_s == pytest.approx(1)
    assert one.idle_w < one.gpu_w < full.gpu_w
    capped = steady_state(SLOT, engine, 512, 128, 32, cap_share=0.0)
    assert capped.gpu_w < full.gpu_w
    assert capped.requests_per_s < full.requests_per_s
    small = EngineSpec(max_num_seqs=8, max_num_batched_tokens=32)
    assert steady_state(SLOT, small, 512, 128, 32).requests_per_s < full.requests_per_s


def test_slots_of_any_cluster_share_their_sweeps() -> None:
    spec = ServerSpec(gpu="H100-80GB", gpus=8, tp=2, model="Llama-3.1-8B", inlet_c=30.0, count=3)
    assert alone(spec) == ServerSpec(gpu="H100-80GB", gpus=2, tp=2, model="Llama-3.1-8B")


def test_simulated_models_fit_and_foretell_other_lengths() -> None:
    engine = EngineSpec()
    model = simulated_model(SLOT, engine)
    assert model.cpu_energy_j is not None
    for fitted in (model.gpu_energy_j, model.cpu_energy_j, model.runtime_s):
        assert fitted.form.r2_centred > 0.95
    steady = steady_state(SLOT, engine, 1500, 300, 32)
    assert model.runtime_s(1500, 300) == pytest.approx(1 / steady.requests_per_s, rel=0.15)
    above_idle_w = steady.gpu_w - steady.idle_w + steady.cpu_w
    assert model.energy_j(1500, 300) == pytest.approx(above_idle_w / steady.requests_per_s, rel=0.15)
    alone_ = simulated_model(SLOT, engine, in_flight=1)
    assert alone_.energy_j(1024, 128) > 3 * model.energy_j(1024, 128), "batching saves most of a query's energy"


def test_a_context_too_long_for_the_model_is_left_out() -> None:
    short = simulated_model(SLOT, EngineSpec(max_model_len=3000))
    assert short.runtime_s(1024, 128) == pytest.approx(
        simulated_model(SLOT, EngineSpec()).runtime_s(1024, 128), rel=0.2
    )


@given(st.integers(0, 2**32 - 1), st.sampled_from([None, 0.5, 0.9]))
def test_predicted_lengths_are_those_of_like_prompts(seed: int, quantile: float | None) -> None:
    rng = np.random.default_rng(seed)
    prompt = rng.integers(1, 5000, 400)
    output = prompt // 10 + rng.integers(1, 20, 400)
    predicted = OutputLengths(prompt, output, quantile=quantile)(prompt)
    assert (np.diff(predicted[np.argsort(prompt)]) >= -20).all()
    assert np.abs(predicted - prompt / 10).max() < 80
    if quantile is None:
        assert predicted.mean() == pytest.approx(output.mean())
    else:
        assert np.mean(output <= predicted) == pytest.approx(quantile, abs=0.06)


def test_lengths_need_a_past() -> None:
    with pytest.raises(InputError, match="no past queries"):
        OutputLengths(np.zeros(0, int), np.zeros(0, int))
    assert OutputLengths(np.array([7]), np.array([3]))(np.array([1, 7, 100])).tolist() == [3, 3, 3]
