"""Streams: chunk by chunk they are what the whole is, they know their faults, and they do not hold the whole."""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcluster.simulator.errors import InputError
from llmcluster.simulator.workload.arrivals import Gamma, Poisson, Renewal
from llmcluster.simulator.workload.combine import concatenate, repeat
from llmcluster.simulator.workload.fitted import FittedLengths
from llmcluster.simulator.workload.formats import WRITERS, read_workload, write_workload
from llmcluster.simulator.workload.modulation import Diurnal
from llmcluster.simulator.workload.stream import ROWS, RequestStream, repeated
from llmcluster.simulator.workload.table import COLUMNS, OPEN_LOOP, RequestTable

PS = 10**12
LENGTHS = FittedLengths(kind="azure-2023-conv")
PLAIN = ("arrival_ps", "prompt_tokens", "output_tokens")
VIDUR = "arrived_at,num_prefill_tokens,num_decode_tokens\n"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
MOONCAKE = '{{"timestamp": {}, "input_length": {}, "output_length": 2, "hash_ids": [{}, {}]}}\n'
TRACES = {
    "azure.csv": AZURE + "".join(f"2023-11-16 18:15:{i:02d}.6805900,{i + 1},7\n" for i in range(60)),
    "burst.csv": BURST + "".join(f"{i}.5,GPT-{i % 5},{9 + i},{i % 3},0,API log\n" for i in range(60)),
    "vidur.csv": VIDUR + "".join(f"{i}.000000000001,{i + 1},3\n" for i in range(5, 60)),
    "mooncake.jsonl": "".join(MOONCAKE.format(3 * i, 1024 + i, i, i + 1) for i in range(60)),
}


def same(a: RequestTable, b: RequestTable) -> bool:
    names = (*COLUMNS, "prefix_offset", "prefix_hash")
    scalars = ("models", "slo_classes", "prefix_block_tokens")
    return all(getattr(a, k).tobytes() == getattr(b, k).tobytes() for k in names) and all(
        getattr(a, k) == getattr(b, k) for k in scalars
    )


