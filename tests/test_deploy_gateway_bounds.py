"""What the gateway refuses: what is too long, too slow or nonsense."""

import json
import re
import socket
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from llmcluster.deploy.gateway.client import HttpGatewayClient
from llmcluster.tests.backends import (
    ADMIN,
    CHAT,
    CLIENT,
    admin_tokens,
    bearer,
    call,
    client_tokens,
    gateway_over,
    servers,
)

__all__ = ["admin_tokens", "client_tokens"]


def raw(url: str, request: bytes) -> bytes:
    """What a server answers to some bytes, until it closes the connection."""
    parts = urlsplit(url)
    with socket.create_connection((str(parts.hostname), int(parts.port or 0)), timeout=10) as connection:
        connection.sendall(request)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    return answer


POST = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\n"
CHUNK = b"1000\r\n" + b"x" * 4096 + b"\r\n"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /" + b"x" * 3000 + b" HTTP/1.1\r\nhost: a\r\n\r\n", 414),
        (b"GET /" + b"x" * 60_000, 414),
        (b"GET /health HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 40_000 + b"\r\n\r\n", 431),
        (b"GET /health HTTP/1.1\r\nhost: a\r\n" + b"x: y\r\n" * 10_000 + b"\r\n", 431),
        (b"GET /health HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 60_000, 431),
        (b"nonsense\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nhost: a", 408),
        (b"", 408),
        (POST + b"content-type: application/json\r\ncontent-length: 9\r\n\r\n{", 408),
        (POST + b"content-type: application/json\r\ncontent-length: 99999\r\n\r\n", 413),
        (POST + b"content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n" + CHUNK, 413),
        (POST + b"connection: close\r\ncontent-length: 2\r\n\r\n{}", 415),
    ],
)
def test_what_is_too_long_or_too_slow_is_refused(request_: bytes, status: int) -> None:
    bounds = {"timeouts": {"drain_s": 0.5, "head_s": 0.3, "body_s": 0.3}, "limits": {"body_bytes": 2048}}
    with servers("a") as made, gateway_over(made, **bounds) as url:
        answer = raw(url, request_)
        assert answer.startswith(f"HTTP/1.1 {status} ".encode())
        assert b'{"error": {"message": ' in answer
        assert call(url, "/health")[0] == 200


def test_refusals_are_counted(admin_tokens: Path, client_tokens: Path) -> None:
    bounds = {"timeouts": {"drain_s": 0.5, "body_s": 0.3}, "limits": {"body_bytes": 2048}}
    tokens = {"admin_tokens": admin_tokens, "client_tokens": client_tokens}
    own = bearer(CLIENT)
    with servers("a") as made, gateway_over(made, **bounds, **tokens) as url:
        got = [
            call(url, "/v1/chat/completions", CHAT)[0],
            call(url, "/v1/chat/completions", CHAT, {**own, "content-type": "text/plain"})[0],
            call(url, "/v1/chat/completions", {**CHAT, "model": "other"}, own)[0],
            call(url, "/v1/chat/completions", b"{", own)[0],
            call(url, "/v1/chat/completions", b" " * 3000, own)[0],
            call(url, "/v1/models")[0],
            call(url, "/admin/steer", {}, own)[0],
            call(url, "/other")[0],
            call(url, "/v1/completions")[0],
            call(url, "/" + "x" * 3000)[0],
        ]
        raw(url, b"nonsense\r\n\r\n")
        raw(
            url,
            POST + b"authorization: Bearer " + CLIENT.encode() + b"\r\ncontent-type: application/json\r\n"
            b"content-length: 9\r\n\r\n{",
        )
        page = call(url, "/metrics", headers=own)[2].decode()
        assert HttpGatewayClient(url, ADMIN).read().arrivals == 0
    assert got == [401, 415, 404, 400, 413, 401, 401, 404, 405, 414]
    counted = {
        match[0]: float(match[1]) for match in re.findall(r"llmcluster_gateway_refused_total\{(.*)\} (.*)", page)
    }
    assert counted == {
        f'code="{code}",status="{status}"': float(times)
        for code, status, times in (
            ("invalid_api_key", 401, 3),
            ("not_json", 415, 1),
            ("model_not_found", 404, 1),
            ("invalid_json", 400, 1),
            ("body_too_large", 413, 1),
            ("not_found", 404, 1),
            ("method_not_allowed", 405, 1),
            ("path_too_long", 414, 1),
            ("invalid_http", 400, 1),
            ("body_timeout", 408, 1),
        )
    }


BEGUN = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("begun", [BEGUN + b"0\r\nx: ", BEGUN + b"1;"], ids=["trailer", "extension"])
@pytest.mark.parametrize("kind", [b"", b"content-type: application/json\r\n"], ids=["refused", "read"])
def test_what_never_ends_after_the_head_ends_the_connection(begun: bytes, kind: bytes) -> None:
    """Both are what a server must take note of, and neither belongs to a body that has a limit."""
    with servers("a") as made, gateway_over(made) as url:
        parts = urlsplit(url)
        with socket.create_connection((str(parts.hostname), int(parts.port or 0)), timeout=10) as connection:
            connection.sendall(begun.replace(b"host: a\r\n", b"host: a\r\n" + kind))
            with pytest.raises(ConnectionError):
                for _ in range(1000):
                    connection.sendall(b"x" * 16_384)
        assert call(url, "/health")[0] == 200


@pytest.mark.parametrize("body", [b"", b"1000\r\n" + b"x" * 100], ids=["none", "half"])
def test_a_body_that_nobody_reads_does_not_hold_the_connection(body: bytes) -> None:
    with servers("a") as made, gateway_over(made, timeouts={"drain_s": 0.5, "head_s": 0.3}) as url:
        answer = raw(url, BEGUN + body)
    assert answer.startswith(b"HTTP/1.1 415 ")
    assert answer.count(b"HTTP/1.1") == 1


def test_a_body_that_is_refused_may_be_sent_to_its_end() -> None:
    """So that who sends first and reads then gets the answer, and may go on."""
    with servers("a") as made, gateway_over(made) as url:
        head = POST + b"content-length: 3000000\r\n\r\n"
        last = b"GET /health HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
        answer = raw(url, head + b"x" * 3_000_000 + last)
    assert answer.startswith(b"HTTP/1.1 415 ")
    assert answer.endswith(b'{"status":"ok"}')


def test_nonsense_behind_a_request_does_not_get_into_its_answer() -> None:
    body = json.dumps({**CHAT, "stream": True}).encode()
    about = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    with servers("a") as made, gateway_over(made) as url:
        made[0].pause_after = 1
        made[0].hold.clear()
        parts = urlsplit(url)
        with socket.create_connection((str(parts.hostname), int(parts.port or 0)), timeout=10) as connection:
            connection.sendall(POST.replace(b"completions", b"chat/completions") + about + body)
            answer = connection.recv(65536)
            connection.sendall(b"nonsense\r\n\r\n")
            while chunk := connection.recv(65536):
                answer += chunk
        made[0].hold.set()
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.count(b"HTTP/1.1") == 1


def test_an_answer_of_unreasonable_length_is_none() -> None:
    with servers("a") as made, gateway_over(made, limits={"answer_bytes": 1024}) as url:
        made[0].tokens = 1000
        status, _, body = call(url, "/v1/chat/completions", CHAT)
    assert (status, body["error"]["code"]) == (502, "answer_broken_off")


# -------------------------------------------------------------------------------------------------------- settings
