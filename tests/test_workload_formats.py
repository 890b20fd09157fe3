"""Readers and writers: exact times, every way a file can be wrong, round trips, the published files."""

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcluster.simulator.errors import InputError
from llmcluster.simulator.workload.formats import read_parts, read_workload, write_workload
from llmcluster.simulator.workload.table import RequestTable

DATA = Path(os.environ.get("LLMCLUSTER_DATA", Path(__file__).parents[1] / "../shared/data")) / "azure_llm_2023"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
VIDUR = "arrived_at,num_prefill_tokens,num_decode_tokens\n"
SPLITWISE = "request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,token_size\n"


def read(tmp_path: Path, text: str, name: str = "trace.csv", **options: str) -> RequestTable:
    path = tmp_path / name
    path.write_bytes(text.encode())
    return read_workload(path, **options)


def test_azure_2023_times_are_exact(tmp_path: Path) -> None:
    text = AZURE + "2023-11-16 23:59:59.9999999,374,44\r\n2023-11-17 00:00:00.0000001,2,7"
    table = read(tmp_path, text)
    assert table.arrival_ps.tolist() == [0, 200_000]
    assert table.prompt_tokens.tolist() == [374, 2]
    assert table.output_tokens.tolist() == [44, 7]


def test_azure_2024_times_are_exact(tmp_path: Path) -> None:
    text = AZURE + "2024-05-10 00:00:00.009930+00:00,1,1\n2024-05-10 00:00:01+00:00,1,1\n"
    text += "2024-05-16 23:59:59.999999+00:00,1,1\n"
    assert read(tmp_path, text).arrival_ps.tolist() == [0, 990_070_000_000, 604_799_990_069_000_000]


def test_burstgpt_drops_failures_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = BURST + "5,ChatGPT,472,0,472,API log\n45.5,ChatGPT,1087,230,1317,API log\n"
    text += "60,ChatGPT,0,0,0,API log\n118,GPT-4,417,276,693,Conversation log\n"
    with caplog.at_level(logging.WARNING):
        table = read(tmp_path, text)
    assert "dropped 2 failed requests" in caplog.text
    assert table.arrival_ps.tolist() == [0, 72_500_000_000_000]
    assert [table.models[i] for i in table.model] == ["ChatGPT", "GPT-4"]


def test_mooncake_keeps_full_blocks(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 3, "input_length": 1025, "output_length": 5, "hash_ids": [0, 1, 2]},
        {"timestamp": 3, "input_length": 511, "output_length": 1, "hash_ids": [3]},
        {"timestamp": 10, "input_length": 512, "output_length": 1, "hash_ids": [0]},
    ]
    table = read(tmp_path, "\n".join(map(json.dumps, rows)), "trace.jsonl")
    assert table.arrival_ps.tolist() == [0, 0, 7_000_000_000]
    assert table.prefix_offset.tolist() == [0, 2, 2, 3]
    assert table.prefix_hash.tolist() == [0, 1, 0]
    assert table.prefix_block_tokens == 512


def test_vidur_reads_any_decimal_to_the_nearest_picosecond(tmp_path: Path) -> None:
    text = VIDUR + "0,1,1\n7.437037037037037e-05,1,1\n0.0743703703703749,1,1\n90000.000000000001,1,1\n"
    assert read(tmp_path, text).arrival_ps.tolist() == [0, 74_370_370, 74_370_370_370, 90_000 * 10**12 + 1]


@given(
    st.lists(st.tuples(st.integers(0, 2**57), st.integers(1, 2**31 - 1), st.integers(1, 2**31 - 1)), min_size=1).map(
        sorted
    )
)
def test_vidur_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, int, int]]) -> None:
    arrival, prompt, output = (np.array(column) for column in zip(*rows, strict=True))
    table = RequestTable.from_columns(arrival - arrival[0], prompt, output)
    path = tmp_path_factory.mktemp("vidur") / "out.csv"
    write_workload(table, path, "vidur")
    back = read_workload(path)
    for name in ("arrival_ps", "prompt_tokens", "output_tokens"):
        assert getattr(back, name).tolist() == getattr(table, name).tolist()


