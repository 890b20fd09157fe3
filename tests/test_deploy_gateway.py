"""The gateway before real servers, over real sockets, under the real client."""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from llmcluster.deploy.gateway.client import HttpGatewayClient
from llmcluster.deploy.gateway.config import LimitSpec, TimeoutSpec
from llmcluster.deploy.gateway.server import serve_app
from llmcluster.tests.backends import (
    ADMIN,
    MODEL,
    Server,
    admin_tokens,
    call,
    closing_socket,
    gateway_over,
    servers,
    until,
)

__all__ = ["admin_tokens"]

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "How warm is it?"}]}
Pair = tuple[Server, Server]


@pytest.fixture(scope="module")
def pair() -> Iterator[list[Server]]:
    with servers("a", "b") as made:
        yield made


@pytest.fixture
def two(pair: list[Server]) -> Pair:
    """Two servers as new."""
    for server in pair:
        server.seen, server.headers, server.gone = [], [], 0
        server.tokens, server.gap_s, server.status, server.healthy = 4, 0.0, 200, True
        server.break_after = server.pause_after = None
        server.hold.set()
    return pair[0], pair[1]


def openai_at(url: str, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, **options)


def said(stream: Any) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def in_flight(client: HttpGatewayClient) -> int:
    return sum(client.read().in_flight.values())


# -------------------------------------------------------------------------------------------------------- the API


def test_the_real_client_gets_all_kinds_of_answers(two: Pair) -> None:
    with gateway_over([two[0]]) as url, openai_at(url) as client:
        chat = client.chat.completions.create(**CHAT)  # type: ignore[call-overload]
        assert chat.choices[0].message.content == "a0 a1 a2 a3 "
        assert chat.usage.completion_tokens == 4
        assert said(client.chat.completions.create(**CHAT, stream=True)) == "a0 a1 a2 a3 "  # type: ignore[call-overload]
        assert client.completions.create(model=MODEL, prompt=[1, 2, 3]).choices[0].text == "a0 a1 a2 a3 "
        texts = [
            c.choices[0].text for c in client.completions.create(model=MODEL, prompt="x", stream=True) if c.choices
        ]
        assert texts == ["a0 ", "a1 ", "a2 ", "a3 "]
        assert client.embeddings.create(model=MODEL, input="x", encoding_format="float").data[0].embedding == [
            0.5,
            0.25,
        ]
        model = next(iter(client.models.list()))
        assert (model.id, model.owned_by, model.max_model_len) == (MODEL, "vllm", 2048)  # type: ignore[attr-defined]


def test_the_real_asynchronous_client_streams(two: Pair) -> None:
    async def ask(url: str) -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:

            async def one() -> str:
                stream = await client.chat.completions.create(**CHAT, stream=True)  # type: ignore[call-overload]
                return "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])

            return await asyncio.gather(*(one() for _ in range(20)))

    with gateway_over(list(two)) as url:
        answers = asyncio.run(ask(url))
    assert set(answers) == {"a0 a1 a2 a3 ", "b0 b1 b2 b3 "}
    assert len(two[0].seen) + len(two[1].seen) == 20


def test_chunks_are_passed_on_as_they_come(two: Pair) -> None:
    two[0].pause_after = 2
    two[0].hold.clear()
    with gateway_over([two[0]]) as url, openai_at(url) as client:
        stream = client.chat.completions.create(**CHAT, stream=True)  # type: ignore[call-overload]
        assert [next(stream).choices[0].delta.content for _ in range(3)] == ["", "a0 ", "a1 "]
        two[0].hold.set()
        assert said(stream) == "a2 a3 "