@st.composite
def tables(draw: st.DrawFn, think: bool = False) -> RequestTable:
    n = draw(st.integers(2, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    blocks = rng.integers(0, 4, n)
    return RequestTable.from_columns(
        np.sort(rng.integers(0, 2**50, n)),
        rng.integers(1, 9, n),
        rng.integers(1, 9, n),
        model=rng.integers(-1, 2, n),
        slo_class=rng.integers(0, 2, n),
        session=rng.integers(0, 3, n) if think else rng.integers(-1, 3, n),
        think_ps=rng.integers(-1, 5, n) if think else np.full(n, OPEN_LOOP),
        timeout_ps=rng.integers(-1, 5, n),
        prefix_offset=np.concatenate([[0], np.cumsum(blocks)]),
        prefix_hash=rng.integers(0, 9, blocks.sum()),
        models=("a", "b"),
        slo_classes=("x", "y"),
        prefix_block_tokens=512,
    )


def sizes(stream: RequestStream) -> list[int]:
    return [len(chunk) for chunk in stream]


@given(tables(), st.integers(1, 50))
def test_a_table_in_chunks_is_the_table(table: RequestTable, rows: int) -> None:
    stream = RequestStream.from_table(table, rows)
    assert all(n == rows for n in sizes(stream)[:-1]) and sizes(stream)[-1] <= rows
    assert same(stream.table(), table)
    assert same(stream.table(), table)  # it plays anew
    names = stream.models, stream.slo_classes, stream.prefix_block_tokens
    assert names == (table.models, table.slo_classes, table.prefix_block_tokens)


@given(tables(think=True), st.integers(1, 50))
def test_parquet_in_chunks_is_the_table(
    tmp_path_factory: pytest.TempPathFactory, table: RequestTable, rows: int
) -> None:
    path = tmp_path_factory.mktemp("parquet") / "t.parquet"
    table.to_parquet(path)
    stream = RequestStream.from_file(path, rows=rows, closed_loop=True)
    assert max(sizes(stream)) <= rows
    assert same(stream.table(), table)
    write_workload(stream, path.with_name("again.parquet"), "parquet")
    assert same(read_workload(path.with_name("again.parquet")), table)


@pytest.mark.parametrize("rows", [1, 7, 1000])
@pytest.mark.parametrize("name", TRACES)
def test_a_trace_in_chunks_is_the_trace(tmp_path: Path, name: str, rows: int) -> None:
    path = tmp_path / name
    path.write_text(TRACES[name])
    stream = RequestStream.from_file(path, rows=rows)
    assert max(sizes(stream)) <= rows
    assert same(stream.table(), read_workload(path))


def test_failures_of_burstgpt_are_counted_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "burst.csv"
    path.write_text(BURST + "0,b,0,0,0,x\n1,c,1,0,1,x\n2,a,1,1,2,x\n5,b,1,1,2,x\n6,c,0,0,0,x\n")
    with caplog.at_level(logging.WARNING):
        table = RequestStream.from_file(path, rows=1).table()
    assert [record.getMessage().split(": ")[1] for record in caplog.records] == [
        "dropped 3 failed requests (0 response tokens)"
    ]
    assert table.arrival_ps.tolist() == [0, 3 * PS]
    assert [table.models[i] for i in table.model] == ["a", "b"]


@pytest.mark.parametrize("target", WRITERS)
@pytest.mark.parametrize("name", TRACES)
def test_written_in_chunks_and_read_back_requests_are_the_same(tmp_path: Path, name: str, target: str) -> None:
    path, out = tmp_path / name, tmp_path / f"out.{'parquet' if target == 'parquet' else 'csv'}"
    path.write_text(TRACES[name])
    table = read_workload(path)
    write_workload(RequestStream.from_file(path, rows=11), out, target)
    back = read_workload(out)
    assert all(getattr(back, column).tolist() == getattr(table, column).tolist() for column in PLAIN)
    write_workload(table, tmp_path / "whole", target)
    if target != "parquet":
        assert (tmp_path / "whole").read_bytes() == out.read_bytes()


@given(tables(), st.integers(1, 50), st.integers(1, 5), st.sampled_from([0.37, 1.0, 4.0]))
def test_repeated_and_scaled_is_row_for_row_what_the_whole_is(
    table: RequestTable, rows: int, times: int, factor: float
) -> None:
    expected = repeat(table.scaled(factor), times)
    stream = RequestStream.from_table(table, rows).scaled(factor)
    assert same(repeated(stream, times).table(), expected)
    assert same(repeated(table.scaled(factor), times).table(), expected)


def test_what_cannot_be_repeated() -> None:
    at_once = RequestTable.from_columns([5, 5], [1, 1], [1, 1])
    long = RequestTable.from_columns([0, 80 * 86_400 * PS], [1, 1], [1, 1])
    for play in (lambda t, n: repeated(t, n).table(), repeat):
        with pytest.raises(InputError, match="0 is not positive"):
            play(long, 0)
        with pytest.raises(InputError, match="all requests arrive at once"):
            play(at_once, 2)
        with pytest.raises(InputError, match="2 turns take more than 106 days"):
            play(long, 2)
        assert same(play(at_once, 1), at_once)


@pytest.mark.parametrize(
    "arrivals", [Poisson(rate_per_s=40.0), Gamma(rate_per_s=40.0, cv=2.0)], ids=["poisson", "gamma"]
)
@pytest.mark.parametrize("modulation", [None, Diurnal(period_s=20_000.0, low=0.2, high=1.8)], ids=["even", "diurnal"])
def test_generated_requests_have_the_rate_and_do_not_depend_on_the_chunks(
    arrivals: Renewal, modulation: Diurnal | None
) -> None:
    duration_s = 20_000.0

    def stream(rows: int = ROWS) -> RequestStream:
        rng = np.random.default_rng(5)
        return RequestStream.generated(arrivals, LENGTHS, duration_s, rng, modulation, rows)

    table = stream().table()
    assert len(sizes(stream())) > 2  # more than one block is drawn
    assert same(stream(10_007).table(), table)
    assert table.arrival_ps[-1] < duration_s * PS
    variance = 1.0 if arrivals.kind == "poisson" else 4.0
    assert abs(len(table) - 40 * duration_s) < 5 * np.sqrt(variance * 40 * duration_s)
    gaps = np.diff(table.arrival_ps)
    if modulation is None:
        assert gaps.std() / gaps.mean() == pytest.approx(np.sqrt(variance), rel=0.02)
    else:
        eighth = len(table.between(0, round(duration_s / 8 * PS)))
        expected = (
            40 * duration_s * (0.2 / 8 + 0.8 * (1 / 8 - np.sin(np.pi / 4) / (2 * np.pi)))
        )  # the sinusoid's integral
        assert abs(eighth - expected) < 5 * np.sqrt(variance * expected)
    assert table.prompt_tokens.mean() == pytest.approx(1155, rel=0.03)
    assert table.output_tokens.mean() == pytest.approx(211, rel=0.03)


def test_a_stream_may_be_empty() -> None:
    rng = np.random.default_rng(0)
    stream = RequestStream.generated(Poisson(rate_per_s=1e-9), LENGTHS, 1.0, rng)
    assert sizes(stream) == [0]
    assert sizes(RequestStream.from_table(stream.table())) == [0]


def test_an_empty_parquet_file_is_one_empty_chunk(tmp_path: Path) -> None:
    RequestTable.from_columns([], [], [], models=("m",)).to_parquet(tmp_path / "t.parquet")
    stream = RequestStream.from_file(tmp_path / "t.parquet")
    assert sizes(stream) == [0]
    assert stream.models == ("m",)


def test_closed_loops_are_to_be_loaded_whole() -> None:
    table = RequestTable.from_columns([0, 1, 2], [1] * 3, [1] * 3, session=[0, 0, 0], think_ps=[-1, -1, 7])
    with pytest.raises(InputError, match=r"row 2 waits for the preceding request .*Load the table whole"):
        RequestStream.from_table(table, 2).table()


def parts(*arrivals: list[int]) -> Iterator[RequestTable]:
    return (RequestTable.from_columns(a, [1] * len(a), [1] * len(a)) for a in arrivals)


def test_chunks_follow_one_another_in_time() -> None:
    with pytest.raises(InputError, match=r"here: row 3 arrives before row 2\. Sort"):
        list(RequestStream(lambda: parts([0, 5], [], [9], [8]), "here"))
    assert concatenate(list(RequestStream(lambda: parts([0, 5], [5])))).arrival_ps.tolist() == [0, 5, 5]


FAULTS = {
    "tokens": (VIDUR, "{},5,0\n", "num_decode_tokens is 0. Token counts"),
    "order": (VIDUR, "1,5,5\n", "arrived_at is earlier than on the line before"),
    "word": (VIDUR, "{},5,five\n", "num_decode_tokens is 'five', not an integer"),
    "field": (VIDUR, "{},5\n", "2 fields where the header has 3"),
    "empty": (VIDUR, "{},,5\n", "num_prefill_tokens is empty"),
    "time": (VIDUR, "soon,5,5\n", "arrived_at is 'soon'"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("at", "rows"), [(9, 7), (120_000, 50_000)])
def test_the_line_at_fault_is_named_in_chunks_too(tmp_path: Path, fault: str, at: int, rows: int) -> None:
    head, bad, message = FAULTS[fault]
    lines = [f"{i}.000000000000,5,5\n" for i in range(at + 2)]  # 2 MB: more than is parsed at once
    lines[at] = bad.format(at)
    path = tmp_path / "t.csv"
    path.write_text(head + "".join(lines))
    with pytest.raises(InputError) as told:
        RequestStream.from_file(path, rows=rows).table()
    assert str(told.value).startswith(f"{path}:{at + 2}: {message}")


def test_the_row_at_fault_of_a_table_is_named_in_chunks_too(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    table = RequestTable.from_columns(range(50), [1] * 50, [1] * 50)
    table.output_tokens[33] = 0
    table.to_parquet(path)
    for read in (read_workload, lambda path: RequestStream.from_file(path, rows=8).table()):
        with pytest.raises(InputError, match=r"t\.parquet: row 33 has output_tokens 0"):
            read(path)
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(InputError, match="not a request table"):
        RequestStream.from_file(path).table()


@pytest.mark.parametrize("format", ["parquet", "vidur"])
def test_only_a_few_chunks_are_in_memory(tmp_path: Path, format: str) -> None:
    n, rows = 3_000_000, 10_000
    path = tmp_path / f"t.{format}"
    table = RequestTable.from_columns(np.arange(n) * PS, np.full(n, 5), np.full(n, 5))
    write_workload(RequestStream.from_table(table, 100_000), path, format)
    before = pa.total_allocated_bytes()
    most = 0
    for _ in RequestStream.from_file(path, format, rows):
        most = max(most, pa.total_allocated_bytes() - before)
    assert 0 < most < table.nbytes / 3