def test_splitwise_has_its_columns(tmp_path: Path) -> None:
    table = RequestTable.from_columns([0, 1_500_000_000_000], [3, 4], [5, 6])
    write_workload(table, tmp_path / "out.csv", "splitwise")
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert lines[0] + "\n" == SPLITWISE
    assert lines[2] == "1,2,0,1.500000000000,1,4,6"


T0, T1 = "2023-11-16 18:15:46.6805900", "2023-11-16 18:15:50.9951690"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ": the file is empty. Download it again"),
        (AZURE, ": no request after the header. Download it again"),
        ("a,b\n1,2\n", ":1: the header 'a,b' is of no known format. Name the format"),
        ("TIMESTAMP,GeneratedTokens\n", ":1: no column ContextTokens. The header must name TIMESTAMP, ContextTokens"),
        (AZURE + f"{T0},0,5\n", ":2: ContextTokens is 0. Token counts are at least 1"),
        (AZURE + f"{T0},5,5\n{T1},5,-2\n", ":3: GeneratedTokens is -2. Token counts are at least 1"),
        (AZURE + f"{T0},5,5\n{T1},5,3000000000\n", ":3: GeneratedTokens is 3000000000. Token counts"),
        (AZURE + f"{T0},5,5\n{T1},5,1.5\n", ":3: GeneratedTokens is '1.5', not an integer. Correct or remove"),
        (AZURE + f"{T0},5,5\nyesterday,5,1\n", ":3: TIMESTAMP is 'yesterday', not a time like 2023-11-16"),
        (AZURE + f"{T1},5,5\n{T0},5,1\n", ":3: TIMESTAMP is earlier than on the line before. Sort the lines by"),
        (AZURE + f"{T0},5,5\n{T1},5", ":3: 2 fields where the header has 3. The file is cut or damaged"),
        (AZURE + f"{T0},5,5\n\n{T1},5,5\n", ":3: TIMESTAMP is empty. Fill it in, or remove the line"),
        (AZURE + f"{T0},5,5\n{T1},,5\n", ":3: ContextTokens is empty. Fill it in"),
        (AZURE + f"{T0},5,5,9\n", ":2: 4 fields where the header has 3"),
        (VIDUR + "0,1,1\nsoon,1,1\n", ":3: arrived_at is 'soon'. Give seconds as a decimal number"),
        (VIDUR + "0,1,1\n1e9,1,1\n", ":3: arrived_at is past 106 days. Give seconds"),
        (VIDUR + "0,1,1\n1e30,1,1\n", ":3: arrived_at is '1e30'. Give seconds"),
        (VIDUR + "2.5,1,1\n2.4,1,1\n", ":3: arrived_at is earlier than on the line before"),
        (BURST + "5,GPT-4,7,0,7,API log\n", ": every request failed. Give a trace with response tokens"),
        (SPLITWISE + "0,2,0,0.5,1,7,7\n1,2,0,0.7,4,7,7\n", ":3: batch_size is 4. Give each request a line"),
        (BURST + "5,GPT-4,0,7,7,API log\n", ":2: Request tokens is 0. Token counts are at least 1"),
    ],
)
def test_bad_csv_is_told_by_line_and_column(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError) as told:
        read(tmp_path, text)
    assert str(told.value).startswith(f"{tmp_path / 'trace.csv'}{message}")
    with pytest.raises(InputError) as told:
        list(read_parts(tmp_path / "trace.csv", rows=1))
    assert str(told.value).startswith(f"{tmp_path / 'trace.csv'}{message}")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"timestamp": 0, "input_len'], ":1: not a JSON object ("),
        (["[1]"], ":1: not a JSON object. Each line is one object"),
        (['{"timestamp": 0, "input_length": 4}'], ":1: no field output_length. Each line has"),
        (['{"timestamp": 0, "input_length": true, "output_length": 1}'], ":1: input_length is True. Give an integer"),
        (['{"timestamp": 0, "input_length": 1, "output_length": 0}'], ":1: output_length is 0. Give an integer"),
        (
            [f'{{"timestamp": {t}, "input_length": 1, "output_length": 1}}' for t in (5, 4)],
            ":2: timestamp is earlier than on the line before. Sort",
        ),
        (
            ['{"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": ["a"]}'],
            ":1: hash_ids is not a list of integers",
        ),
    ],
)
def test_bad_jsonl_is_told_by_line(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(InputError) as told:
        read(tmp_path, "\n".join(lines), "trace.jsonl")
    assert str(told.value).startswith(f"{tmp_path / 'trace.jsonl'}{message}")


def test_the_line_is_right_far_into_a_large_file(tmp_path: Path) -> None:
    lines = [f"{i},5,5\n" for i in range(300_000)]
    lines[250_000] = "250000,5,five\n"
    with pytest.raises(InputError, match=r"trace\.csv:250002: num_decode_tokens is 'five'"):
        read(tmp_path, VIDUR + "".join(lines))
    lines[250_000] = "250000,5\n"
    with pytest.raises(InputError, match=r"trace\.csv:250002: 2 fields where the header has 3"):
        read(tmp_path, VIDUR + "".join(lines))


@given(st.data())
def test_a_cut_or_damaged_file_never_fails_otherwise(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    azure = AZURE + f"{T0},374,44\r\n{T1},396,109\r\n"
    mooncake = '{"timestamp": 0, "input_length": 600, "output_length": 1, "hash_ids": [4]}\n' * 2
    burst = BURST + "5,ChatGPT,472,18,490,API log\n45.5,GPT-4,1087,230,1317,API log\n"
    name, text = data.draw(st.sampled_from([("a.csv", azure), ("m.jsonl", mooncake), ("b.csv", burst)]))
    body = bytearray(text[: data.draw(st.integers(0, len(text)))].encode())
    for place, byte in data.draw(st.lists(st.tuples(st.integers(0, 10**4), st.integers(0, 255)), max_size=3)):
        if body:
            body[place % len(body)] = byte
    path = tmp_path_factory.mktemp("cut") / name
    path.write_bytes(body)
    for rows in (None, 1):
        try:
            assert 1 <= sum(map(len, read_parts(path, rows=rows))) <= 3
        except InputError as told:
            assert told.where.startswith(str(path))


def test_paths_and_names_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_workload(tmp_path / "absent.csv")
    with pytest.raises(InputError, match="is a folder"):
        read_workload(tmp_path)
    with pytest.raises(InputError, match=r"no reader for 'excel'. Give one of azure"):
        read(tmp_path, AZURE, format="excel")
    table = RequestTable.from_columns([0], [1], [1])
    with pytest.raises(InputError, match=r"no writer for 'azure'. Give one of parquet"):
        write_workload(table, tmp_path / "x", "azure")
    with pytest.raises(InputError, match="its folder does not exist"):
        write_workload(table, tmp_path / "no" / "x.csv", "vidur")


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="the Azure 2023 traces are not under LLMCLUSTER_DATA")
@pytest.mark.parametrize(("name", "requests"), [("conv", 19_366), ("code", 8_819)])
def test_published_azure_traces(name: str, requests: int) -> None:
    table = read_workload(DATA / f"AzureLLMInferenceTrace_{name}.csv")
    assert len(table) == requests
    assert table.arrival_ps[0] == 0
    assert (table.arrival_ps % 100_000 == 0).all()  # 100 ns stamps
    if name == "conv":
        assert table.arrival_ps[-1] == 3_501_721_937_000_000
        assert round(table.prompt_tokens.mean()) == 1155
        assert round(table.output_tokens.mean()) == 211
