"""`llmcluster validate` and `calibrate`, from arguments to files, with a source small enough to be checked by hand."""

import csv
import json
import re
import sys
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmcluster.experiments.fidelity import registry
from llmcluster.experiments.fidelity.figures import flat, to_toml
from llmcluster.experiments.fidelity.leave_out import leave_one_model_out, without_scales
from llmcluster.experiments.fidelity.split import FIT, HELD_OUT, part
from llmcluster.simulator.catalog import Catalog
from llmcluster.simulator.errors import InputError
from llmcluster.tests import toy_source

IDLE_W = Catalog.builtin().gpu("H100-80GB").power.idle_w
FITTED = [name for name in "abcdefghijklmnop" if part(name) == FIT]
HELD = [name for name in "abcdefghijklmnop" if part(name) == HELD_OUT]
Cells = Iterable[tuple[str, str, str, float, float]]
Call = Callable[..., Any]


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, f"{registry.__package__}.sources.toy", toy_source)
    monkeypatch.setitem(registry.SOURCES, "toy", "toy:Toy")
    monkeypatch.setitem(registry.SOURCES, "fitted-toy", "toy:FittedToy")


def write(path: Path, cells: Cells) -> Path:
    """Rows of GPU, model, configuration, share, and measured power over idle power."""
    lines = [f"{gpu},{model},{setup},{share!r},{times * IDLE_W!r}" for gpu, model, setup, share, times in cells]
    path.write_text("\n".join([toy_source.HEADER, *lines]) + "\n")
    return path


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """Fit rows measured at 2 and 4 times idle power, a held-out row at half of it, and one on an unknown GPU."""
    h100 = [("H100-80GB", "M", FITTED[0], 1.0, 2.0), ("H100-80GB", "M", FITTED[1], 1.0, 4.0)]
    others = [("H100-80GB", "N", HELD[0], 1.0, 0.5), ("X1", "N", FITTED[2], 1.0, 1.0)]
    return write(tmp_path / "toy.csv", [*h100, *others])


def read_csv(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(Path(name).read_text().splitlines()))


def advance(done: int) -> None:
    """Is told how many rows are done."""


def test_validate_gives_pure_json_of_the_published_layout(call: Call, measured: Path) -> None:
    code, out, err = call("validate", "toy", measured, "--json", "-", "--out", "rows.csv")
    assert code == 0
    result = json.loads(out)
    keys = {"median_abs_rel_error", "interval_95", "bias", "rows"}
    assert set(result) == keys | {"source", "groups", "skipped", "assumed"}
    assert (result["source"], result["rows"]) == ("toy", 4)
    assert result["median_abs_rel_error"] == pytest.approx({"power": 0.75, "double": 0.75})
    assert result["bias"] == pytest.approx({"power": -0.5, "double": -0.5})
    assert result["interval_95"]["power"] == pytest.approx([0.5, 1.0])
    assert set(result["groups"]) == {"gpu", "model", "part"}
    assert all(set(one) == keys for values in result["groups"].values() for one in values.values())
    parts = result["groups"]["part"]
    assert (parts["fit"]["rows"], parts["held_out"]["rows"]) == (3, 1)
    assert parts["fit"]["median_abs_rel_error"]["power"] == pytest.approx(0.625)
    assert parts["held_out"]["median_abs_rel_error"]["power"] == pytest.approx(1.0)
    assert parts["held_out"]["interval_95"]["power"] is None
    assert result["groups"]["gpu"]["X1"] == {
        "rows": 1,
        "median_abs_rel_error": {},
        "interval_95": {},
        "bias": {},
    }
    reason = {"reason": "the catalogue has no GPU X1", "remedy": "Give its entry with --catalog FILE"}
    assert result["skipped"] == [{"place": f"{measured}:5", "quantities": ["power", "double"], **reason}]
    assert result["assumed"] == ["power is a share of idle power"]
    assert "1 of 4 rows cannot be compared in full" in err
    assert re.search(r"1 +the catalogue has no GPU X1\. Give its entry with --catalog FILE", err)
    assert "the catalogue has no GPU X1: toy.csv:5" in err
    assert "engine 1.2.3" in err

    rows = read_csv("rows.csv")
    assert [row["part"] for row in rows] == ["fit", "fit", "held_out", "fit"]
    assert float(rows[0]["error_power"]) == pytest.approx(-0.5)
    assert float(rows[2]["simulated_double"]) == pytest.approx(2 * IDLE_W)
    assert rows[3]["simulated_power"] == rows[3]["error_power"] == ""