def test_a_list_of_models_that_comes_in_pieces_is_read_to_its_end() -> None:
    entry = {"id": MODEL, "object": "model", "created": 7, "owned_by": "vllm"}
    text = json.dumps({"object": "list", "data": [{**entry, "id": "another"}, entry]}).encode()

    async def models(request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            for at in range(0, len(text), 50):
                yield text[at : at + 50]
                await asyncio.sleep(0.01)

        return StreamingResponse(pieces(), media_type="application/json")

    app = Starlette(routes=[Route("/v1/models", models), Route("/health", lambda _: Response())])
    with (
        serve_app(app, "127.0.0.1", 0, LimitSpec(), TimeoutSpec(drain_s=0.5)) as serving,
        gateway_over({"a": serving.url}) as url,
    ):
        assert call(url, "/v1/models")[2]["data"] == [entry]


def test_the_servers_own_name_of_the_model_is_put_in(two: Pair) -> None:
    backends = [{"name": "a", "url": two[0].url, "model": "public", "served_name": MODEL}]
    with gateway_over([two[0]], backends=backends) as url:
        assert call(url, "/v1/completions", {"model": "public", "prompt": "ü"})[0] == 200
        assert two[0].seen[-1] == {"model": MODEL, "prompt": "ü"}
        assert [entry["id"] for entry in call(url, "/v1/models")[2]["data"]] == ["public"]
        assert call(url, "/v1/completions", {"model": MODEL, "prompt": "x"})[0] == 404


@pytest.mark.parametrize(
    ("path", "content", "method", "status", "code"),
    [
        ("/v1/chat/completions", b"{", None, 400, "invalid_json"),
        ("/v1/chat/completions", b"[" * 100_000, None, 400, "invalid_json"),
        ("/v1/chat/completions", b'{"model": NaN}', None, 400, "invalid_json"),
        ("/v1/chat/completions", b'\xff{"model": "tiny"}', None, 400, "invalid_json"),
        ("/v1/chat/completions", [MODEL], None, 400, "invalid_json"),
        ("/v1/chat/completions", {"messages": []}, None, 400, "missing_model"),
        ("/v1/chat/completions", {"model": 3}, None, 400, "missing_model"),
        ("/v1/chat/completions", {"model": MODEL, "stream": "yes"}, None, 400, "invalid_stream"),
        ("/v1/chat/completions", {"model": "other"}, None, 404, "model_not_found"),
        ("/v1/chat/completions", None, "GET", 405, "method_not_allowed"),
        ("/v1/chat/completions/", {"model": MODEL}, None, 404, "not_found"),
        ("/v1/files", {"model": MODEL}, None, 404, "not_found"),
        ("/v1/models", {}, "POST", 405, "method_not_allowed"),
        ("/admin/reading", None, None, 403, "admin_closed"),
        ("/admin/steer", {}, None, 403, "admin_closed"),
    ],
)
def test_what_is_wrong_is_said_in_openais_shape(
    two: Pair, path: str, content: Any, method: str | None, status: int, code: str
) -> None:
    with gateway_over([two[0]]) as url:
        got, headers, body = call(url, path, content, method=method)
    assert (got, body["error"]["code"]) == (status, code)
    assert body["error"]["message"] and body["error"]["type"]
    assert two[0].seen == []
    if path == "/v1/chat/completions" and status != 405:
        assert len(headers["x-request-id"]) == 32


def test_headers_that_are_not_the_backends_stay_here(two: Pair, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("backend-key\n")
    backends = [{"name": "a", "url": two[0].url, "model": MODEL, "api_key_file": tmp_path / "key"}]
    headers = {
        "Authorization": "Bearer mine",
        "Cookie": "a=b",
        "Connection": "keep-alive, X-Mine",
        "X-Mine": "1",
        "X-Other": "2",
        "X-Request-Id": "abc-1",
        "X-SLO-Class": "default",
    }
    with gateway_over([two[0]], backends=backends) as url:
        status, back, _ = call(url, "/v1/chat/completions", CHAT, headers)
    got = two[0].headers[-1]
    assert status == 200
    assert got["authorization"] == "Bearer backend-key"
    assert got["x-other"] == "2"
    assert got["x-request-id"] == back["x-request-id"] == "abc-1"
    assert not {"cookie", "x-mine", "x-slo-class"} & got.keys()
    assert got["host"] == urlsplit(two[0].url).netloc


def test_an_id_that_is_none_is_replaced(two: Pair) -> None:
    with gateway_over([two[0]]) as url:
        _, back, _ = call(url, "/v1/chat/completions", CHAT, {"X-Request-Id": "a b"})
    assert back["x-request-id"] != "a b"


# ------------------------------------------------------------------------------------------------ failing backends


def test_a_server_that_cannot_be_reached_is_passed_by(two: Pair) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        dead = f"http://127.0.0.1:{closed.getsockname()[1]}"
    with gateway_over({"dead": dead, "a": two[0].url}, health={"interval_s": 60, "unhealthy_after": 9}) as url:
        assert [call(url, "/v1/chat/completions", CHAT)[0] for _ in range(3)] == [200] * 3
        page = call(url, "/metrics")[2].decode()
    assert 'llmcluster_gateway_healthy{backend="dead"} 0.0' in page
    assert f'llmcluster_gateway_retries_total{{model="{MODEL}"}} 1.0' in page


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r"])
def test_a_connection_closed_before_the_first_byte_is_tried_elsewhere(two: Pair, answer: bytes) -> None:
    with (
        closing_socket(answer) as closing,
        gateway_over({"closing": closing, "a": two[0].url}, health={"interval_s": 60, "unhealthy_after": 9}) as url,
    ):
        answers = [call(url, "/v1/chat/completions", {**CHAT, "stream": True})[0] for _ in range(2)]
    assert answers == [200, 200]
    assert len(two[0].seen) == 2


def test_a_lone_server_is_asked_again_where_it_closed_the_connection() -> None:
    good = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
    healthy = {"interval_s": 60, "unhealthy_after": 9}
    with closing_socket(b"", good) as closing, gateway_over({"closing": closing}, health=healthy) as url:
        assert call(url, "/v1/chat/completions", CHAT)[0] == 200
    with closing_socket(b"") as closing, gateway_over({"closing": closing}, health=healthy, retries=1) as url:
        status, _, body = call(url, "/v1/chat/completions", CHAT)
    assert (status, body["error"]["code"]) == (502, "backend_reset")


def test_headers_without_a_body_do_not_bind_the_request_to_the_server(two: Pair) -> None:
    begun = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    with closing_socket(begun) as closing, gateway_over({"closing": closing, "a": two[0].url}) as url:
        status, _, body = call(url, "/v1/chat/completions", {**CHAT, "stream": True})
    assert status == 200
    assert body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("status", [502, 503, 504])
def test_statuses_of_overload_are_tried_elsewhere_and_told_where_there_is_no_other(two: Pair, status: int) -> None:
    two[0].status = status
    with gateway_over(list(two)) as url:
        assert call(url, "/v1/chat/completions", CHAT)[0] == 200
    with gateway_over([two[0]]) as url:
        got, _, body = call(url, "/v1/chat/completions", CHAT)
    assert (got, body["error"]["code"]) == (status, "backend_unavailable")
    assert (len(two[0].seen), len(two[1].seen)) == (2, 1)


def test_retries_are_bounded(two: Pair) -> None:
    two[0].status = two[1].status = 503
    with gateway_over(list(two), retries=0) as url:
        assert call(url, "/v1/chat/completions", CHAT)[0] == 503
    assert len(two[0].seen) + len(two[1].seen) == 1


def test_what_the_server_refuses_is_its_own_affair(two: Pair) -> None:
    two[0].status = 400
    with gateway_over(list(two)) as url:
        got, _, body = call(url, "/v1/chat/completions", CHAT)
    assert (got, body["error"]["message"]) == (400, "as told")
    assert len(two[1].seen) == 0


def test_a_stream_that_breaks_off_ends_with_an_error(two: Pair) -> None:
    two[0].break_after = two[1].break_after = 2
    with gateway_over(list(two)) as url:
        status, _, body = call(url, "/v1/chat/completions", {**CHAT, "stream": True})
        with openai_at(url) as client, pytest.raises(openai.APIError, match="broke off"):
            said(client.chat.completions.create(**CHAT, stream=True))  # type: ignore[call-overload]
        page = call(url, "/metrics")[2].decode()
    assert status == 200
    assert body.count(b"data: ") == 4  # who speaks, two tokens, the error
    assert b"\n\nevent: error\ndata: {" in body
    assert body.endswith(b"}\n\n")
    assert len(two[0].seen) + len(two[1].seen) == 2  # no retry after the first byte
    assert f'llmcluster_gateway_broken_total{{model="{MODEL}"}} 2.0' in page
    assert 'llmcluster_gateway_slo_total{met="false",slo_class="default"} 2.0' in page


def test_half_an_event_is_not_passed_on() -> None:
    begun = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    whole, half = b'data: {"choices": []}\n\n', b'data: {"choi'
    chunk = b"%x\r\n%s%s\r\n" % (len(whole + half), whole, half)
    with closing_socket(begun + chunk) as closing, gateway_over({"closing": closing}) as url:
        _, _, body = call(url, "/v1/chat/completions", {**CHAT, "stream": True})
    assert body.startswith(whole + b"event: error\n")
    assert b"choi" not in body[len(whole) :]


def test_an_answer_in_one_piece_that_breaks_off_is_no_answer() -> None:
    cut = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{"
    with closing_socket(cut) as closing, gateway_over({"closing": closing}) as url:
        status, _, body = call(url, "/v1/chat/completions", CHAT)
    assert (status, body["error"]["code"]) == (502, "answer_broken_off")


@pytest.mark.parametrize(
    ("timeouts", "gap_s", "stream", "expected"),
    [
        ({"first_byte_s": 0.1}, 5.0, False, "backend_timeout"),
        ({"total_s": 0.1}, 5.0, False, "backend_timeout"),
        ({"between_chunks_s": 0.1}, 5.0, True, "too long"),
        ({"total_s": 0.2}, 0.05, True, "too long"),
    ],
)
def test_slow_servers_are_left(
    two: Pair, timeouts: dict[str, float], gap_s: float, stream: bool, expected: str
) -> None:
    two[0].tokens, two[0].gap_s = 100, gap_s
    if not stream:
        two[0].hold.clear()
    with gateway_over([two[0]], timeouts={"drain_s": 0.5, **timeouts}) as url:
        status, _, body = call(url, "/v1/chat/completions", {**CHAT, "stream": stream})
        assert status == (200 if stream else 504)
        assert expected in (body.decode() if stream else body["error"]["code"])
        if stream:
            until(lambda: two[0].gone == 1)
    two[0].hold.set()


def test_servers_come_and_go(two: Pair, admin_tokens: Path) -> None:
    with gateway_over(list(two), admin_tokens=admin_tokens) as url:
        admin = HttpGatewayClient(url, ADMIN)
        two[0].healthy = False
        until(lambda: admin.read().healthy == {"a": False, "b": True})
        assert {call(url, "/v1/chat/completions", CHAT)[0] for _ in range(4)} == {200}
        assert (len(two[0].seen), len(two[1].seen)) == (0, 4)
        two[0].healthy = True
        until(lambda: admin.read().healthy == {"a": True, "b": True})


def test_what_waits_for_a_dead_server_is_served_once_it_lives(two: Pair, admin_tokens: Path) -> None:
    two[0].healthy = False
    with gateway_over([two[0]], admin_tokens=admin_tokens) as url:
        admin = HttpGatewayClient(url, ADMIN)
        until(lambda: not admin.read().healthy["a"])
        answers: list[int] = []
        thread = threading.Thread(target=lambda: answers.append(call(url, "/v1/chat/completions", CHAT)[0]))
        thread.start()
        until(lambda: admin.read().held == 1)
        two[0].healthy = True
        thread.join(10)
    assert answers == [200]


# --------------------------------------------------------------------------------------------------------- clients


@pytest.mark.parametrize("streaming", [True, False])
def test_a_client_that_goes_away_cancels_the_work(two: Pair, admin_tokens: Path, streaming: bool) -> None:
    two[0].tokens, two[0].gap_s = 1000, 0.01
    if not streaming:
        two[0].hold.clear()
    with gateway_over([two[0]], admin_tokens=admin_tokens) as url:
        admin = HttpGatewayClient(url, ADMIN)
        client = openai_at(url, timeout=0.2)
        if streaming:
            stream = client.chat.completions.create(**CHAT, stream=True)  # type: ignore[call-overload]
            next(iter(stream))
            assert in_flight(admin) == 1
            stream.close()
            until(lambda: two[0].gone == 1)
        else:
            with pytest.raises(openai.APITimeoutError):
                client.chat.completions.create(**CHAT)  # type: ignore[call-overload]
        client.close()
        until(lambda: in_flight(admin) == 0)
        reading = until(lambda: (now := admin.read()).left and now)
        assert (reading.arrivals, reading.left, reading.met_slo) == (1, 1, 0)
        assert 'status="499"' in call(url, "/metrics")[2].decode()
    two[0].hold.set()


def test_a_client_that_goes_away_while_it_waits_leaves_the_queue(two: Pair, admin_tokens: Path) -> None:
    two[0].hold.clear()
    with gateway_over([two[0]], admin_tokens=admin_tokens) as url:
        admin = HttpGatewayClient(url, ADMIN)
        admin.steer(None, {}, {"a": 1})
        thread = threading.Thread(target=call, args=(url, "/v1/chat/completions", CHAT))
        thread.start()
        until(lambda: in_flight(admin) == 1)
        with openai_at(url, timeout=0.2) as client, pytest.raises(openai.APITimeoutError):
            client.chat.completions.create(**CHAT)  # type: ignore[call-overload]
        until(lambda: admin.read().held == 0)
        two[0].hold.set()
        thread.join(10)
        until(lambda: admin.read().left == 2)
    assert len(two[0].seen) == 1


def test_a_full_queue_and_a_long_wait_are_refused(two: Pair, admin_tokens: Path) -> None:
    two[0].hold.clear()
    with gateway_over([two[0]], admin_tokens=admin_tokens, queue={"most": 1, "timeout_s": 0.3}) as url:
        admin = HttpGatewayClient(url, ADMIN)
        admin.steer("round-robin", {}, {"a": 1})
        answers: list[tuple[int, dict[str, str], Any]] = []
        ask: Callable[[], None] = lambda: answers.append(call(url, "/v1/chat/completions", CHAT))  # noqa: E731
        threads = [threading.Thread(target=ask) for _ in range(2)]
        threads[0].start()
        until(lambda: in_flight(admin) == 1)
        threads[1].start()
        until(lambda: admin.read().held == 1)
        status, headers, body = call(url, "/v1/chat/completions", CHAT)
        assert (status, body["error"]["code"], headers["retry-after"]) == (429, "queue_full", "1")
        threads[1].join(10)
        status, headers, body = answers[0]
        assert (status, body["error"]["code"], headers["retry-after"]) == (503, "no_room", "5")
        two[0].hold.set()
        threads[0].join(10)
        assert answers[1][0] == 200
        assert admin.read().left == 3


def test_held_requests_are_served_in_their_order(two: Pair, admin_tokens: Path) -> None:
    two[0].hold.clear()
    with gateway_over([two[0]], admin_tokens=admin_tokens) as url:
        admin = HttpGatewayClient(url, ADMIN)
        admin.steer(None, {}, {"a": 1})
        threads = []
        for n in range(5):
            content = {**CHAT, "n": n}
            threads.append(threading.Thread(target=call, args=(url, "/v1/chat/completions", content)))
            threads[-1].start()
            until(lambda n=n: (now := admin.read()).held + sum(now.in_flight.values()) == n + 1)  # type: ignore[misc]
        two[0].hold.set()
        for thread in threads:
            thread.join(10)
    assert [seen["n"] for seen in two[0].seen] == [0, 1, 2, 3, 4]


def test_streams_that_outlast_the_gateway_are_told_so(two: Pair) -> None:
    two[0].pause_after = 1
    two[0].hold.clear()
    got: list[bytes] = []
    with gateway_over([two[0]], timeouts={"drain_s": 1.0}) as url:
        content = {**CHAT, "stream": True}
        thread = threading.Thread(target=lambda: got.append(call(url, "/v1/chat/completions", content)[2]))
        thread.start()
        until(lambda: two[0].open == 1)
    thread.join(10)
    assert got[0].count(b"data: ") == 3  # who speaks, a token, the error
    assert b'event: error\ndata: {"error": {"message": "The gateway ends."' in got[0]
    two[0].hold.set()
