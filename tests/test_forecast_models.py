"""Models of power: targets, what each model does by hand, calibration, and samples one by one as in one go."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcluster.forecaster.autocorrelation import autocorrelation
from llmcluster.forecaster.frames import CALIBRATION, FIT, UNUSED, VALIDATION, frame_of, hold, parts_of
from llmcluster.forecaster.losses import Losses, figures, judge
from llmcluster.forecaster.models import LEARNED, MODELS, NAIVE, HeldOut, make_model
from llmcluster.forecaster.models.learned import Learned, TrainSettings
from llmcluster.forecaster.models.least_squares import Moments
from llmcluster.forecaster.targets import targets_of
from llmcluster.forecaster.telemetry import Telemetry
from llmcluster.simulator.errors import InputError
from llmcluster.tests.telemetries import QUICK, fitted, load, ready, series

Values = Any
# Targets, frames


def test_targets_begin_in_the_next_second() -> None:
    truth = targets_of(np.arange(100.0)[:, None])
    assert truth[7, 0].tolist() == [37, 67, np.arange(8, 38).mean(), np.arange(8, 68).mean()]
    assert np.isfinite(truth[39]).all()
    assert np.isnan(truth[40:]).all()
    assert np.isnan(targets_of(np.ones((60, 1)))).all()


def test_windows_across_gaps_are_dropped() -> None:
    power = np.arange(200.0)[:, None]
    power[100] = np.nan
    truth = targets_of(power)
    assert np.isnan(truth[40:101]).all()  # the forecasts that look at the gap, and the one that is made in it
    assert np.isfinite(truth[[39, 101]]).all()


def test_no_target_of_a_part_reaches_into_the_next() -> None:
    part = parts_of(1000)
    assert [int((part == p).sum()) for p in (FIT, VALIDATION, CALIBRATION, UNUSED)] == [540, 140, 200, 120]
    for earlier, later in ((FIT, VALIDATION), (VALIDATION, CALIBRATION)):
        assert np.flatnonzero(part == earlier).max() + 60 < np.flatnonzero(part == later).min()
    assert (parts_of(50) == FIT).sum() == 0


def test_gaps_are_held_and_what_has_not_begun_is_told() -> None:
    held = hold(np.array([[np.nan, 1], [2, np.nan], [np.nan, np.nan], [3, 4]]))
    assert held[1:].tolist() == [[2, 1], [2, 1], [3, 4]]
    frame = frame_of(series([[np.nan, 1], [2, np.nan], [3, 4]], scale_w=np.array([2.0, 1.0])), ["running"])
    assert frame.power.tolist() == [[1, 1], [1, 1], [1.5, 4]]
    assert frame.begun.tolist() == [[False, True], [True, True], [True, True]]
    assert np.isnan(frame.covariates).all()


# Models by hand


def ramp(seconds: int = 400) -> Telemetry:
    return series(np.arange(float(seconds)))


def test_persistence_repeats_the_last_second() -> None:
    predicted = fitted("persistence", ramp()).predict(ramp())
    assert predicted[123, 0, :, 1].tolist() == [123] * 4


def test_smoothers_choose_the_shortest_memory_on_a_ramp() -> None:
    # Always behind by half the window: the residuals' quantiles are all the same.
    predicted = fitted("window-mean", ramp()).predict(ramp())
    assert predicted[123, 0, :, 1] == pytest.approx([121] * 4)
    assert predicted[123, 0, :, 2] == pytest.approx([153, 183, 123 + 15.5, 123 + 30.5])
    assert fitted("rolling-median", ramp()).predict(ramp())[123, 0, :, 1] == pytest.approx([121] * 4)
    assert fitted("ewma", ramp()).predict(ramp())[123, 0, :, 1] == pytest.approx([122] * 4)  # 1, 1/2, 1/4 … behind


def test_smoothers_choose_a_long_memory_on_noise() -> None:
    noise = series(np.random.default_rng(0).normal(200, 30, 3000))
    for name in ("window-mean", "rolling-median", "ewma"):
        assert (fitted(name, noise).weights["parameter"] >= 60).all()


def test_the_training_median_is_that_of_its_own_part() -> None:
    power = np.where(np.arange(1000) < 800, 100.0, 500.0)
    power[:200] = 50
    model = fitted("training-median", series(power))
    assert model.weights["median"].tolist() == [100] * 4
    assert model.predict(ramp())[5, 0, :, 1].tolist() == [100] * 4


def test_the_seasonal_model_finds_the_period_and_repeats_it() -> None:
    wave = series(200 + 50 * np.sin(2 * np.pi * np.arange(1500) / 97))
    model = fitted("seasonal-naive", wave)
    assert model.weights["period_s"] == 97
    predicted = model.predict(wave)[100:1440, :, :, 1]
    assert predicted == pytest.approx(targets_of(wave.power_w)[100:1440], abs=1e-6)


def test_ridge_forecasts_what_a_covariate_announces() -> None:
    rng = np.random.default_rng(1)
    announced = rng.integers(0, 2, 4000).repeat(20)[:4000].astype(float)
    power = 100 + 200 * np.concatenate([np.zeros(30), announced[:-30]])
    told = series(power, covariates={"waiting": announced[:, None]})
    knows, knows_not = fitted("ridge-ar", told), fitted("ridge-ar", series(power))
    assert knows.covariates == ("waiting",)
    assert knows_not.covariates == ()
    error = [figures(m.backtest(told))["mae_w"][0] for m in (knows, knows_not)]
    assert error[0] < 0.2 < 50 < error[1]


def test_ridge_is_least_squares_and_shrinks() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(5, 3, (200, 2))
    y = x @ [[1.0, -2], [0.5, 3]] + [7.0, 8]
    features = np.concatenate([x, np.full((200, 1), 4.0)], axis=1)  # one that does not vary
    moments = Moments()
    moments.add(features[:90], y[:90])
    moments.add(features[90:], y[90:])
    slope, intercept = moments.ridge(1e-12)
    assert features @ slope + intercept == pytest.approx(y, abs=1e-6)
    assert (slope[2] == 0).all()
    flat, mean = moments.ridge(1e9)
    assert np.abs(flat).max() < 1e-8
    assert mean == pytest.approx(y.mean(axis=0))


def test_autocorrelation() -> None:
    wave = np.cos(2 * np.pi * np.arange(4000) / 50)[:, None]
    found = autocorrelation(wave, 100)
    assert found[[0, 25, 50]] == pytest.approx([1, -1, 1], abs=0.01)
    wave[::3] = np.nan
    assert autocorrelation(wave, 100)[[25, 50]] == pytest.approx([-1, 1], abs=0.02)
    assert (autocorrelation(np.ones((50, 1)), 10) == 0).all()


# What holds of every model


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=5)
@given(seed=st.integers(0, 2**32 - 1), begins=st.integers(0, 40))
def test_sample_by_sample_is_as_in_one_go(name: str, seed: int, begins: int) -> None:
    rng = np.random.default_rng(seed)
    model = ready(name)
    test = load(rng, 200, 3)
    scale_w = np.array([1.0, 2.0, 0.5])
    power = test.power_w.copy()
    power[rng.random(power.shape) < 0.05] = np.nan
    power[:begins, 0] = np.nan
    covariates = {name: np.where(rng.random(power.shape) < 0.1, np.nan, v) for name, v in test.covariates.items()}
    test = series(power, covariates=covariates, scale_w=scale_w)
    whole = model.predict(test)
    model.reset(3, scale_w)
    for i in range(len(test)):
        now = model.update(power[i], {name: values[i] for name, values in covariates.items()})
        np.testing.assert_allclose(now, whole[i], rtol=1e-9, atol=1e-5)
    assert np.isnan(whole[0, np.isnan(power[0])]).all()


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1), begins=st.integers(0, 40))
def test_the_compiled_gru_is_the_one_in_numpy(seed: int, begins: int) -> None:
    rng = np.random.default_rng(seed)
    model, test = ready("gru"), load(rng, 200, 3)
    power = test.power_w.copy()
    power[rng.random(power.shape) < 0.05] = np.nan
    power[:begins, 0] = np.nan
    power[50:60] = -400.0  # so that forecasts fall below zero, where they are not to be cut yet
    frame = frame_of(series(power, covariates=test.covariates), model.covariates)
    ours, numpys = model._predict(frame)[frame.begun], Learned._predict(model, frame)[frame.begun]
    np.testing.assert_allclose(ours, numpys, rtol=1e-9, atol=1e-5)
    assert ours.min() < 0


@pytest.mark.parametrize("name", MODELS)
def test_several_samples_at_once_are_as_one_after_the_other(name: str) -> None:
    test = load(np.random.default_rng(3), 40)
    model = ready(name)
    model.reset(2)
    for i in range(len(test)):
        last = model.update(test.power_w[i], {n: v[i] for n, v in test.covariates.items()})
    model.reset(2)
    assert (model.update(test.power_w, test.covariates) == last).all()


@pytest.mark.parametrize("name", MODELS)
def test_a_restored_state_goes_on_alike(name: str) -> None:
    test = load(np.random.default_rng(5), 500)
    model = ready(name)

    def run(first: int, last: int) -> Any:
        return [
            model.update(test.power_w[i], {n: v[i] for n, v in test.covariates.items()}) for i in range(first, last)
        ]

    model.reset(2)
    run(0, 400)
    saved = model.save_state()
    once = run(400, 450)
    model.reset(7)
    model.restore_state(saved)
    assert np.array_equal(run(400, 450), once)
    model.restore_state(saved)
    assert np.array_equal(run(400, 450), once)


@pytest.mark.parametrize("name", MODELS)
def test_no_forecast_knows_the_future(name: str) -> None:
    model = ready(name)
    test = load(np.random.default_rng(8), 200)
    before = model.predict(test)[:100]
    test.power_w[100:] += 1000
    for values in test.covariates.values():
        values[100:] += 1000
    assert np.array_equal(model.predict(test)[:100], before)


@pytest.mark.parametrize("name", MODELS)
def test_quantiles_do_not_cross_and_cover_what_they_claim(name: str) -> None:
    rng = np.random.default_rng(9)
    half = 10_000 if name in NAIVE else 4_000
    noise = series(np.abs(rng.normal(200, 60, (2 * half, 1))))
    model = fitted(name, noise.part(0, half))
    predicted = model.predict(noise)
    assert (np.diff(predicted, axis=-1) >= 0).all()
    assert (predicted >= 0).all()
    coverage = figures(model.backtest(noise, half))["coverage_80"]
    assert coverage == pytest.approx([0.8] * 4, abs=0.06 if name in NAIVE else 0.1)


@pytest.mark.parametrize("name", MODELS)
def test_a_scale_changes_nothing_but_the_unit(name: str) -> None:
    plain = load(np.random.default_rng(10), channels=1)
    scaled = series(plain.power_w * 8, covariates=dict(plain.covariates), scale_w=np.array([8.0]))
    one = fitted(name, plain).predict(plain)
    assert fitted(name, scaled).predict(scaled) == pytest.approx(8 * one, rel=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_bad_use_is_told(name: str) -> None:
    model = make_model(name)
    with pytest.raises(InputError, match="the model is not fitted"):
        model.predict(ramp())
    with pytest.raises(InputError, match="too short"):
        model.fit([ramp(250)], np.random.default_rng(0))
    with pytest.raises(InputError, match="too short"):
        model.fit([], np.random.default_rng(0))


@pytest.mark.parametrize("name", MODELS)
def test_samples_of_another_shape_are_told(name: str) -> None:
    model = ready(name)
    model.reset(2)
    beside = {name: np.ones(3) for name in model.covariates}
    with pytest.raises(InputError, match="3 channels where 2 are due"):
        model.update(np.ones(3), beside)
    if beside:
        with pytest.raises(InputError, match=r"running: has shape \(1, 3\), power \(1, 2\)"):
            model.update(np.ones(2), beside)


def test_calibration_mends_intervals_that_training_made_too_narrow() -> None:
    rng = np.random.default_rng(12)
    calm, wild = rng.normal(200, 5, 1600), rng.normal(200, 50, 2400)
    whole = series(np.concatenate([calm, wild]))
    model = fitted("training-median", whole.part(0, 2000))  # calm while it is fitted, wild while it is calibrated
    assert model.weights["widen"][0, 0] > 30
    assert figures(model.backtest(whole, 2000))["coverage_80"][0] == pytest.approx(0.8, abs=0.05)
    model.weights["widen"][:] = 0
    assert figures(model.backtest(whole, 2000))["coverage_80"][0] < 0.2


def test_unknown_models_are_named() -> None:
    with pytest.raises(InputError, match=r"model 'crystal-ball': is unknown\. Use one of persistence"):
        make_model("crystal-ball")
    assert set(NAIVE) <= set(MODELS)
    for name in MODELS:
        assert make_model(name).name == name
        assert make_model(name).naive == (name in NAIVE)


# Losses


def test_losses_by_hand() -> None:
    test = series(np.where(np.arange(61) == 30, 130.0, 100.0))  # one second is judged; its mean of 30 s is 101

    def predict(telemetry: Telemetry) -> Values:
        return np.broadcast_to([90.0, 110.0, 120.0], (len(telemetry), 1, 4, 3))

    found = figures(judge(predict, test))
    assert found["mae_w"] == pytest.approx([20, 10, 9, 9.5])
    assert found["rmse_w"] == pytest.approx([20, 10, 9, 9.5])
    assert found["coverage_80"].tolist() == [0, 1, 1, 1]
    assert found["pinball_w"][0] == pytest.approx((0.1 * 40 + 0.5 * 20 + 0.9 * 10) / 3)
    assert found["pinball_w"][1] == pytest.approx((0.1 * 10 + 0.5 * 10 + 0.1 * 20) / 3)
    assert judge(predict, test).count.sum() == 1
    assert judge(predict, test, 1).count.sum() == 0


def test_losses_add_up_over_channels_and_series() -> None:
    whole = load(np.random.default_rng(13), 500, 20)
    model = fitted("ewma", load(np.random.default_rng(14)))
    together = model.backtest(whole, 60)
    apart = [model.backtest(whole.select([name]), 60) for name in whole.channels]
    assert together.absolute == pytest.approx(np.sum([a.absolute for a in apart], axis=0))
    assert together.count.sum() == 20 * (500 - 60 - 60)
    joined = Losses.joined([together, together])
    assert len(joined.count) == 2 * len(together.count)
    for name, values in figures(joined).items():
        assert values == pytest.approx(figures(together)[name])


# Networks


@pytest.mark.parametrize("name", LEARNED)
def test_a_network_forecasts_as_it_was_trained(name: str) -> None:
    """The forward pass of PyTorch over a whole series, and the model's own steps from the weights alone."""
    import torch

    from llmcluster.forecaster.networks.network import Network

    model = ready(name)
    frame = frame_of(load(np.random.default_rng(21), 300, 3), model.covariates)
    inputs, levels = (torch.tensor(x).transpose(0, 1) for x in model.views(frame))
    core = model.core(model.features, QUICK.hidden)
    network = Network(core, QUICK.hidden, model.features, levels.shape[-1], QUICK.stride_s).double()
    network.load_state_dict({n: torch.tensor(model.weights[n]) for n in network.state_dict()})
    with torch.no_grad():
        whole = network(inputs, levels).transpose(0, 1).numpy()
    watts = whole * model.weights["power_deviation"] + model.weights["power_mean"]
    np.testing.assert_allclose(model._predict(frame), watts, rtol=0, atol=1e-5)
    assert np.std(watts - watts[:1]) > 1  # it does say something


