"""The published page: what it says of a source small enough to be checked by hand."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from llmcluster.experiments.fidelity import registry
from llmcluster.experiments.fidelity.documents import DOCUMENTS, Document, Target
from llmcluster.experiments.fidelity.errors import Comparison
from llmcluster.experiments.fidelity.page import crossed
from llmcluster.experiments.fidelity.places import spans
from llmcluster.experiments.fidelity.source import Row, Simulated
from llmcluster.experiments.fidelity.split import FIT, HELD_OUT, part
from llmcluster.experiments.fidelity.validate import as_json, assess, read, validate
from llmcluster.experiments.write_fidelity import DOCS, MISSES, PRIORS, write_fidelity
from llmcluster.simulator.catalog import Catalog
from llmcluster.simulator.errors import InputError
from llmcluster.tests import toy_source

IDLE_W = Catalog.builtin().gpu("H100-80GB").power.idle_w
FITTED = [name for name in "abcdefghijklmnop" if part(name) == FIT]
HELD = [name for name in "abcdefghijklmnop" if part(name) == HELD_OUT]
TARGETS = (
    Target("power", 0.76, {"part": "held_out"}),
    Target("power", 0.74, {"part": "held_out"}),
    Target("power", 0.5, {"model": "M"}),
    Target("power", 2.0, left_out=True),
    Target("power", 0.5, {"gpu": "none"}),
    Target("likeness", 0.85, at_least=True),
    Target("likeness", 0.75, at_least=True),
    Target("likeness", 0.79),
)


class ScoredToy(toy_source.FittedToy):
    name = "scored-toy"

    def summary(self, rows: Sequence[Row], simulated: Sequence[Simulated]) -> dict[str, float]:
        """How many rows were simulated, of five."""
        done = sum(1 for one in simulated if one) / len(rows)
        return {"likeness": done, "likeness_low": done - 0.1, "likeness_high": done + 0.1, "undefined": math.nan}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data and docs; M runs at idle power when fitted to, N at twice and, held out, four times that."""
    monkeypatch.setitem(sys.modules, f"{registry.__package__}.sources.toy", toy_source)
    monkeypatch.setattr(toy_source, "ScoredToy", ScoredToy, raising=False)
    monkeypatch.setitem(registry.SOURCES, "scored-toy", "toy:ScoredToy")
    cells = [("M", FITTED[0], 1.0), ("N", FITTED[1], 2.0), ("N", HELD[0], 4.0), ("N", HELD[1], 4.0)]
    lines = [f"H100-80GB,{model},{setup},1.0,{times * IDLE_W!r}" for model, setup, times in cells]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "toy.csv").write_text("\n".join([toy_source.HEADER, *lines, f"X1,N,{HELD[0]},1,1"]) + "\n")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / MISSES).write_text("- **toys** miss everything.\n")
    (tmp_path / "docs" / PRIORS).write_text("| toys | have no priors |\n")
    return tmp_path


def test_the_page_says_what_was_found(folder: Path) -> None:
    documents = (Document("scored-toy", ("*.csv",), TARGETS), Document("not-yet-readable", ("none.csv",)))
    page = write_fidelity(documents, folder / "data", folder / "docs").read_text()
    asked = [line for line in page.splitlines() if line.startswith("| scored-toy |")]
    assert [line.split("|")[-2].strip() for line in asked] == [
        "met",
        "**missed**",
        "met",
        "met",
        "not simulated",
        "**missed**",
        "met",
        "**missed**",
    ]
    assert "| scored-toy | held out | power | 2 | 75.0 % | 75.0 … 75.0 % | ≤ 74.0 % | **missed** |" in page
    assert "| scored-toy | model left out | power | 4 | 75.0 % |" in page
    assert "| likeness | 5 | 0.800 | 0.700 … 0.900 | ≥ 0.750 | met |" in page
    assert "- **toys** miss everything." in page and "| toys | have no priors |" in page
    assert "| N | 4 | 50.0 / 75.0 / 75.0 |" in page
    assert "| M | 1 | 0.0 / – / 100.0 |" in page
    assert "`toy.csv` (" in page
    assert "- Not compared in power, double, because the catalogue has no GPU X1: toy.csv:6." in page
    assert "| 5 | 4 | 1: the catalogue has no GPU X1 |" in page
    assert str(folder) not in page, "the page is the same on every machine"
    assert "not-yet-readable" not in page


