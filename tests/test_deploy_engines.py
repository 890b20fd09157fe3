"""What pages of vLLM, old and new, are read as, and how vLLM is put to sleep, started and stopped."""

from __future__ import annotations

import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcluster.deploy.engines.counters import Counter
from llmcluster.deploy.engines.http import MAX_PAGE_BYTES, fetch
from llmcluster.deploy.engines.launcher import Launcher, Place
from llmcluster.deploy.engines.server import VllmServer
from llmcluster.deploy.engines.vllm import VllmSource
from llmcluster.deploy.readings import EngineReading, ReadingError
from llmcluster.deploy.rehearsal.live import LiveMachine
from llmcluster.deploy.rehearsal.servers import EmulatedServers
from llmcluster.errors import InputError
from llmcluster.simulator.kernels.state import SERVING, SLEEPING

V0 = """\
# HELP vllm:num_requests_running Number of requests currently running on GPU.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{model_name="m"} 3.0
vllm:num_requests_swapped{model_name="m"} 2.0
vllm:num_requests_waiting{model_name="m"} 5.0
vllm:gpu_cache_usage_perc{model_name="m"} 0.25
vllm:cpu_cache_usage_perc{model_name="m"} 0.5
# TYPE vllm:num_preemptions_total counter
vllm:num_preemptions_total{model_name="m"} 4.0
vllm:prompt_tokens_total{model_name="m"} 1000.0
vllm:generation_tokens_total{model_name="m"} 200.0
vllm:time_to_first_token_seconds_bucket{le="0.001",model_name="m"} 0.0
vllm:time_to_first_token_seconds_sum{model_name="m"} 1.5
"""
BOTH_NAMES = """\
vllm:num_requests_running{engine="0",model_name="m"} 1.0
vllm:num_requests_waiting{engine="0",model_name="m"} 0.0
vllm:gpu_cache_usage_perc{engine="0",model_name="m"} 0.125
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.125
vllm:num_preemptions_total{engine="0",model_name="m"} 0.0
vllm:prompt_tokens_total{engine="0",model_name="m"} 10.0
vllm:generation_tokens_total{engine="0",model_name="m"} 20.0
"""
TWO_ENGINES = """\
vllm:num_requests_running{engine="0",model_name="m"} 1.0
vllm:num_requests_running{engine="1",model_name="m"} 6.0
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:num_requests_waiting{engine="1",model_name="m"} 0.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 2.0
vllm:engine_sleep_state{engine="0",model_name="m",sleep_state="awake"} 0.0
vllm:engine_sleep_state{engine="1",model_name="m",sleep_state="awake"} 1.0
vllm:engine_sleep_state{engine="1",model_name="m",sleep_state="discard_all"} 0.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.2
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.4
vllm:num_preemptions_total{engine="0",model_name="m"} 1.0
vllm:num_preemptions_total{engine="1",model_name="m"} 2.0
vllm:prompt_tokens_total{engine="0",model_name="m"} 700.0
vllm:prompt_tokens_total{engine="1",model_name="m"} 300.0
vllm:prompt_tokens_cached_total{engine="0",model_name="m"} 100.0
vllm:generation_tokens_total{engine="0",model_name="m"} 5.0
vllm:generation_tokens_total{engine="1",model_name="m"} 6.0
vllm:generation_tokens_created{engine="0",model_name="m"} 1.7e9
process_resident_memory_bytes 1.2e9
"""


@dataclass
class Pages:
    """A real server of canned answers."""

    pages: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    delay_s: float = 0.0
    url: str = ""

    def say(self, text: str, path: str = "/metrics", status: int = 200) -> None:
        self.pages[path] = status, text.encode()

    @property
    def source(self) -> VllmSource:
        return VllmSource(self.url, 0.5, clock=lambda: 12.5)


@pytest.fixture
def pages() -> Iterator[Pages]:
    own = Pages()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            own.asked.append(self.path)
            time.sleep(own.delay_s)
            status, body = own.pages.get(self.path, (404, b""))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    own.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield own
    server.shutdown()
    server.server_close()
    thread.join()


