"""Covariates that telemetry or samples lack, and power on another scale than in training."""

import warnings
from typing import Any

import numpy as np
import pytest

from llmcluster.forecaster.losses import figures
from llmcluster.forecaster.models import LEARNED, make_model
from llmcluster.forecaster.models.base import UnlikeTraining
from llmcluster.forecaster.models.learned import Learned, TrainSettings
from llmcluster.forecaster.telemetry import Telemetry
from llmcluster.simulator.errors import InputError
from llmcluster.tests.telemetries import load, ready, series

READERS = ("ridge-ar", *LEARNED)
"""Models that read covariates."""


def lacking(test: Telemetry, *names: str) -> Telemetry:
    kept = {name: values for name, values in test.covariates.items() if name not in names}
    return series(test.power_w, covariates=kept, source="field.csv")


@pytest.mark.parametrize("gone", [("waiting",), ("running", "waiting")])
@pytest.mark.parametrize("name", READERS)
def test_a_lacking_covariate_is_as_one_never_read_online_and_in_one_go(name: str, gone: tuple[str, ...]) -> None:
    model, test = ready(name), load(np.random.default_rng(31), 200)
    bare = lacking(test, *gone)
    unread = {n: np.full(v.shape, np.nan) if n in gone else v for n, v in test.covariates.items()}
    expected = model.predict(series(test.power_w, covariates=unread))
    with pytest.warns(UnlikeTraining, match="field.csv: has no"):
        whole = model.predict(bare)
    assert np.array_equal(whole, expected)
    model.reset(2)
    for i in range(len(bare)):
        with pytest.warns(UnlikeTraining, match="samples: has no"):
            now = model.update(bare.power_w[i], {n: v[i] for n, v in bare.covariates.items()})
        np.testing.assert_allclose(now, whole[i], rtol=1e-9, atol=1e-5)
    assert np.abs(whole - model.predict(test)).max() > 0.1, "the covariate matters where it is there"


@pytest.mark.parametrize("name", READERS)
def test_a_lacking_covariate_is_taken_at_its_mean_of_training(name: str) -> None:
    model, test = ready(name), load(np.random.default_rng(32), 200)
    mean = model.weights["usual" if name == "ridge-ar" else "input_mean"]
    usual = {n: np.full(test.power_w.shape, mean[k]) for k, n in enumerate(model.covariates)}
    with pytest.warns(UnlikeTraining):
        bare = model.predict(lacking(test, "running", "waiting"))
    np.testing.assert_allclose(bare, model.predict(series(test.power_w, covariates=usual)), rtol=1e-9, atol=1e-6)


def test_what_is_lacking_is_named_once() -> None:
    model, test = ready("gru"), load(np.random.default_rng(33), 100, 20)
    for gone, text in (
        (("waiting",), "field.csv: has no waiting; gru takes their means of training in their place"),
        (
            ("running", "waiting"),
            "field.csv: has no covariate that gru was fitted with (running, waiting); it forecasts from power alone",
        ),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default", UnlikeTraining)
            model.backtest(lacking(test, *gone))  # a few channels at a time
        assert [str(warning.message) for warning in caught] == [text]


def test_sums_of_slots_that_do_not_say_so_are_calibrated_as_slots() -> None:
    rng = np.random.default_rng(34)
    power = np.abs(rng.normal(200, (60, 10), (1500, 2)))
    both = series(power, covariates={"slots": np.where(np.arange(2) == 1, 4.0, np.ones((1500, 1)))})
    model = make_model("ridge-ar")
    model.fit([both], np.random.default_rng(0))
    with pytest.warns(UnlikeTraining):
        predicted = model.predict(lacking(both, "slots"))
    width = predicted[100, :, 0, 2] - predicted[100, :, 0, 0]
    assert width[1] == pytest.approx(width[0], rel=0.05) and width[0] > 100


@pytest.mark.parametrize("given", ["none", "one", "last"])
def test_samples_may_lack_covariates(given: str) -> None:
    model, test = ready("gru"), load(np.random.default_rng(35), 20)
    beside: dict[str, Any] = {
        "none": {},
        "one": {"running": test.covariates["running"]},
        "last": {"running": test.covariates["running"][-1]},
    }[given]
    model.reset(2)
    with pytest.warns(UnlikeTraining, match="samples: has no"):
        short = model.update(test.power_w, beside)
    filled = {name: np.full_like(next(iter(beside.values()), test.power_w), np.nan) for name in model.covariates}
    model.reset(2)
    assert np.array_equal(model.update(test.power_w, filled | beside), short)


def test_covariates_of_the_last_second_may_be_given_alone() -> None:
    model, test = ready("gru"), load(np.random.default_rng(27), 20)
    late = {name: np.where(np.arange(20)[:, None] == 19, values, np.nan) for name, values in test.covariates.items()}
    model.reset(2)
    long = model.update(test.power_w, late)
    model.reset(2)
    assert np.array_equal(model.update(test.power_w, {name: values[-1] for name, values in late.items()}), long)


@pytest.mark.parametrize("name", READERS)
def test_covariates_of_the_last_second_may_be_a_matrix(name: str) -> None:
    model, test = ready(name), load(np.random.default_rng(38), 20)
    model.reset(2)
    by_name = model.update(test.power_w, {n: values[-1] for n, values in test.covariates.items()})
    matrix = np.stack([test.covariates[n][-1] for n in model.covariates], axis=-1)
    model.reset(2)
    assert np.array_equal(model.update(test.power_w, matrix), by_name)
    with pytest.raises(InputError, match=r"covariates: has shape \(2, 1\) where \(2, 2\) is due"):
        model.update(test.power_w, matrix[:, :1])


@pytest.mark.parametrize("name", LEARNED)
def test_power_on_another_scale_is_told(name: str) -> None:
    model, test = ready(name), load(np.random.default_rng(36), 100)
    far = series(test.power_w, covariates=dict(test.covariates), scale_w=np.full(2, 1 / 400), source="shares.csv")
    with pytest.warns(UnlikeTraining, match=r"shares\.csv: power is far from all .* fitted on; .* \(--scale\)"):
        model.predict(far)
    power = test.power_w.copy()
    power[:40] = 1e6  # less than half of it
    assert np.isfinite(model.predict(series(power, covariates=dict(test.covariates)))).all()


def announced(seconds: int = 4000) -> Telemetry:
    """Power that a covariate tells half a minute before, and that is steady in between."""
    level = np.random.default_rng(37).integers(0, 2, seconds // 100).repeat(100).astype(float)
    power = 100 + 200 * np.concatenate([np.zeros(30), level[:-30]])
    return series(power, covariates={"waiting": level[:, None], "cap_w": np.full((seconds, 1), 400.0)})


def test_what_has_been_trained_half_blind_does_without() -> None:
    told = announced()
    bare = lacking(told, "waiting", "cap_w")
    errors = {}
    for blind in (0.0, 0.5):
        model = make_model("gru")
        assert isinstance(model, Learned)
        model.settings = TrainSettings(
            hidden=8, epochs=20, window_s=256, stride_s=10, batch=4, learning_rate=2e-2, blind=blind
        )
        model.fit([told], np.random.default_rng(0))
        with pytest.warns(UnlikeTraining):
            errors[blind] = [figures(model.backtest(t, 60))["mae_w"][0] for t in (told, bare)]
    assert errors[0.5][1] < 0.8 * errors[0.0][1], "it does without"
    assert errors[0.5][0] < 0.9 * errors[0.5][1], "what it is told, it uses all the same"
