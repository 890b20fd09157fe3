"""Weights of forecasters as files, the verb that writes them, and files that are refused."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from llmcluster.forecaster import weights as weights_module
from llmcluster.forecaster.models import MODELS, Model, make_model
from llmcluster.forecaster.models.learned import Learned, TrainSettings
from llmcluster.forecaster.telemetry import Telemetry
from llmcluster.forecaster.training import device_of
from llmcluster.forecaster.weights import FORMAT, load_model, save_model
from llmcluster.simulator.errors import InputError


def series(seed: int = 0, seconds: int = 500) -> Telemetry:
    rng = np.random.default_rng(seed)
    running = 4 + rng.normal(size=(seconds, 2)).cumsum(axis=0) / 8
    return Telemetry(90 + 20 * running.clip(0, 9), ("a", "b"), covariates={"running": running})


def fitted(name: str) -> Model:
    model = make_model(name)
    if isinstance(model, Learned):
        model.settings = TrainSettings(hidden=8, epochs=1, window_s=128)
    model.fit([series()], np.random.default_rng(0))
    return model


@pytest.fixture(scope="module")
def gru() -> Model:
    return fitted("gru")


@pytest.mark.parametrize("name", MODELS)
def test_a_model_read_back_forecasts_the_same(name: str, tmp_path: Path) -> None:
    model, path = fitted(name), tmp_path / "model.safetensors"
    save_model(model, path, {"data": ["x.csv"]})
    read, card = load_model(path)
    assert (read.name, read.covariates, card) == (name, model.covariates, {"data": ["x.csv"]})
    assert np.array_equal(read.predict(series(1)), model.predict(series(1)))
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_model_that_is_not_fitted_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not fitted"):
        save_model(make_model("gru"), tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


def test_damaged_and_foreign_files_are_refused(gru: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    save_model(gru, path)
    whole = path.read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    about = {"format": FORMAT, "model": "gru", "covariates": [], "card": {}}
    one = {"widen": np.zeros(4)}

    def refuse(content: bytes | tuple[dict[str, Any], dict[str, Any]], message: str) -> None:
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            save_file(content[0], path, {"llmcluster": json.dumps(content[1])})
        with pytest.raises(InputError, match=message) as fault:
            load_model(path)
        assert "llmcluster forecast train" in str(fault.value)

    refuse(b"PK\x03\x04 a zip archive, or a pickle", "is no safetensors file, or was cut")
    refuse(b"\x80", "is no safetensors file")
    refuse(whole[: length // 2], "is no safetensors file, or was cut")
    refuse(whole[:-8], "is damaged")
    refuse(whole + b"more", "is damaged")
    refuse(whole[:8] + b"x" * length + whole[8 + length :], "is no safetensors file")
    refuse(struct.pack("<Q", 1 << 60) + whole[8:], "is no safetensors file")
    refuse((one, {"format": "pt"}), "holds no model of power")
    refuse((one, {**about, "model": "oracle"}), "holds no model of power")
    refuse((one, {**about, "format": "llmcluster-forecaster-0"}), "another version")
    refuse((one, about), "do not fit together")
    refuse((one, {**about, "covariates": ["colour"]}), "its description does not hold")
    refuse((one, {**about, "covariates": 3}), "is damaged")
    refuse(({"widen": np.full(4, np.nan)}, about), "not all of its figures are finite")
    refuse(({"widen": np.zeros(4, np.float32)}, about), "not all of its figures are finite")
    bias = {**gru.weights, "core.cell.bias_ih_l0": np.zeros(1)}
    refuse((bias, {**about, "covariates": ["running"]}), "do not fit together")
    wrong = {**gru.weights, "core.cell.weight_hh_l0": np.zeros((24, 9))}
    refuse((wrong, {**about, "covariates": ["running"]}), "do not fit together")
    monkeypatch.setattr(weights_module, "MAX_BYTES", len(whole) - 1)
    refuse(whole, "more than any model of power")
    with pytest.raises(InputError, match="no such file"):
        load_model(tmp_path / "nothing.safetensors")


# The verb


@pytest.fixture
def call(call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Runs `llmcluster forecast` in the folder of the test."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: call("forecast", *arguments)


def write(seed: int, name: str) -> str:
    """Writes a series with temperature into the present folder."""
    telemetry = series(seed, 600)
    rows = [f"{i},{p:.3f},{40 + i % 9}" for i, p in enumerate(telemetry.power_w[:, 0])]
    Path(name).write_text("\n".join(["t_s,power_w,temp_c", *rows]) + "\n")
    return name


def test_train_writes_the_best_seed_with_its_card_and_backtest_takes_it(call: Callable[..., Any]) -> None:
    files = [write(i, f"{name}.csv") for i, name in enumerate(("a", "b", "c"))]
    arguments = ("train", "--train", *files[:2], "--out", "out", "--seeds", "2", "--epochs", "2", "--hidden", "8")
    code, out, err = call(*arguments, "--json", "-")
    assert code == 0, err
    card = json.loads(out)
    assert card == json.loads(Path("out/gru.json").read_text()) == load_model(Path("out/gru.safetensors"))[1]
    assert card["data"][1] == {"source": "b.csv", "seconds": 599, "channels": 1, "gaps": 0}
    scores = {seed: row["validation_pinball_w"] for seed, row in card["seeds"].items()}
    assert set(scores) == {"0", "1"}
    assert scores[str(card["seed"])] == min(scores.values())
    assert card["covariates"] == ["temperature_c"]
    assert set(card["figures"]) == {"fit", "validation", "calibration"}
    assert "seed 1: validation" in err
    chosen = "cuda" if torch.cuda.is_available() else "cpu"
    assert card["settings"]["device"] == chosen and f"networks train on {chosen}" in err

    before = Path("out/gru.safetensors").read_bytes()
    assert call(*arguments)[0] == 0  # nothing is left to train
    assert Path("out/gru.safetensors").read_bytes() == before

    code, out, _ = call(
        "backtest", "--train", files[0], "--test", files[2], "--models", "ewma,out/gru.safetensors", "--json", "-"
    )
    assert code == 0
    assert set(json.loads(out)["results"]) == {"ewma", "out/gru.safetensors"}


def test_the_device_is_what_is_asked_for_and_there(call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    there = torch.cuda.is_available()
    assert [device_of(name) for name in ("cpu", "auto")] == ["cpu", "cuda" if there else "cpu"]
    if not there:
        write(0, "a.csv")
        code, _, err = call("train", "--train", "a.csv", "--out", "out", "--device", "cuda")
        assert code == 2 and "--device cuda: PyTorch finds no CUDA device. Use --device cpu" in err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [device_of(name) for name in ("cpu", "auto", "cuda")] == ["cpu", "cuda", "cuda"]


def test_covariates_can_be_chosen(call: Callable[..., Any]) -> None:
    write(0, "a.csv")
    arguments = ("train", "--model", "ridge-ar", "--train", "a.csv", "--out", "out", "--seeds", "1", "--covariates")
    assert call(*arguments, "none")[0] == 0
    assert load_model(Path("out/ridge-ar.safetensors"))[0].covariates == ()
    assert call(*arguments, "temperature_c")[0] == 0
    assert load_model(Path("out/ridge-ar.safetensors"))[0].covariates == ("temperature_c",)
    code, _, err = call(*arguments, "waiting")
    assert code == 2
    assert "a.csv: has no covariate waiting. Give --covariates temperature_c or none" in err


def test_bad_training_is_told(call: Callable[..., Any]) -> None:
    write(0, "a.csv")
    for arguments, message in (
        (("--model", "oracle"), "model 'oracle': is unknown"),
        (("--model", "oracle", "--train", "gone.csv"), "model 'oracle': is unknown"),
        (("--device", "tpu"), "--device tpu: is unknown"),
        (("--hidden", "10"), "--hidden 10: is no multiple of 4"),
    ):
        code, _, err = call("train", "--train", "a.csv", "--out", "out", *arguments)
        assert code == 2
        assert message in err
    code, _, err = call("backtest", "--test", "a.csv", "--models", "nothing.safetensors")
    assert code == 2
    assert "nothing.safetensors: no such file" in err