@pytest.mark.parametrize(("factor", "times"), [(1e-3, "1e+03"), (1e3, "0.001")])
def test_validate_asks_for_the_unit_where_all_is_far_off(call: Call, tmp_path: Path, factor: float, times: str) -> None:
    path = write(tmp_path / "far.csv", [("H100-80GB", "m", "a", 1.0, factor)] * 2)
    code, out, err = call("validate", "toy", path, "--json", "-")
    (one,) = (line for line in json.loads(out)["warnings"] if line.startswith("power"))
    assert (
        code == 0
        and one == f"power is simulated {times} times as large as measured, in the median: are the files in W?"
    )
    assert "are the files in W?" in err


def test_validate_looks_for_the_folder_before_the_work(call: Call, measured: Path) -> None:
    code, out, err = call("validate", "toy", measured, "--out", "none/rows.csv", "--json", "-")
    assert (code, out) == (2, "")
    assert "--out none/rows.csv: its folder does not exist" in err and "simulating" not in err


def test_validate_speaks_to_people(call: Call, measured: Path) -> None:
    code, out, err = call("validate", "toy", measured, "--json", "v.json")
    assert code == 0
    assert json.loads(Path("v.json").read_text())["rows"] == 4
    for said in ("power, W", "75.0 %", "50.0 … 100.0", "held_out", "toy.csv:4", "+100.0 %", "assumed: power is"):
        assert said in out
    assert "simulating rows" in err
    assert "simulating rows" not in out


def test_validate_takes_figures_from_a_catalogue_file(call: Call, measured: Path, tmp_path: Path) -> None:
    more = tmp_path / "more.toml"
    more.write_text(f'[gpus.X1]\nlike = "H100-80GB"\npower.idle_w = {1.5 * IDLE_W}\n')
    result = json.loads(call("validate", "toy", measured, "--catalog", more, "--json", "-")[1])
    assert result["skipped"] == []
    assert result["groups"]["gpu"]["X1"]["median_abs_rel_error"]["power"] == pytest.approx(0.5)
    assert call("validate", "toy", measured, "--catalog", tmp_path / "none.toml")[0] == 2


def test_validate_never_looks_at_what_was_measured(call: Call, measured: Path, tmp_path: Path) -> None:
    call("validate", "toy", measured, "--out", "first.csv")
    text = [line.split(",") for line in measured.read_text().splitlines()]
    changed = tmp_path / "changed.csv"
    changed.write_text("\n".join([toy_source.HEADER, *(",".join([*cells[:-1], "7"]) for cells in text[1:])]))
    call("validate", "toy", changed, "--out", "second.csv")
    simulated = [[row["simulated_power"] for row in read_csv(name)] for name in ("first.csv", "second.csv")]
    assert simulated[0] == simulated[1]