# --------------------------------------------------------------------------------------------------------------- pages


@pytest.mark.parametrize(
    ("page", "reading"),
    [
        (V0, EngineReading(12.5, 3, 7, 0.25, 1000, 200, 4)),
        (BOTH_NAMES, EngineReading(12.5, 1, 0, 0.125, 10, 20, 0)),
        (TWO_ENGINES, EngineReading(12.5, 7, 2, pytest.approx(0.3), 900, 11, 3)),
    ],
    ids=["V0", "both names", "two engines"],
)
def test_pages_of_all_versions_are_read(pages: Pages, page: str, reading: EngineReading) -> None:
    pages.say(page)
    assert pages.source.read() == reading


def test_counters_go_on_when_the_server_starts_anew(pages: Pages) -> None:
    source = pages.source
    pages.say(V0)
    assert source.read().output_tokens == 200
    pages.say(V0.replace("} 200.0", "} 30.0").replace("} 1000.0", "} 1001.0"))
    again = source.read()
    assert again.output_tokens == 230 and again.prompt_tokens == 1001 and again.preemptions == 4
    pages.say(BOTH_NAMES)  # another version takes its place, with other labels
    assert source.read().output_tokens == 250
    assert source.read().prompt_tokens == 1011


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(0, 100), max_size=3)))
def test_a_counter_never_falls_and_misses_nothing_it_saw(looks: list[dict[str, int]]) -> None:
    counter, last, total = Counter(), 0.0, 0.0
    seen: dict[str, int] = {}
    for look in looks:
        now = counter.add({((name, ""),): float(value) for name, value in look.items()})
        for name, value in look.items():
            total += value - seen[name] if value >= seen.get(name, 0) and name in seen else value
            seen[name] = value
        assert now >= last and now == total
        last = now


