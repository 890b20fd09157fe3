"""`llmcluster data`: a real HTTP server on loopback, and every way a download can go wrong."""

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from llmcluster.experiments import data
from llmcluster.simulator.errors import InputError
from llmcluster.simulator.workload import traces
from llmcluster.simulator.workload.combine import repeat
from llmcluster.simulator.workload.formats import READERS, read_workload
from llmcluster.simulator.workload.spec import WorkloadSpec, generate
from llmcluster.simulator.workload.table import RequestTable
from llmcluster.simulator.workload.traces import TRACES, Trace, cache_path

BODY = b"arrived_at,num_prefill_tokens,num_decode_tokens\n0,10,2\n1.5,11,3\n4,12,4\n"
PUBLISHED = Path(os.environ.get("LLMCLUSTER_DATA", Path(__file__).parents[1] / "../shared/data")) / "azure_llm_2023"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/missing.csv":
            self.send_error(404)
            return
        body = BODY.replace(b"10", b"99") if self.path == "/wrong.csv" else BODY
        self.send_response(200)
        if self.path != "/unstated.csv":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:20] if self.path == "/cut.csv" else body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMCLUSTER_CACHE", str(tmp_path / "cache"))
    entry = {"title": "a trace", "format": "vidur", "licence": "none", "citation": "none"}
    url = "http://127.0.0.1:9/good.csv"
    known = {"size_bytes": len(BODY), "sha256": hashlib.sha256(BODY).hexdigest()}
    monkeypatch.setitem(traces.TRACES, "tiny", Trace(url=url, **entry, **known))
    monkeypatch.setitem(traces.TRACES, "unknown", Trace(url=url, **entry))


def leftovers(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file())