def test_pictures_are_small_and_the_same_every_time(folder: Path) -> None:
    picture = folder / "docs" / "figures" / "fidelity-scored-toy.png"
    found = []
    for _ in range(2):
        page = write_fidelity((Document("scored-toy", ("toy.csv",)),), folder / "data", folder / "docs")
        found.append((page.read_bytes(), picture.read_bytes()))
    assert found[0] == found[1]
    assert found[0][1].startswith(b"\x89PNG")
    assert len(found[0][1]) < 150_000
    assert f"({picture.relative_to(folder / 'docs')})" in found[0][0].decode()


def test_what_is_missing_is_named(folder: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.csv: no such file\. Give the folder"):
        write_fidelity((Document("scored-toy", ("nowhere.csv",)),), folder / "data", folder / "docs")


def test_scores_stand_in_the_json_beside_the_errors(folder: Path) -> None:
    source = ScoredToy()
    rows = read(source, [folder / "data" / "toy.csv"], Catalog.builtin())
    told = as_json(validate(source, rows, Catalog.builtin(), 0, lambda done: None))
    assert told["scores"] == {"likeness": {"value": 0.8, "interval_95": pytest.approx([0.7, 0.9])}}
    plain = assess(
        toy_source.Toy(), Comparison.of(rows, [row.measured for row in rows], ["power"]), np.random.default_rng(0)
    )
    assert "scores" not in as_json(plain)


def test_held_out_errors_are_told_of_each_model_on_each_gpu() -> None:
    cells = [("M", "A", HELD[0], 1.1), ("M", "A", HELD[1], 1.3), ("N", "B", HELD[0], 0.5), ("N", "A", FITTED[0], 9.0)]
    rows = [
        Row(f"x:{n}", setup, {"itl": 1.0, "power": 1.0}, {"gpu": gpu, "model": model})
        for n, (model, gpu, setup, _) in enumerate(cells)
    ]
    compared = Comparison.of(rows, [{"itl": one[-1], "power": 1.0} for one in cells], ("itl", "power"))
    assert crossed(compared)[1][2:] == ["| M | 20.0 / 0.0 (2) | – |", "| N | – | 50.0 / 0.0 (1) |"]
    assert crossed(compared.where(gpu="A")) == [], "a single GPU is told of anyway"
    assert crossed(Comparison.of(rows, [{"power": 1.0}] * 4, ("power",))) == []


def test_consecutive_lines_are_joined() -> None:
    places = ["/a/x.csv:4", "/a/x.csv:3", "/a/x.csv:9", "/b/y.csv:2", "/b/p.csv + q.csv", "/a/x.csv:5"]
    assert spans(places) == "x.csv:3-5, 9; y.csv:2; p.csv + q.csv"


def test_targets_ask_for_what_their_sources_tell() -> None:
    for document in DOCUMENTS:
        if document.source in registry.SOURCES:
            source = registry.load(document.source)
            asked = {target.quantity for target in document.targets}
            assert asked <= set(source.quantities) or hasattr(source, "summary")
    assert len({document.source for document in DOCUMENTS}) == len(DOCUMENTS) == 8


def test_the_shipped_page_has_every_source_and_the_misses() -> None:
    page = (DOCS / "fidelity.md").read_text()
    assert (DOCS / MISSES).read_text().strip() in page
    for document in DOCUMENTS:
        if document.source in registry.SOURCES:
            assert f"\n## {document.source}\n" in page, "run `python -m llmcluster.experiments.write_fidelity`"
            assert (DOCS / "figures" / f"fidelity-{document.source}.png").is_file()
