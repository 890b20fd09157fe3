"""What the simulator says of its own figures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from llmcluster.experiments.fidelity.errors import Comparison
from llmcluster.experiments.fidelity.expected import expected_errors as worked_out
from llmcluster.experiments.fidelity.expected import write_expected_errors
from llmcluster.experiments.fidelity.source import Row
from llmcluster.simulator import confidence as told
from llmcluster.simulator.blueprint import Blueprint
from llmcluster.simulator.catalog import Catalog, ModelSpec, Scale
from llmcluster.simulator.confidence import LEVELS, confidence, expected_errors
from llmcluster.simulator.errors import InputError
from llmcluster.simulator.files import read_toml
from llmcluster.simulator.topology import ClusterSpec

CATALOG = replace(Catalog.builtin(), scales={})


def with_scale(**cut: object) -> Catalog:
    scale = Scale.model_validate({"time": 1.1, "source": "a test"} | cut)
    return replace(CATALOG, scales={scale.cut: scale})


def test_levels_follow_from_what_was_fitted() -> None:
    catalog = with_scale(model="Qwen3-8B", gpu="H100-80GB", tp=2)
    assert confidence(catalog, "Qwen3-8B", "H100-80GB", 2).level == "fitted"
    assert confidence(catalog, "Qwen/Qwen3-8B", "h100-80gb", 2, pp=2).calibrated
    assert confidence(catalog, "Qwen3-8B", "H100-80GB", 1).level == "shared"
    assert confidence(catalog, "Qwen3-8B", "H200", 2).level == "carried_over"
    guess = ModelSpec.generic("New-8B", 8_000_000_000, 8_000_000_000)
    assert confidence(replace(catalog, models={"New-8B": guess}), "New-8B", "H100-80GB").level == "guessed"
    with pytest.raises(InputError, match="unknown name 'Qwen9'"):
        confidence(catalog, "Qwen9", "H100-80GB")


def test_every_level_has_an_error_that_was_measured_and_less_is_known_further_down() -> None:
    errors = [expected_errors()[level] for level in LEVELS]
    assert all(0 < one.itl < 1 and 0 < one.power < 1 and one.rows >= 50 for one in errors)
    assert errors[0].itl < errors[1].itl < errors[2].itl


def test_a_line_says_what_to_expect() -> None:
    line = str(confidence(CATALOG, "Qwen3-8B", "H200"))
    assert line.startswith("not calibrated: the figures of another GPU")
    assert f"{expected_errors()['carried_over'].itl:.0%} of ITL" in line
    assert line.endswith("measured rows on B200 and H100-80GB, none on H200)")
    assert str(confidence(CATALOG, "Qwen3-8B", "H100-80GB")).endswith("measured rows on B200 and H100-80GB)")


def test_a_cluster_tells_of_each_of_its_deployments_once() -> None:
    servers = [{"gpu": gpu, "gpus": 2, "tp": tp, "model": "Qwen3-8B"} for gpu, tp in (("H100-80GB", 1), ("H200", 2))]
    spec = ClusterSpec.model_validate({"rows": [{"racks": [{"servers": servers}]}]})
    told_of = Blueprint.of(spec).confidence(CATALOG)
    assert {name: one.level for name, one in told_of.items()} == {
        "Qwen3-8B on H100-80GB (tp 1)": "shared",
        "Qwen3-8B on H200 (tp 2)": "carried_over",
    }


class Doubled:
    """Runs whose ITL is 2 ms, simulated as what the catalogue says of the GPU and the model."""

    def simulate(self, rows, catalog, seed, advance):  # type: ignore[no-untyped-def]
        return [
            {
                "itl": 3.0 if catalog.model(row.groups["model"]).guessed else 2.2,
                "power": catalog.gpu(row.groups["gpu"]).power.idle_w,
            }
            for row in rows
        ]


def test_expected_errors_are_medians_over_the_runs(tmp_path) -> None:  # type: ignore[no-untyped-def]
    idle = {gpu: CATALOG.gpu(gpu).power.idle_w for gpu in ("B200", "H100-80GB")}
    rows = [
        Row(
            f"a:{n}",
            f"c{n}",
            {"itl": 2.0, "power": idle[gpu]},
            {"gpu": gpu, "model": "Qwen3-8B", "calibrated": "yes"},
        )
        for n, gpu in enumerate(["B200", "H100-80GB"] * 8)
    ]
    same = Comparison.of(rows, [{"itl": 2.1, "power": row.measured["power"]} for row in rows], ("itl", "power"))
    seen: list[int] = []
    errors = worked_out(Doubled(), rows, same, same, 0, seen.append)  # type: ignore[arg-type]
    assert seen == [1, 2]
    assert errors["fitted"]["itl"] == errors["shared"]["itl"] == 0.05 and errors["shared"]["rows"] == 16
    assert errors["guessed"]["gpus"] == ["B200", "H100-80GB"]
    assert errors["carried_over"]["itl"] == 0.1 and errors["guessed"]["itl"] == 0.5
    watts = {gpu: CATALOG.gpu(gpu).cap_max_w for gpu in idle}
    swapped = [
        abs(idle[a] * watts[b] / watts[a] / idle[b] - 1) for a, b in (("B200", "H100-80GB"), ("H100-80GB", "B200"))
    ]
    assert errors["carried_over"]["power"] == pytest.approx(np.median(swapped), abs=1e-3)
    write_expected_errors(errors, tmp_path / "errors.toml")
    assert read_toml(tmp_path / "errors.toml") == errors


def test_the_shipped_file_is_where_the_command_writes_it() -> None:
    assert (
        told.EXPECTED_ERRORS.read_text().splitlines()[1].startswith("# Written by `python -m llmcluster.experiments.w")
    )


def test_the_page_tells_the_same() -> None:
    page = (told.EXPECTED_ERRORS.parents[2] / "docs" / "fidelity.md").read_text()
    for level, one in expected_errors().items():
        assert f"| {told.MEANING[level]} | {one.rows} | {100 * one.itl:.1f} % | {100 * one.power:.1f} % |" in page
