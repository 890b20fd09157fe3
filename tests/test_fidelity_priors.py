"""How far a model's own figures are trusted: errors of configurations that were left out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from llmcluster.experiments.fidelity.governed_fit import Priors
from llmcluster.experiments.fidelity.sources.mlenergy import MlEnergy
from llmcluster.experiments.fidelity.sources.mlenergy_fit import parts
from llmcluster.experiments.fidelity.sources.mlenergy_priors import left_out_errors, several
from llmcluster.experiments.write_priors import section
from llmcluster.simulator.catalog import Catalog, Scale
from llmcluster.tests.test_fidelity_mlenergy_fit import _rows

CATALOG = replace(Catalog.builtin(), scales={})


def test_what_a_model_has_of_its_own_helps_with_its_other_configuration() -> None:
    source = MlEnergy()
    scale = Scale(model="Qwen3-8B", gpu="H100-80GB", step_s=4e-3, power=1.3, source="a test")
    rows = _rows(source, replace(CATALOG, scales={scale.cut: scale}))
    served = source.served(rows, CATALOG)
    ((_, part),) = parts(rows, served)
    assert several(part) == ["Qwen3-8B|gpqa", "Qwen3-8B|lm-arena-chat"]
    seen: list[int] = []
    free = left_out_errors(rows, served, Priors(step_s=1e-2, factor=1.0), seen.append)
    held = left_out_errors(rows, served, Priors(step_s=1e-6, factor=1e-3), seen.append)
    assert seen == [1, 2, 1, 2]
    assert {len(values) for values in (*free.values(), *held.values())} == {4}
    assert held["itl_offset"] == pytest.approx(held["itl"], abs=1e-3), "an offset that is held to none does nothing"
    assert np.abs(free["itl_offset"]).max() < np.abs(free["itl"]).max()
    assert np.abs(free["power"]).max() < np.abs(held["power"]).max()


def test_the_section_tells_medians_and_means_and_which_widths_are_in_use() -> None:
    names = ("itl", "throughput", "power", "itl_offset", "throughput_offset")
    errors = {name: np.array([-0.01, 0.02, 0.09]) for name in names}
    text = section({Priors(): errors, Priors(step_s=1e-3): errors})
    cells = " | ".join(["2.0 (4.0) %"] * 5)
    assert f"| **3** | **5 %** | {cells} |" in text and f"| 1 | 5 % | {cells} |" in text
    assert "(3 rows)" in text
