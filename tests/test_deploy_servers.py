"""Emulated servers over real sockets, asked by the real OpenAI client."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import openai
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from llmcluster.deploy.engines.launcher import Launcher, Place
from llmcluster.deploy.readings import ReadingError
from llmcluster.deploy.rehearsal.launch import command
from llmcluster.deploy.rehearsal.live import LiveMachine
from llmcluster.deploy.rehearsal.prompts import RefusedError, parse
from llmcluster.deploy.rehearsal.server_app import MAX_BODY_BYTES
from llmcluster.deploy.rehearsal.servers import EmulatedServers
from llmcluster.simulator.kernels.state import DRAINING, EMPTY, SERVING, SLEEPING

MODEL = "Qwen3-32B"
SLOT = "row0/rack0/server0/slot0"


@pytest.fixture
def servers() -> Iterator[EmulatedServers]:
    with EmulatedServers(LiveMachine(capacity=2000)) as running:
        yield running


def client_of(servers: EmulatedServers, slot: str = SLOT) -> openai.OpenAI:
    return openai.OpenAI(base_url=servers.urls[slot] + "/v1", api_key="none", max_retries=0, timeout=20)


def fetch(url: str, method: str = "GET", body: bytes | None = None) -> tuple[int, bytes]:
    try:
        with urlopen(Request(url, data=body, method=method), timeout=20) as answer:
            return answer.status, answer.read()
    except HTTPError as refusal:
        return refusal.code, refusal.read()


def soon(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    """Waits until something holds."""
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it never came to hold"
        time.sleep(0.005)


def metrics(servers: EmulatedServers, slot: str = SLOT) -> dict[str, float]:
    status, page = fetch(servers.urls[slot] + "/metrics")
    assert status == 200
    families = text_string_to_metric_families(page.decode())
    return {s.name.removeprefix("vllm:"): s.value for f in families for s in f.samples if "le" not in s.labels}


def in_background(work: Callable[[], Any]) -> Callable[[], Any]:
    """Begins something in a thread; gives a function that waits for its result."""
    result: list[Any] = []
    fault: list[BaseException] = []

    def run() -> None:
        try:
            result.append(work())
        except BaseException as problem:
            fault.append(problem)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def join() -> Any:
        thread.join(20)
        assert not thread.is_alive()
        if fault:
            raise fault[0]
        return result[0]

    return join


def test_the_openai_client_gets_whole_answers_and_streams(servers: EmulatedServers) -> None:
    servers.run(speed=20.0)
    client = client_of(servers)
    whole = client.completions.create(model=MODEL, prompt=list(range(300)), max_tokens=20)
    assert whole.usage and (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (300, 20)
    assert whole.choices[0].text == " tok" * 20 and whole.choices[0].finish_reason == "length"
    chat = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "x" * 401}], max_completion_tokens=7
    )
    assert chat.usage and (chat.usage.prompt_tokens, chat.usage.completion_tokens) == (101, 7)
    assert chat.choices[0].message.content == " tok" * 7
    pieces = list(client.completions.create(model=MODEL, prompt="hello world!", max_tokens=30, stream=True))
    assert [piece.choices[0].text for piece in pieces] == [" tok"] * 30
    assert [piece.choices[0].finish_reason for piece in pieces] == [None] * 29 + ["length"]
    talk = list(
        client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "hello"}],
            max_tokens=5,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert talk[0].choices[0].delta.role == "assistant"
    assert "".join(piece.choices[0].delta.content or "" for piece in talk if piece.choices) == " tok" * 5
    assert talk[-1].usage and (talk[-1].usage.prompt_tokens, talk[-1].usage.completion_tokens) == (2, 5)
    assert [model.id for model in client.models.list()] == [MODEL]
    told = metrics(servers)
    assert told["prompt_tokens_total"] == 300 + 101 + 3 + 2
    assert told["generation_tokens_total"] == 20 + 7 + 30 + 5
    assert told["time_to_first_token_seconds_count"] == told["e2e_request_latency_seconds_count"] == 4


def test_tokens_come_as_they_are_generated(servers: EmulatedServers) -> None:
    stream = client_of(servers).completions.create(model=MODEL, prompt=[1] * 50, max_tokens=40, stream=True)
    assert servers.call(servers.machine.queues, 0)[1] == 1, "it waits for time to go on"
    servers.advance_to(0.3)
    seen = 0
    for _ in stream:
        seen += 1
        if seen == servers.call(servers.machine.counts, 0).output_tokens:
            break
    assert 0 < seen < 40
    servers.advance_to(5.0)
    assert seen + sum(1 for _ in stream) == 40


def test_the_metrics_are_those_of_the_slot(servers: EmulatedServers) -> None:
    client = client_of(servers)
    answers = [
        in_background(lambda: client.completions.create(model=MODEL, prompt=[1] * 900, max_tokens=200))
        for _ in range(5)
    ]
    soon(lambda: servers.call(servers.machine.queues, 0)[1] == 5)
    assert metrics(servers)["num_requests_waiting"] == 5
    servers.advance_to(2.0)
    told, history = metrics(servers), servers.call(lambda: servers.machine.cluster.history.records[-1][0].copy())
    assert told["num_requests_running"] == history["running"] == 5
    assert (
        told["kv_cache_usage_perc"] == pytest.approx(history["kv_used"], abs=1e-6) and told["kv_cache_usage_perc"] > 0
    )
    assert told["prompt_tokens_total"] == 4500
    assert 0 < told["generation_tokens_total"] < 1000
    assert metrics(servers, "row0/rack0/server0/slot1")["prompt_tokens_total"] == 0
    servers.advance_to(20.0)
    assert [join().usage.completion_tokens for join in answers] == [200] * 5
    assert metrics(servers)["generation_tokens_total"] == 1000 and metrics(servers)["num_requests_running"] == 0


def test_a_client_that_goes_frees_its_place(servers: EmulatedServers) -> None:
    client = client_of(servers)
    stream = client.completions.create(model=MODEL, prompt=[1] * 50, max_tokens=4000, stream=True)
    whole = client.with_options(timeout=0.3)
    with pytest.raises(openai.APITimeoutError):
        whole.completions.create(model=MODEL, prompt=[1] * 50, max_tokens=4000)
    soon(lambda: servers.call(servers.machine.in_flight, 0)[1:] == [])
    servers.advance_to(1.0)
    assert servers.call(servers.machine.queues, 0)[0] == 1
    next(iter(stream))
    stream.close()

    def free() -> bool:
        servers.advance_to(servers.call(lambda: servers.machine.now_s) + 0.05)
        return servers.call(servers.machine.queues, 0) == (0, 0, 0.0)

    soon(free)
    assert servers.call(lambda: servers.apps[0].metrics.text({})).count(b'finished_reason="abort"') == 1


@pytest.mark.parametrize(
    ("body", "code", "told"),
    [
        ({"prompt": "x", "model": "other"}, 404, "does not exist"),
        ({"prompt": "x", "max_tokens": 0}, 400, "max_tokens must be at least 1, got 0"),
        ({"prompt": [1] * 30, "max_tokens": 40_960}, 400, "maximum context length is 40960 tokens"),
        ({"prompt": ""}, 400, "must not be empty"),
        ({"prompt": ["a", "b"]}, 400, "one text"),
        ({"prompt": [1, -2]}, 400, "one list of token ids"),
        ({"prompt": "x", "n": 2}, 400, "n = 1"),
        ({"prompt": "x", "max_tokens": "many"}, 400, "got many"),
    ],
)
def test_what_vllm_refuses_is_refused(servers: EmulatedServers, body: dict[str, Any], code: int, told: str) -> None:
    content = json.dumps({"model": MODEL} | body).encode()
    status, answer = fetch(servers.urls[SLOT] + "/v1/completions", "POST", content)
    assert status == code and told in json.loads(answer)["error"]["message"]
    assert servers.call(servers.machine.queues, 0)[1] == 0


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(st.text(max_size=8), parts, max_size=3),
    max_leaves=6,
)
NAMES = ("prompt", "messages", "max_tokens", "max_completion_tokens", "n", "stream", "stream_options", "model")
bodies = st.dictionaries(st.sampled_from(NAMES), anything).map(lambda body: json.dumps(body).encode())


@given(bodies | st.binary(), st.booleans())
@example(b"[" * 200_000, False)
@example(rb'{"prompt": "\ud800"}', False)
@example(b'{"messages": [{"content": [{"text": "abc"}, {"image": 1}, 7]}, 3]}', True)
def test_any_body_is_taken_or_refused(body: bytes, chat: bool) -> None:
    try:
        ask = parse(body, chat=chat, max_tokens=1000)
    except RefusedError as refusal:
        assert refusal.code == 400 and refusal.body["error"]["message"]
    else:
        assert ask.prompt_tokens >= 1 and ask.output_tokens >= 1
        assert ask.prompt_tokens + ask.output_tokens <= 1000


def test_other_bodies_and_paths_are_refused(servers: EmulatedServers) -> None:
    url = servers.urls[SLOT]
    assert fetch(url + "/v1/completions", "POST", b"{")[0] == 400
    assert fetch(url + "/v1/completions", "POST", b"[]")[0] == 400
    assert fetch(url + "/v1/chat/completions", "POST", b'{"model": "Qwen3-32B", "messages": []}')[0] == 400
    assert fetch(url + "/v1/completions", "POST", b" " * (MAX_BODY_BYTES + 1))[0] == 413
    assert fetch(url + "/v1/completions")[0] == 405
    assert fetch(url + "/nothing")[0] == 404


def test_sleep_aborts_or_waits_and_wake_brings_it_back(servers: EmulatedServers) -> None:
    url, client = servers.urls[SLOT], client_of(servers)
    stream = client.completions.create(model=MODEL, prompt=[1] * 50, max_tokens=4000, stream=True)
    servers.advance_to(0.5)
    asleep = in_background(lambda: fetch(url + "/sleep?level=2&mode=wait", "POST"))
    soon(lambda: servers.call(servers.machine.status, 0) != SERVING)
    with pytest.raises(openai.InternalServerError, match="is draining"):
        client.completions.create(model=MODEL, prompt=[1], max_tokens=1)
    aborted = in_background(lambda: fetch(url + "/sleep?level=2", "POST"))

    def sleeps() -> bool:
        servers.advance_to(servers.call(lambda: servers.machine.now_s) + 0.5)
        return bool(servers.call(servers.machine.status, 0) == SLEEPING)

    soon(sleeps)
    assert asleep()[0] == aborted()[0] == 200
    assert [piece.choices[0].finish_reason for piece in stream][-1] == "abort"
    assert json.loads(fetch(url + "/is_sleeping")[1]) == {"is_sleeping": True}
    assert fetch(url + "/health")[0] == 200
    page = fetch(url + "/metrics")[1].decode()
    assert 'sleep_state="discard_all"} 1.0' in page and 'sleep_state="awake"} 0.0' in page
    with pytest.raises(openai.InternalServerError, match="is sleeping"):
        client.completions.create(model=MODEL, prompt=[1], max_tokens=1)
    awake = in_background(lambda: fetch(url + "/wake_up", "POST"))
    soon(lambda: servers.call(servers.machine.status, 0) != SLEEPING)
    assert json.loads(fetch(url + "/is_sleeping")[1]) == {"is_sleeping": True}, "not yet awake"
    servers.advance_to(servers.call(lambda: servers.machine.now_s) + 60.0)
    assert awake()[0] == 200
    assert json.loads(fetch(url + "/is_sleeping")[1]) == {"is_sleeping": False}
    assert fetch(url + "/sleep?level=3", "POST")[0] == 400


def test_a_killed_server_cuts_its_connections_and_comes_back(servers: EmulatedServers) -> None:
    url, client = servers.urls[SLOT], client_of(servers)
    stream = client.completions.create(model=MODEL, prompt=[1] * 50, max_tokens=4000, stream=True)
    whole = in_background(lambda: client.completions.create(model=MODEL, prompt=[1] * 50, max_tokens=400))
    soon(lambda: len(servers.call(servers.machine.in_flight, 0)) == 2)
    servers.advance_to(0.5)
    next(iter(stream))
    servers.kill(SLOT)
    with pytest.raises(openai.APIConnectionError):
        whole()
    with pytest.raises(openai.APIConnectionError):
        list(stream)
    with pytest.raises(openai.APIConnectionError):
        client.models.list()
    assert servers.call(servers.machine.status, 0) == EMPTY
    assert fetch(servers.urls["row0/rack0/server0/slot1"] + "/health")[0] == 200, "the others live"
    servers.start(SLOT)
    soon(lambda: fetch_or_none(url + "/health") == 503)
    with pytest.raises(openai.InternalServerError, match="is being loaded"):
        client.completions.create(model=MODEL, prompt=[1], max_tokens=1)
    servers.advance_to(servers.call(lambda: servers.machine.now_s) + 200.0)
    assert fetch(url + "/health")[0] == 200
    told = metrics(servers)
    assert told["prompt_tokens_total"] == told["generation_tokens_total"] == 0, "another process counts anew"


def test_a_server_that_dies_as_it_starts_is_gone(servers: EmulatedServers) -> None:
    def flicker() -> None:
        for _ in range(3):
            servers.machine.kill(0)
            servers.machine.serve(0)
        servers.machine.kill(0)

    servers.call(flicker)
    with pytest.raises(OSError, match="refused"):
        urlopen(servers.urls[SLOT] + "/health", timeout=20)
    servers.start(SLOT)
    soon(lambda: fetch_or_none(servers.urls[SLOT] + "/health") == 503)


def fetch_or_none(url: str) -> int | None:
    try:
        return fetch(url)[0]
    except OSError:
        return None


def test_faults_slow_silent_lying_and_without_metrics(servers: EmulatedServers) -> None:
    url, faults = servers.urls[SLOT], servers.apps[0].faults
    servers.run(speed=20.0)
    client = client_of(servers)
    faults.token_delay_s, faults.delay_s = 0.02, 0.1
    begun = time.monotonic()
    assert len(list(client.completions.create(model=MODEL, prompt=[1], max_tokens=10, stream=True))) == 10
    assert time.monotonic() - begun >= 0.1 + 10 * 0.02
    faults.token_delay_s = faults.delay_s = 0.0
    faults.lies = {"num_requests_running": -3.0, "generation_tokens": 1.0}
    told = metrics(servers)
    assert told["num_requests_running"] == -3.0 and told["generation_tokens_total"] == 1.0
    faults.metrics_down = True
    assert fetch(url + "/metrics")[0] == 500 and fetch(url + "/health")[0] == 200
    faults.silent = True
    with pytest.raises(TimeoutError):
        urlopen(url + "/health", timeout=0.1)


def test_a_launcher_s_commands_stop_and_load_servers(servers: EmulatedServers) -> None:
    words = {verb: command(servers.control_url, verb) for verb in ("load", "stop")}
    launcher = Launcher(words["load"], words["stop"], dry=False)
    place = Place(SLOT, ("0", "1"), 0)
    request = servers.call(servers.machine.submit, 0, 100, 20)
    stopped = in_background(lambda: launcher.stop(place))
    soon(lambda: servers.call(servers.machine.status, 0) == DRAINING, 30.0)
    servers.advance_to(5.0)
    stopped()
    assert request.generated == 20 and servers.call(servers.machine.status, 0) == EMPTY
    with pytest.raises(ReadingError, match=r"cannot hold 'Llama-3\.1-8B'"):
        launcher.load(place, "Llama-3.1-8B")
    with pytest.raises(ReadingError, match="ended with 1"):
        launcher.stop(Place("slot9", (), 0))
    launcher.load(place, MODEL)
    servers.advance_to(200.0)
    assert servers.call(servers.machine.status, 0) == SERVING
    with pytest.raises(ReadingError, match="ended with 2: usage"):
        Launcher([*words["load"], "more"], ["true"], dry=False).load(place, MODEL)
