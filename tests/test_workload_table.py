"""The request table itself: what it refuses, slices, scales, merges and writes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcluster.simulator.errors import InputError
from llmcluster.simulator.workload.combine import merge, repeat
from llmcluster.simulator.workload.table import COLUMNS, RequestTable

PS = 10**12


@st.composite
def tables(draw: st.DrawFn) -> RequestTable:
    n = draw(st.integers(1, 20))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    blocks = rng.integers(0, 4, n)
    return RequestTable.from_columns(
        np.sort(rng.integers(0, 2**62, n)),
        rng.integers(1, 9, n),
        rng.integers(1, 9, n),
        model=rng.integers(-1, 2, n),
        session=rng.integers(0, 3, n),
        think_ps=rng.integers(-1, 5, n),
        timeout_ps=rng.integers(-1, 5, n),
        prefix_offset=np.concatenate([[0], np.cumsum(blocks)]),
        prefix_hash=rng.integers(-(2**63), 2**63 - 1, blocks.sum()),
        models=("a", "b"),
        slo_classes=("x", "y"),
        prefix_block_tokens=512,
    )


def same(a: RequestTable, b: RequestTable) -> bool:
    names = (*COLUMNS, "prefix_offset", "prefix_hash")
    scalars = ("models", "slo_classes", "prefix_block_tokens")
    return all(getattr(a, k).tobytes() == getattr(b, k).tobytes() for k in names) and all(
        getattr(a, k) == getattr(b, k) for k in scalars
    )


def hashes(table: RequestTable, row: int) -> list[int]:
    return table.prefix_hash[table.prefix_offset[row] : table.prefix_offset[row + 1]].tolist()


def test_defaults_are_an_open_loop_without_session() -> None:
    table = RequestTable.from_columns([0, 1], [1, 1], [1, 1])
    assert table.think_ps.tolist() == table.session.tolist() == [-1, -1]
    assert table.prefix_offset.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"arrival_ps": [5, 4]}, "row 1 arrives before row 0"),
        ({"arrival_ps": [-1, 4]}, "the first arrival is negative"),
        ({"prompt_tokens": [1, 0]}, "row 1 has prompt_tokens 0"),
        ({"output_tokens": [-3, 1]}, "row 0 has output_tokens -3"),
        ({"prompt_tokens": [1]}, "column prompt_tokens has shape (1,)"),
        ({"think_ps": [-1, 0]}, "a request with a think time has no session"),
    ],
)
def test_bad_columns_are_named(columns: dict[str, list[int]], message: str) -> None:
    good = {"arrival_ps": [0, 1], "prompt_tokens": [1, 1], "output_tokens": [1, 1]}
    with pytest.raises(InputError) as told:
        RequestTable.from_columns(**(good | columns), source="here")
    assert str(told.value).startswith(f"here: {message}.")


@given(tables())
def test_parquet_round_trip(tmp_path_factory: pytest.TempPathFactory, table: RequestTable) -> None:
    path = tmp_path_factory.mktemp("parquet") / "table.parquet"
    table.to_parquet(path)
    assert same(RequestTable.from_parquet(path), table)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_parquet_that_is_none(tmp_path) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(InputError, match=r"x\.parquet: not a request table .*`llmcluster data convert`"):
        RequestTable.from_parquet(path)


@given(tables(), st.integers(0, 2**62), st.integers(0, 2**62))
def test_between_keeps_exactly_the_window(table: RequestTable, a: int, b: int) -> None:
    start, stop = sorted((a, b))
    part = table.between(start, stop)
    rows = [i for i, t in enumerate(table.arrival_ps) if start <= t < stop]
    assert (part.arrival_ps + start).tolist() == table.arrival_ps[rows].tolist()
    assert [hashes(part, i) for i in range(len(part))] == [hashes(table, i) for i in rows]


def test_scaling_is_exact_past_the_precision_of_doubles() -> None:
    late = 90_000 * PS + 1
    table = RequestTable.from_columns([late], [1], [1])
    assert table.scaled(1.0).arrival_ps[0] == late
    assert table.scaled(0.5).arrival_ps[0] == 2 * late
    with pytest.raises(InputError, match="rate_factor"):
        table.scaled(0.0)


@given(st.lists(tables(), min_size=1, max_size=4))
def test_merge_is_sorted_and_loses_nothing(parts: list[RequestTable]) -> None:
    merged = merge(parts)
    assert len(merged) == sum(map(len, parts))
    assert (np.diff(merged.arrival_ps) >= 0).all()
    given = sorted((int(t.arrival_ps[i]), hashes(t, i)) for t in parts for i in range(len(t)))
    assert sorted((int(merged.arrival_ps[i]), hashes(merged, i)) for i in range(len(merged))) == given
    assert len(np.unique(merged.session)) == sum(len(np.unique(t.session)) for t in parts)


def test_merge_refuses_two_granularities() -> None:
    def table(block: int) -> RequestTable:
        return RequestTable.from_columns(
            [0], [600], [1], prefix_offset=[0, 1], prefix_hash=[7], prefix_block_tokens=block
        )

    with pytest.raises(InputError, match="per 16 and per 512 tokens"):
        merge([table(16), table(512)])


def test_repeat_keeps_the_rate_and_renews_sessions() -> None:
    table = RequestTable.from_columns([0, 10, 20], [1, 2, 3], [1, 1, 1], session=[0, 0, -1])
    twice = repeat(table, 2)
    assert twice.arrival_ps.tolist() == [0, 10, 20, 30, 40, 50]
    assert twice.session.tolist() == [0, 0, -1, 1, 1, -1]
    with pytest.raises(InputError, match="0 is not positive"):
        repeat(table, 0)
    with pytest.raises(InputError, match="all requests arrive at once"):
        repeat(RequestTable.from_columns([0, 0], [1, 1], [1, 1]), 2)