LONG = ("spiking", "transformer")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in LONG else ()) for n in LEARNED])
def test_a_network_learns_what_a_covariate_announces(name: str) -> None:
    rng = np.random.default_rng(22)
    announced = rng.integers(0, 2, 200).repeat(20).astype(float)
    power = 100 + 200 * np.concatenate([np.zeros(30), announced[:-30]])
    told = series(power, covariates={"waiting": announced[:, None]})
    model = make_model(name)
    model.settings = TrainSettings(hidden=16, epochs=40, window_s=128, batch=8, learning_rate=1e-2)
    model.fit([told], np.random.default_rng(0))
    learned, naive = (figures(m.backtest(told, 3200))["mae_w"][0] for m in (model, fitted("ewma", told)))
    assert learned < 0.5 * naive


def test_the_same_seed_trains_the_same_and_another_another() -> None:
    train = load(np.random.default_rng(23))
    one, same, other = (fitted("gru", train, seed).weights["head.weight"] for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(("batch", "passes"), [(64, 1 + 40), (2, 1 + 10)])
def test_short_series_are_waited_for_longer(batch: int, passes: int) -> None:
    """Eight windows in one step, or in four; nothing is learnt, so that no pass after the first is better."""
    model = make_model("gru")
    done: list[int] = []
    model.settings = TrainSettings(hidden=4, patience=3, window_s=128, batch=batch, learning_rate=0.0)
    model.progress = lambda epoch, epochs, loss: done.append(epoch)
    model.fit([load(np.random.default_rng(29))], np.random.default_rng(0))
    assert len(done) == passes


def test_training_goes_on_where_it_stopped(tmp_path: Any) -> None:
    train = load(np.random.default_rng(24))
    settings = TrainSettings(hidden=8, epochs=6, window_s=128)

    def run(checkpoint: Any, stop_after: int = 99, seed: int = 0, hidden: int = 8) -> tuple[Any, list[int]]:
        model = make_model("gru")
        passes: list[int] = []

        def progress(epoch: int, epochs: int, loss: float) -> None:
            passes.append(epoch)
            if len(passes) > stop_after:
                raise KeyboardInterrupt

        model.settings = TrainSettings(**{**vars(settings), "hidden": hidden})
        model.progress, model.checkpoint = progress, checkpoint
        try:
            model.fit([train], np.random.default_rng(seed))
        except KeyboardInterrupt:
            return None, passes
        return model.weights, passes

    whole, passes = run(None)
    assert passes == [1, 2, 3, 4, 5, 6]
    checkpoint = tmp_path / "run.safetensors"
    assert run(checkpoint, stop_after=3)[0] is None
    resumed, passes = run(checkpoint)
    assert passes == [4, 5, 6]
    for name, values in whole.items():
        assert np.array_equal(values, resumed[name]), name
    for changed in ({"seed": 1}, {"hidden": 12}):
        with pytest.raises(InputError, match="is of another network, data, seed or settings"):
            run(checkpoint, **changed)


def test_a_gpu_is_used_where_there_is_one_and_its_lack_is_told() -> None:
    import torch

    model, train = make_model("gru"), load(np.random.default_rng(25))
    assert isinstance(model, Learned)
    model.settings = TrainSettings(hidden=8, epochs=2, window_s=128, device="cuda")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match=r"--device cuda: PyTorch finds no CUDA device\. Use --device cpu"):
            model.fit([train], np.random.default_rng(0))
        return
    model.fit([train], np.random.default_rng(0))
    alike = make_model("gru")
    assert isinstance(alike, Learned)
    alike.settings = TrainSettings(hidden=8, epochs=2, window_s=128)
    alike.fit([train], np.random.default_rng(0))
    assert model.predict(train) == pytest.approx(alike.predict(train), rel=0.05)