def test_fetch_checks_and_keeps(tmp_path: Path, server: str) -> None:
    result = data.fetch("tiny", f"{server}/good.csv")
    assert result["verified"] and result["sha256"] == TRACES["tiny"].sha256
    assert Path(result["path"]).read_bytes() == BODY
    assert Path(result["path"]).is_relative_to(tmp_path / "cache")
    assert leftovers(tmp_path) == ["good.csv"]
    assert data.fetch("tiny")["verified"]  # the second time needs no network: port 9 answers nobody
    table = generate(WorkloadSpec(file="tiny"), 10.0, np.random.default_rng(0))
    assert table.prompt_tokens.tolist() == [10, 11, 12]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/wrong.csv", "SHA-256 is .* was published. Fetch it from http://127.0.0.1:9/good.csv"),
        ("/cut.csv", f"the download ended after 20 of {len(BODY)} bytes. Fetch it again"),
        ("/missing.csv", "the server answered 404 Not Found. Check the connection, or download it by hand and save it"),
    ],
)
def test_bad_answers_leave_nothing_behind(tmp_path: Path, server: str, path: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        data.fetch("tiny", server + path)
    assert leftovers(tmp_path) == []


def test_a_failed_refetch_keeps_the_good_file(server: str) -> None:
    data.fetch("tiny", f"{server}/good.csv")
    with pytest.raises(InputError):
        data.fetch("tiny", f"{server}/wrong.csv", force=True)
    assert cache_path("tiny").read_bytes() == BODY


def test_offline_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no answer \(.*refused.*\). Check the connection, or download it by hand"):
        data.fetch("tiny")
    assert leftovers(tmp_path) == []


def test_a_file_saved_by_hand_is_checked() -> None:
    path = cache_path("tiny")
    path.parent.mkdir(parents=True)
    path.write_bytes(BODY[:-1])
    with pytest.raises(InputError, match=rf"{len(BODY) - 1} bytes where {len(BODY)} were published. Fetch it again"):
        data.fetch("tiny")
    path.write_bytes(BODY)
    assert data.fetch("tiny")["verified"]


def test_unverified_needs_consent(server: str) -> None:
    with pytest.raises(InputError, match=r"its published SHA-256 is not known. Accept what comes with"):
        data.fetch("unknown", f"{server}/unstated.csv")
    arguments = ["fetch", "unknown", "--url", f"{server}/unstated.csv", "--allow-unverified", "--json", "-"]
    result = CliRunner().invoke(data.app, arguments)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["sha256"] == hashlib.sha256(BODY).hexdigest()
    assert "unverified" in result.stderr


@pytest.mark.parametrize("url", ["file:///etc/hostname", "good.csv"])
def test_only_web_addresses(url: str) -> None:
    with pytest.raises(InputError, match="is not a web address"):
        data.fetch("tiny", url)


def test_unknown_and_unfetched_names() -> None:
    with pytest.raises(InputError, match=r"no trace named 'nope'. Give one of azure-2023-conv"):
        data.fetch("nope")
    with pytest.raises(InputError, match=r"has not been fetched. Run `llmcluster data fetch tiny`"):
        generate(WorkloadSpec(file="tiny"), 1.0, np.random.default_rng(0))


def test_list_for_people_and_for_machines(tmp_path: Path) -> None:
    plain = CliRunner().invoke(data.app, ["list"])
    assert plain.exit_code == 0 and "azure-2023-conv" in plain.stdout
    machine = CliRunner().invoke(data.app, ["list", "--json", "-"])
    names = [row["name"] for row in json.loads(machine.stdout)["traces"]]
    assert {"azure-2023-conv", "azure-2023-code", "azure-2024-conv", "burstgpt-1"} <= set(names)
    filed = CliRunner().invoke(data.app, ["list", "--json", str(tmp_path / "list.json")])
    assert filed.exit_code == 0 and filed.stdout
    assert [row["name"] for row in json.loads((tmp_path / "list.json").read_text())["traces"]] == names


def test_convert(tmp_path: Path, server: str) -> None:
    data.fetch("tiny", f"{server}/good.csv")
    out = tmp_path / "out.parquet"
    arguments = ["convert", "tiny", str(out), "--to", "parquet", "--rate-factor", "2", "--repeat", "2", "--json", "-"]
    result = CliRunner().invoke(data.app, arguments)
    assert json.loads(result.stdout) == {"path": str(out), "format": "parquet", "requests": 6, "duration_s": 5.0}
    assert read_workload(out).prompt_tokens.tolist() == [10, 11, 12] * 2
    (tmp_path / "in.txt").write_bytes(BODY)
    arguments = ["convert", str(tmp_path / "in.txt"), str(tmp_path / "out.csv"), "--from", "vidur", "--to", "splitwise"]
    assert CliRunner().invoke(data.app, arguments).exit_code == 0
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 4


@pytest.mark.parametrize("to", ["vidur", "splitwise"])
def test_what_convert_writes_for_others_reads_back_the_same(tmp_path: Path, to: str) -> None:
    rows = "".join(f"{i}.25,GPT-{i % 3},{i + 1},{i % 7},0,API log\n" for i in range(70))
    (tmp_path / "burst.csv").write_text("Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n" + rows)
    arguments = ["convert", str(tmp_path / "burst.csv"), str(tmp_path / "out.csv"), "--to", to, "--repeat", "3"]
    assert CliRunner().invoke(data.app, [*arguments, "--rate-factor", "4"]).exit_code == 0
    expected, back = repeat(read_workload(tmp_path / "burst.csv").scaled(4), 3), read_workload(tmp_path / "out.csv")
    for name in ("arrival_ps", "prompt_tokens", "output_tokens"):
        assert getattr(back, name).tolist() == getattr(expected, name).tolist()


def test_closed_loops_can_be_converted(tmp_path: Path) -> None:
    table = RequestTable.from_columns([0, 1], [1, 1], [1, 1], session=[4, 4], think_ps=[-1, 5])
    table.to_parquet(tmp_path / "a.parquet")
    arguments = ["convert", str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet"), "--to", "parquet"]
    assert CliRunner().invoke(data.app, arguments).exit_code == 0
    assert read_workload(tmp_path / "b.parquet").think_ps.tolist() == [-1, 5]


@pytest.mark.parametrize("command", ["list", "fetch", "convert"])
def test_help_has_an_example(command: str) -> None:
    result = CliRunner().invoke(data.app, [command, "--help"])
    assert result.exit_code == 0 and "Example: llmcluster data" in result.stdout


def test_the_catalogue_holds() -> None:
    for trace in TRACES.values():
        assert trace.format in READERS
        assert trace.url.startswith("http")
        assert trace.sha256 is None or len(trace.sha256) == 64


@pytest.mark.data
@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the Azure 2023 traces are not under LLMCLUSTER_DATA")
@pytest.mark.parametrize("name", ["azure-2023-conv", "azure-2023-code"])
def test_stated_hashes_are_those_of_the_published_files(name: str) -> None:
    trace = TRACES[name]
    body = (PUBLISHED / trace.filename).read_bytes()
    assert (len(body), hashlib.sha256(body).hexdigest()) == (trace.size_bytes, trace.sha256)