@pytest.mark.parametrize("verb", ["validate", "calibrate"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the file is empty"),
        (toy_source.HEADER, "no row after the header"),
        ("gpu,model,setup,share\nA,M,a,1", "no column power"),
        (f"{toy_source.HEADER}\nA,M,a,1,watt", ":2: power is 'watt', not a number"),
        (f"{toy_source.HEADER}\nA,M,a,1,nan", ":2: power is 'nan', not a number"),
        (f"{toy_source.HEADER}\nA,M,a,1,1\nA,M,a,1", ":3: 4 fields where the header has 5"),
        (f"{toy_source.HEADER}\nA,M,,1,1", ":2: setup is empty"),
        (f"{toy_source.HEADER}\nA,M,a,-1,1", ":2: share is -1"),
        (f'{toy_source.HEADER}\nA,M,"a,1,1', "is no CSV file"),
    ],
)
def test_bad_files_are_named(call: Call, tmp_path: Path, verb: str, text: str, said: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    out = ["--out", "x.toml"] if verb == "calibrate" else []
    code, shown, err = call(verb, "fitted-toy", path, *out)
    assert (code, shown) == (2, "")
    assert said in err
    assert not Path("x.toml").exists()


def test_bad_arguments_are_named(call: Call, measured: Path, tmp_path: Path) -> None:
    code, _, err = call("validate", "nonsense", measured)
    assert code == 2
    assert "unknown name 'nonsense'. Known: " in err and "energy-inference" in err
    assert call("validate", "toy")[0] == 2
    assert "no such file" in call("validate", "toy", tmp_path / "none.csv")[2]
    unknown = write(tmp_path / "unknown.csv", [("X1", "M", "a", 1.0, 1.0)])
    said = "none of them can be compared: the catalogue has no GPU X1 (1 of them). Give its entry with --catalog FILE"
    assert said in call("validate", "toy", unknown)[2]
    code, _, err = call("calibrate", "toy", measured, "--out", "x.toml")
    assert code == 2
    assert "nothing of the catalogue is fitted to it" in err
    code, _, err = call("calibrate", "fitted-toy", measured, "--out", "none/x.toml")
    assert code == 2
    assert "its folder does not exist" in err
    held_out = write(tmp_path / "held_out.csv", [("H100-80GB", "M", HELD[0], 1.0, 2.0)])
    code, _, err = call("calibrate", "fitted-toy", held_out, "--out", "x.toml")
    assert code == 2
    assert "none of the 1 rows is in the fit part" in err and "--all-rows" in err
    assert list(Path().iterdir()) == []


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """Two fit configurations at 2 and 4 times idle power, and a held-out one that would spoil the median."""
    setups = [
        (FITTED[0], 2.0),
        (FITTED[0], 2.0),
        (FITTED[1], 4.0),
        (HELD[0], 100.0),
        (HELD[0], 100.0),
        (HELD[0], 100.0),
    ]
    return write(tmp_path / "three.csv", [("H100-80GB", "M", setup, 1.0, times) for setup, times in setups])


def test_calibrate_reads_the_fit_part_and_writes_a_catalogue(call: Call, three: Path) -> None:
    code, out, _ = call("calibrate", "fitted-toy", three, "--out", "x.toml", "--json", "c.json")
    assert code == 0
    assert Catalog.builtin().with_file("x.toml").gpu("H100-80GB").power.idle_w == pytest.approx(2 * IDLE_W)
    text = Path("x.toml").read_text()
    assert text.startswith(
        "# Written by `llmcluster calibrate fitted-toy`: fitted to 3 rows of the fit part, of 6 in all"
    )
    result = json.loads(Path("c.json").read_text())
    assert result["files"]["three.csv"] in text
    assert result["figures"] == {"gpus.H100-80GB.power.idle_w": pytest.approx(2 * IDLE_W)}
    assert result["interval_95"]["gpus.H100-80GB.power.idle_w"] == pytest.approx([IDLE_W, 4 * IDLE_W])
    assert result["residuals"]["median_abs_rel_error"]["power"] == pytest.approx(0.0, abs=1e-9)
    assert result["residuals"]["p90_abs_rel_error"]["power"] == pytest.approx(0.4)
    assert result["configurations"][FITTED[1]]["median_abs_rel_error"]["power"] == pytest.approx(0.5)
    assert set(result["configurations"]) == set(FITTED[:2])
    assert "gpus.H100-80GB.power.idle_w" in out
    assert "figures: x.toml" in out
    assert sorted(p.name for p in Path().iterdir()) == ["c.json", "x.toml"]


def test_calibrate_says_when_nothing_is_held_out(call: Call, three: Path) -> None:
    code, out, _ = call("calibrate", "fitted-toy", three, "--out", "x.toml", "--all-rows")
    assert code == 0
    assert "fitted to 6 rows of both parts: none is held out" in out
    assert Catalog.builtin().with_file("x.toml").gpu("H100-80GB").power.idle_w == pytest.approx(52 * IDLE_W)


def test_the_same_calibration_writes_the_same_bytes(call: Call, three: Path) -> None:
    texts = set()
    for name in ("x.toml", "y.toml"):
        call("calibrate", "fitted-toy", three, "--out", name)
        texts.add(Path(name).read_bytes())
    assert len(texts) == 1


def test_the_bootstrap_fits_to_configurations_drawn_anew(call: Call, three: Path) -> None:
    """Of two configurations a draw holds one, the other or both: medians of 2, 4, and 2 (of 2, 2 and 4)."""
    told = call("calibrate", "fitted-toy", three, "--out", "x.toml", "--bootstrap", 200, "--json", "-")[1]
    assert json.loads(told)["interval_95"] == {"gpus.H100-80GB.power.idle_w": pytest.approx([2 * IDLE_W, 4 * IDLE_W])}


def test_a_fit_that_the_catalogue_refuses_is_not_written(
    call: Call, three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("x.toml").write_text("before")
    monkeypatch.setattr(toy_source, "median", lambda watts: -1.0)
    code, _, err = call("calibrate", "fitted-toy", three, "--out", "x.toml")
    assert code == 2
    assert "idle_w" in err
    assert Path("x.toml").read_text() == "before"
    assert [p.name for p in Path().iterdir()] == ["x.toml"]


def test_each_model_is_predicted_from_the_others(call: Call, tmp_path: Path) -> None:
    """M runs at twice idle power, N at four times: M is predicted twice too high, N half, from fit rows only."""
    cells = [("H100-80GB", "M", FITTED[0], 1.0, 2.0), ("H100-80GB", "M", HELD[0], 1.0, 2.0)]
    cells += [("H100-80GB", "N", FITTED[1], 1.0, 4.0), ("H100-80GB", "N", HELD[1], 1.0, 40.0)]
    path = write(tmp_path / "two.csv", [*cells, ("A40", "N", FITTED[2], 1.0, 1.0)])
    source = toy_source.FittedToy()
    rows = source.read([path], Catalog.builtin())
    found = leave_one_model_out(source, rows, Catalog.builtin(), 0, np.random.default_rng(0), advance)
    assert found.error["power"] == pytest.approx([1.0, 1.0, -0.5, -0.95, np.nan], nan_ok=True)
    told = json.loads(
        call("calibrate", "fitted-toy", path, "--out", "x.toml", "--leave-one-model-out", "--json", "-")[1]
    )["leave_one_model_out"]
    assert told["models"]["M"]["median_abs_rel_error"]["power"] == pytest.approx(1.0)
    assert told["models"]["N"]["bias"]["power"] == pytest.approx(-0.725)
    (alone,) = told["skipped"]
    assert alone["place"] == f"{path}:6" and alone["reason"] == "no fit row of another model is on the row's GPU"


def test_what_the_catalogue_knows_of_the_model_left_out_is_laid_aside(tmp_path: Path) -> None:
    path = tmp_path / "scales.toml"
    scale = '[[scales]]\nmodel = "{}"\ngpu = "H100-80GB"\ntp = {}\ntime = 1.25\nsource = "test"\n'
    path.write_text("".join(scale.format(*one) for one in (("Qwen3-8B", 1), ("Qwen3-8B", 2), ("Qwen3-32B", 2))))
    catalog = Catalog.builtin().with_file(path)
    ignorant = without_scales(catalog, "Qwen3-8B")
    assert [ignorant.scale("Qwen3-8B", "H100-80GB", tp).time for tp in (1, 2)] == [1.0, 1.0]
    assert ignorant.scale("Qwen3-32B", "H100-80GB", 2).time == catalog.scale("Qwen3-8B", "H100-80GB", 2).time == 1.25


def test_one_model_cannot_be_left_out(call: Call, three: Path) -> None:
    code, _, err = call("calibrate", "fitted-toy", three, "--out", "x.toml", "--leave-one-model-out")
    assert code == 2
    assert "needs two of them at least, not 1" in err


@pytest.mark.parametrize("verb", ["validate", "calibrate"])
def test_help_shows_an_example_and_the_sources(call: Call, verb: str) -> None:
    code, out, _ = call(verb, "--help")
    assert code == 0
    assert f"Example: llmcluster {verb} " in out
    assert "energy-inference" in out


def test_every_source_offers_what_it_must() -> None:
    for name in registry.SOURCES:
        if "toy" not in name:
            source = registry.load(name)
            assert source.name == name
            assert source.title and source.quantities and source.assumed


def test_figures_go_by_dotted_names() -> None:
    scale = {"model": "M-1.5", "gpu": "H200", "tp": 2, "pp": 1, "ep": 1, "time": 1.25, "power": 0.5, "source": "s"}
    tables = {"gpus": {"A": {"tau_s": (np.float64(1.5), 16.0), "calibrated": True, "source": "s"}}, "scales": [scale]}
    assert flat(tables) == {
        "gpus.A.tau_s.0": 1.5,
        "gpus.A.tau_s.1": 16.0,
        "scales.M-1.5.H200.2.1.1.time": 1.25,
        "scales.M-1.5.H200.2.1.1.power": 0.5,
    }
    text = to_toml(tables, ["one", "two"])
    assert text.startswith("# one\n# two\n\n")
    assert tomllib.loads(text) == {
        "gpus": {"A": {"tau_s": [1.5, 16.0], "calibrated": True, "source": "s"}},
        "scales": [scale],
    }


def test_the_registry_names_what_it_knows() -> None:
    with pytest.raises(InputError, match=r"unknown name 'x'\. Known: .*toy"):
        registry.load("x")