@pytest.mark.parametrize("name", ["gru", "ewma"])
def test_series_that_are_held_out_are_not_fitted_on(name: str) -> None:
    rng = np.random.default_rng(26)
    train, calm, wild = (series(np.abs(rng.normal(200, spread, 900))) for spread in (10, 10, 60))
    apart, other = make_model(name), make_model(name)
    for model in (apart, other):
        if isinstance(model, Learned):
            model.settings = QUICK
    apart.fit([train], np.random.default_rng(0), HeldOut((calm,), (wild,)))
    other.fit([train], np.random.default_rng(0), HeldOut((calm,), (calm,)))
    assert all(np.array_equal(apart.weights[n], w) for n, w in other.weights.items() if n != "widen")
    assert (apart.weights["widen"][:, :2] > other.weights["widen"][:, :2] + 30).all()
    assert figures(apart.backtest(wild, 60))["coverage_80"] == pytest.approx([0.8] * 4, abs=0.01)


@pytest.mark.parametrize("name", ["gru", "ewma", "ridge-ar"])
def test_sums_of_slots_are_calibrated_apart(name: str) -> None:
    rng = np.random.default_rng(28)
    power = np.abs(rng.normal(200, (60, 10), (3000, 2)))
    both = series(power, covariates={"slots": np.where(np.arange(2) == 1, 4.0, np.ones((3000, 1)))})
    model = make_model(name)
    if isinstance(model, Learned):
        model.settings = QUICK
    model.fit([both], np.random.default_rng(0))
    if not model.reads_covariates:  # it cannot tell them apart
        assert model.weights["widen"].shape == (1, 4)
        return
    assert model.weights["widen"].shape == (2, 4)
    for channel in both.channels:
        covered = figures(model.backtest(both.select([channel]), 2400))["coverage_80"]
        assert covered[:2] == pytest.approx([0.8] * 2, abs=0.02)
    model.reset(2)
    last = model.update(power, dict(both.covariates))
    np.testing.assert_allclose(last, model.predict(both)[-1], rtol=1e-9, atol=1e-5)


def test_forecasting_needs_no_torch() -> None:
    code = (
        "import sys, numpy as np; from llmcluster.forecaster.models import LEARNED, make_model;"
        "[make_model(name) for name in LEARNED]; print('torch' in sys.modules, 'numba' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False False\n"
