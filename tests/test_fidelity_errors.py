"""The published split, and errors of rows worked by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcluster.experiments.fidelity.errors import Comparison, Omission, Outlier, summarise
from llmcluster.experiments.fidelity.skipped import NO_FIGURE, ZERO, Skipped, missing
from llmcluster.experiments.fidelity.source import Outcome, Row
from llmcluster.experiments.fidelity.split import FIT, HELD_OUT, part
from llmcluster.simulator.catalog import Catalog

NAN = math.nan
WHY = Skipped("no such GPU", "Give it")


def rows_of(*cells: tuple[str, float]) -> list[Row]:
    """Rows on two GPUs in turn, one quantity each."""
    return [Row(f"f:{i + 2}", name, {"q": v}, {"gpu": "AB"[i % 2]}) for i, (name, v) in enumerate(cells)]


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize(
    ("configuration", "expected"),
    # sha256 of these begins with ca978112ca1bbdca, 3e23e8160039594a, 18ac3e7343f01689, 4a99557e4033c353, …
    [("a", FIT), ("b", HELD_OUT), ("c", FIT), ("d", HELD_OUT), ("é", FIT), ("", FIT), ("Qwen3-8B/H100-80GB/tp1", FIT)],
)
def test_the_split_is_the_published_one(configuration: str, expected: str) -> None:
    assert part(configuration) == expected


def test_the_split_is_the_first_eight_bytes_modulo_ten() -> None:
    assert int("ca978112ca1bbdca", 16) % 10 == 0
    assert int("3e23e8160039594a", 16) % 10 == 6
    assert int("b53eababb9c19df5", 16) % 10 == 5, "5 is the last that is fitted to"


def test_six_in_ten_are_fitted_to() -> None:
    parts = [part(f"configuration {i}") for i in range(10_000)]
    assert parts.count(FIT) == pytest.approx(6000, abs=150)


def test_errors_by_hand() -> None:
    rows = rows_of(("a", 10.0), ("a", 20.0), ("b", 40.0), ("b", 0.0), ("c", 5.0), ("c", 8.0))
    outcomes: list[Outcome] = [{"q": 11.0}, {"q": 15.0}, {"q": 60.0}, {"q": 1.0}, WHY, {"q": math.inf}]
    comparison = Comparison.of(rows, outcomes, ["q"])
    assert comparison.error["q"] == pytest.approx([0.1, -0.25, 0.5, NAN, NAN, NAN], nan_ok=True)
    summary = comparison.summaries(rng())["q"]
    assert (summary.count, summary.median, summary.bias) == (3, pytest.approx(0.25), pytest.approx(0.1))
    assert summary.p90 == pytest.approx(0.25 + 0.8 * 0.25)
    reasons = {5: ZERO, 6: WHY, 7: NO_FIGURE}
    assert comparison.omissions == [Omission(f"f:{line}", ("q",), why) for line, why in reasons.items()]
    assert comparison.simulated[4] == {} and comparison.chosen([4]).omissions[0].why == WHY
    assert comparison.outliers(2) == [
        Outlier("f:4", "q", 40.0, 60.0, pytest.approx(0.5)),
        Outlier("f:3", "q", 20.0, 15.0, pytest.approx(-0.25)),
    ]


def test_what_a_row_did_not_measure_is_no_omission() -> None:
    row = Row("f:2", "a", {"q": 1.0}, {})
    comparison = Comparison.of([row], [{"q": 1.0, "r": 2.0}], ["q", "r"])
    assert comparison.omissions == []
    assert set(comparison.summaries(rng())) == {"q"}


def test_reasons_are_counted_and_the_most_frequent_comes_first() -> None:
    rows = [Row(f"f:{i + 2}", "a", {"q": 0.0 if i == 1 else 1.0, "r": 1.0}, {}) for i in range(4)]
    other = Skipped("too long", "Cut it")
    comparison = Comparison.of(rows, [other, {"q": 1.0, "r": 1.0}, WHY, WHY], ["q", "r"])
    assert {why: [(one.place, one.quantities) for one in some] for why, some in comparison.reasons.items()} == {
        WHY: [("f:4", ("q", "r")), ("f:5", ("q", "r"))],
        other: [("f:2", ("q", "r"))],
        ZERO: [("f:3", ("q",))],
    }
    assert next(iter(comparison.reasons)) == WHY
    assert comparison.omissions[0].as_json() == {
        "place": "f:2",
        "quantities": ["q", "r"],
        "reason": "too long",
        "remedy": "Cut it",
    }


def test_what_the_catalogue_lacks_is_named() -> None:
    catalog = Catalog.builtin()
    assert missing(catalog, gpu="h100-80gb", model="Qwen3-8B") is None
    lacks = [missing(catalog, gpu="X1", model="M"), missing(catalog, gpu="H200", model="M"), missing(catalog, gpu="X1")]
    assert [why and why.reason.rpartition("no ")[2] for why in lacks] == ["GPU X1", "model M", "GPU X1"]


def test_groups_hold_the_part_and_every_row_once() -> None:
    rows = rows_of(("a", 1.0), ("b", 1.0), ("c", 1.0), ("d", 1.0))
    comparison = Comparison.of(rows, [{"q": 1.0 + i} for i in range(4)], ["q"])
    assert comparison.groups == {"gpu": {"A": [0, 2], "B": [1, 3]}, "part": {"fit": [0, 2], "held_out": [1, 3]}}
    assert comparison.where(gpu="B", part="held_out").error["q"].tolist() == [1.0, 3.0]
    assert len(comparison.where(gpu="B", part="fit").rows) == len(comparison.where(gpu="C").rows) == 0
    assert len(comparison.where().rows) == 4


def test_the_interval_draws_configurations_not_rows() -> None:
    """Two configurations of 500 equal rows each: a draw holds one, the other or both, so the bounds are the two."""
    errors = np.repeat([0.1, 0.3], 500)
    spread = summarise(errors, np.repeat(["a", "b"], 500), rng())
    assert (spread.low, spread.high) == (pytest.approx(0.1), pytest.approx(0.3))
    assert summarise(errors, np.array([str(i % 500) for i in range(1000)]), rng()).high == pytest.approx(0.2)
    one = summarise(errors, np.repeat("a", 1000), rng())
    assert math.isnan(one.low) and math.isnan(one.high)


def test_the_interval_is_that_of_medians_drawn_one_by_one() -> None:
    draws = np.random.default_rng(7)
    errors, names = draws.normal(0.1, 0.1, 60), np.array([f"c{i % 12}" for i in range(60)])
    found = summarise(errors, names, rng(), resamples=4000)
    medians = []
    for _ in range(4000):
        drawn = draws.integers(12, size=12)
        medians.append(np.median(np.concatenate([np.abs(errors[names == f"c{i}"]) for i in drawn])))
    assert (found.low, found.high) == pytest.approx(np.quantile(medians, [0.025, 0.975]), abs=0.004)
    assert found.low <= found.median <= found.high


@given(st.lists(st.tuples(st.integers(0, 4), st.floats(-2, 2)), min_size=1, max_size=40))
def test_the_order_of_rows_does_not_matter(cells: list[tuple[int, float]]) -> None:
    ordered = sorted(cells, key=lambda cell: (cell[1], cell[0]))
    first, second = (
        summarise(np.array([e for _, e in some]), np.array([str(c) for c, _ in some]), rng(), 50)
        for some in (cells, ordered)
    )
    assert [first.median, first.bias, first.p90] == pytest.approx([second.median, second.bias, second.p90])
    assert [first.low, first.high] == pytest.approx([second.low, second.high], nan_ok=True)