def test_unknown_metrics_are_logged_once(pages: Pages, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    pages.say(TWO_ENGINES + 'vllm:kv_share_used{engine="0"} 0.5\nvllm:new_things_total{engine="0"} 1\n')
    source = pages.source
    source.read()
    source.read()
    assert [record.getMessage() for record in caplog.records] == [
        f"{pages.url} has metrics that are not known: vllm:kv_share_used, vllm:new_things"
    ]
    pages.say(TWO_ENGINES + "vllm:yet_another 1\n")
    source.read()
    assert caplog.records[1:][0].getMessage().endswith(": vllm:yet_another") and len(caplog.records) == 2


def test_old_versions_are_asked_whether_they_sleep(pages: Pages) -> None:
    pages.say(V0)
    pages.say('{"is_sleeping": true}', "/is_sleeping")
    assert pages.source.read().asleep
    pages.say('{"is_sleeping": false}', "/is_sleeping")
    assert not pages.source.read().asleep
    pages.pages.pop("/is_sleeping")
    source = pages.source
    pages.asked.clear()
    assert not source.read().asleep and not source.read().asleep
    assert pages.asked == ["/metrics", "/is_sleeping", "/metrics"], "one that has no such page is not asked again"
    pages.say('{"sleeping": 1}', "/is_sleeping")
    with pytest.raises(ReadingError, match="is_sleeping answers"):
        pages.source.read()
    pages.say(TWO_ENGINES.replace('"awake"} 1.0', '"awake"} 0.0'))
    assert pages.source.read().asleep


# --------------------------------------------------------------------------------------------------------- what fails


@pytest.mark.parametrize(
    ("page", "told"),
    [
        ("vllm:num_requests_waiting 1\n", "has no vllm:num_requests_running"),
        ("<html>", "has no vllm:num_requests_running"),
        ("vllm:num_requests_running{ 1\n", "is no page of metrics"),
        ("vllm:num_requests_running many\n", "is no page of metrics"),
        ("x" * (MAX_PAGE_BYTES + 1), "answers more than"),
    ],
)
def test_other_pages_are_no_readings(pages: Pages, page: str, told: str) -> None:
    pages.say(page)
    with pytest.raises(ReadingError, match=told):
        pages.source.read()


def test_what_does_not_answer_is_no_reading(pages: Pages) -> None:
    with pytest.raises(ReadingError, match=r"/metrics answers 404"):
        pages.source.read()
    pages.pages["/metrics"] = 200, b"\xff\xfe"
    with pytest.raises(ReadingError, match="no page of metrics"):
        pages.source.read()
    pages.say(V0)
    pages.delay_s = 0.3
    with pytest.raises(ReadingError, match=r"does not answer within 0.1 s"):
        VllmSource(pages.url, 0.1).read()
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        with pytest.raises(ReadingError, match=r"does not answer \(.*refused"):
            VllmSource(f"http://127.0.0.1:{port}").read()
    for url in ("ftp://x", "127.0.0.1:8000", "http://"):
        with pytest.raises(InputError, match="no address of an HTTP server"):
            VllmSource(url)


def test_an_answer_that_trickles_or_breaks_off_ends(pages: Pages) -> None:
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def trickle() -> None:
            head = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"
            for start in (head, head, b""):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(1000)
                    connection.sendall(start)
                    while not ended.is_set():
                        try:
                            connection.sendall(b"x")
                        except OSError:
                            break
                        ended.wait(0.01)

        thread = threading.Thread(target=trickle)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/metrics"
        with pytest.raises(ReadingError, match=r"within 0\.2 s"):
            fetch(url, 0.2)
        ended.set()
        with pytest.raises(ReadingError, match="breaks off"):
            fetch(url, 1.0)
        with pytest.raises(ReadingError, match="does not answer"):
            fetch(url, 1.0)
        thread.join()


# ------------------------------------------------------------------------------------------------------------ emulated


@pytest.fixture
def servers() -> Iterator[EmulatedServers]:
    with EmulatedServers(LiveMachine(capacity=1000)) as running:
        yield running


def ahead(servers: EmulatedServers, work: Callable[[], object], until: int) -> None:
    """Does something that takes time, and lets time go on until slot 0 is in a state and it has ended."""
    fault: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as problem:
            fault.append(problem)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    for _ in range(2000):
        servers.advance_to(servers.call(lambda: servers.machine.now_s) + 0.5)
        thread.join(0.005)
        if not thread.is_alive() and servers.call(servers.machine.status, 0) == until:
            break
    assert not fault and not thread.is_alive()


@pytest.mark.parametrize("level", [1, 2])
def test_a_server_sleeps_and_wakes(servers: EmulatedServers, level: int) -> None:
    url = next(iter(servers.urls.values()))
    server, source = VllmServer(url, level=level, timeout_s=20.0), VllmSource(url)
    assert not server.is_asleep and not source.read().asleep and not server.launches
    request = servers.call(servers.machine.submit, 0, 200, 50)
    ahead(servers, server.sleep, SLEEPING)
    assert request.generated == 50, "it drains"
    assert server.is_asleep and source.read().asleep
    ahead(servers, server.wake, SERVING)
    assert fetch(url + "/collective_rpc", 5.0, "POST", body=b'{"method": "run"}')[0] == 400
    assert not server.is_asleep and not source.read().asleep
    server.load("Qwen3-32B")  # nobody launches anything
    server.stop()
    assert servers.call(servers.machine.status, 0) == SERVING


def test_a_reading_of_an_emulated_server_goes_on_when_it_is_started_anew(servers: EmulatedServers) -> None:
    name, url = next(iter(servers.urls.items()))
    source = VllmSource(url, 5.0)
    servers.call(servers.machine.submit, 0, 200, 50)
    servers.advance_to(5.0)
    assert (source.read().prompt_tokens, source.read().output_tokens) == (200, 50)
    servers.kill(name)
    with pytest.raises(ReadingError, match="refused"):
        source.read()
    servers.start(name)
    servers.advance_to(200.0)
    servers.call(servers.machine.submit, 0, 30, 20)
    servers.advance_to(205.0)
    assert (source.read().prompt_tokens, source.read().output_tokens) == (230, 70)
    servers.apps[0].faults.metrics_down = True
    with pytest.raises(ReadingError, match="answers 500"):
        source.read()


def test_vllm_without_sleep_mode_says_what_to_do(pages: Pages) -> None:
    pages.say('{"is_sleeping": 3}', "/is_sleeping")
    server = VllmServer(pages.url)
    assert server.is_asleep is False
    pages.pages.clear()
    with pytest.raises(ReadingError, match="VLLM_SERVER_DEV_MODE=1"):
        server.is_asleep  # noqa: B018
    with pytest.raises(ReadingError, match="answers 501"):
        server.sleep()  # the handler has no POST


# ------------------------------------------------------------------------------------------------------------ launcher

PLACE = Place("row0/slot1", ("4", "5"), 8101)


def script(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "launch.py"
    path.write_text(text)
    return [sys.executable, str(path)]


def test_a_launcher_fills_in_words_and_knows_no_shell(tmp_path: Path) -> None:
    out = tmp_path / "out.txt"
    words = script(tmp_path, "import sys; open(sys.argv[1], 'w').write(chr(10).join(sys.argv[2:]))")
    every = [*words, str(out), "{slot}", "{model}", "CUDA={gpus}", "--port={port}", "{tp}", "{{}}", "$HOME; rm *"]
    launcher = Launcher(every, ["true"], dry=False)
    server = VllmServer("http://127.0.0.1:8101", launcher, PLACE)
    assert server.launches
    server.load('a "model"; $(reboot) {gpus}')
    assert out.read_text().split("\n") == [
        "row0/slot1",
        'a "model"; $(reboot) {gpus}',
        "CUDA=4,5",
        "--port=8101",
        "2",
        "{}",
        "$HOME; rm *",
    ]
    server.stop()


def test_a_launcher_is_dry_by_default(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    out = tmp_path / "out"
    launcher = Launcher(["touch", str(out), "{model}"], ["false"])
    launcher.load(PLACE, "a model")
    launcher.stop(PLACE)
    assert not out.exists()
    assert caplog.messages == [f"dry run, not carried out: touch {out} 'a model'", "dry run, not carried out: false"]
    assert not VllmServer("http://127.0.0.1:1", launcher, PLACE).launches


def test_a_command_that_fails_is_reported(tmp_path: Path) -> None:
    fails = script(tmp_path, "import sys; print('x' * 1000); print('no such model'); sys.exit(3)")
    with pytest.raises(ReadingError, match=r"ended with 3: x+\nno such model") as report:
        Launcher(fails, ["true"], dry=False).load(PLACE, "m")
    assert len(str(report.value)) < 700
    with pytest.raises(ReadingError, match="ended with 1: it wrote nothing"):
        Launcher(["true"], ["false"], dry=False).stop(PLACE)
    with pytest.raises(ReadingError, match=r"longer than 0\.2 s"):
        Launcher(["sleep", "30"], ["true"], dry=False, timeout_s=0.2).load(PLACE, "m")
    with pytest.raises(ReadingError, match="cannot be run"):
        Launcher(["/no/such/command"], ["true"], dry=False).load(PLACE, "m")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "no list of words"),
        ("systemctl start vllm", "no list of words"),
        (["run", "{modle}"], r"\{modle\}, which is not known. Use \{slot\}"),
        (["run", "{model.__class__}"], "not known"),
        (["run", "{"], "Write braces that stand for themselves twice"),
        (["run", "{}"], "not known"),
    ],
)
def test_commands_that_cannot_work_are_refused(words: list[str], told: str) -> None:
    with pytest.raises(InputError, match=told):
        Launcher(words, ["true"])
    with pytest.raises(InputError, match=r"launcher\.stop"):
        Launcher(["true"], words)
