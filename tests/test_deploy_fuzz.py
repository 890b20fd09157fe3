"""Gateway and sidecar under requests of all sorts: they answer, in their own words, and go on."""

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmcluster.deploy.gateway.client import HttpGatewayClient
from llmcluster.deploy.gateway.config import LimitSpec, TimeoutSpec
from llmcluster.deploy.gateway.server import serve_app
from llmcluster.deploy.policy import FIELDS
from llmcluster.deploy.sidecar import SidecarConfig, make_sidecar
from llmcluster.tests.backends import ADMIN, MODEL, Server, bearer, call, gateway_over, servers, until
from llmcluster.tests.conftest import Tiny
from llmcluster.tests.test_deploy_sidecar import OBSERVED

FEW, MANY = 100, 2500
"""Cases of each of the four hunts: 400 in the default suite, 10,000 in the slow one."""

sizes = pytest.mark.parametrize("cases", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
prompts = st.text(max_size=50) | st.lists(st.integers(0, 99) | st.text(max_size=5), max_size=6) | json_values
bodies = st.fixed_dictionaries(
    {"model": st.sampled_from([MODEL, MODEL, MODEL, "other", "", None, 3])},
    optional={
        "messages": st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": prompts}), max_size=3)
        | json_values,
        "prompt": prompts,
        "input": prompts,
        "stream": st.booleans() | json_values,
        "stream_options": st.just({"include_usage": True}) | json_values,
        "extra": json_values,
    },
)
contents = st.one_of(
    bodies.map(lambda body: json.dumps(body).encode()),
    json_values.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=60),
    bodies.map(lambda body: json.dumps(body).encode()[:-2]),
)
header_values = st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]), max_size=30).map(str.strip)
headers = st.dictionaries(
    st.sampled_from(
        ["accept", "authorization", "connection", "cookie", "te", "user-agent", "x-request-id", "x-slo-class"]
    ),
    header_values | st.sampled_from(["default", "close", "x-request-id", "Bearer x"]),
    max_size=3,
)
methods = st.sampled_from(["POST", "POST", "POST", "GET", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH"])


@dataclass(frozen=True)
class Place:
    """Where a hunt goes on."""

    url: str
    server: Server
    admin: HttpGatewayClient


def hunt(check: Callable[[Any], None], strategy: st.SearchStrategy[Any], cases: int) -> None:
    """Tries a property on so many cases."""
    relaxed = settings(max_examples=cases, deadline=None, suppress_health_check=list(HealthCheck))
    relaxed(given(strategy)(check))()


def check_answer(status: int, about: dict[str, str], body: Any, also: frozenset[int] = frozenset()) -> None:
    """It is a success, a refusal in the usual shape, or what the server is told to say."""
    if status < 400 or status in also:
        return
    assert status < 500 or status in (502, 503, 504), body
    if body:
        assert body["error"].keys() == {"message", "type", "param", "code"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    tokens = tmp_path_factory.mktemp("tokens") / "admin"
    tokens.write_text(ADMIN)
    with ExitStack() as stack:
        (server,) = stack.enter_context(servers("a"))
        limits = {"path_bytes": 64, "header_bytes": 1024, "body_bytes": 4096}
        bounds = {"health": {"interval_s": 0.2, "unhealthy_after": 10**9}, "limits": limits}
        url = stack.enter_context(gateway_over([server], admin_tokens=tokens, **bounds))
        yield Place(url, server, HttpGatewayClient(url, ADMIN))


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> Iterator[str]:
    path: Path = tmp_path_factory.mktemp("scenarios") / "tiny.toml"
    path.write_text(tomli_w.dumps(tiny()))
    app = make_sidecar(SidecarConfig(agent="follow-load", scenario=str(path)))
    with serve_app(app, "127.0.0.1", 0, LimitSpec(), TimeoutSpec(drain_s=0.5)) as serving:
        yield serving.url


def is_idle(place: Place) -> bool:
    reading = place.admin.read()
    return reading.held == sum(reading.in_flight.values()) == 0 and reading.arrivals == reading.left


@sizes
def test_requests_of_all_sorts_to_servers_of_all_sorts(place: Place, cases: int) -> None:
    paths = st.sampled_from(
        ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models", "/health", "/metrics"]
    ) | st.text(max_size=20).map(lambda text: "/" + quote(text))

    def check(case: tuple[str, str, dict[str, str], bytes, int, int | None]) -> None:
        path, method, about, content, place.server.status, place.server.break_after = case
        status, back, body = call(place.url, path, content, about, method)
        check_answer(status, back, body, frozenset({place.server.status} - {502, 503, 504}))

    statuses = st.sampled_from([200] * 6 + [400, 429, 500, 502, 503, 504])
    hunt(check, st.tuples(paths, methods, headers, contents, statuses, st.sampled_from([None, None, 0, 2])), cases)
    place.server.status, place.server.break_after = 200, None
    until(lambda: is_idle(place))
    assert call(place.url, "/v1/chat/completions", {"model": MODEL})[0] == 200


@sizes
def test_bytes_of_all_sorts(place: Place, cases: int) -> None:
    parts = st.one_of(
        st.binary(max_size=40),
        st.sampled_from(
            [
                *(b"POST /v1/completions HTTP/1.1\r\n", b"GET /health HTTP/1.1\r\n", b"GET * HTTP/1.0\r\n"),
                *(b"CONNECT a:1 HTTP/1.1\r\n", b"host: a\r\n", b"content-type: application/json\r\n", b"\r\n"),
                *(b"content-length: 5\r\n", b"content-length: -1\r\n", b"content-length: 99999999999999999999\r\n"),
                *(b"transfer-encoding: chunked\r\n", b"5\r\nhello\r\n0\r\n\r\n", b"expect: 100-continue\r\n"),
                *(b"upgrade: websocket\r\nconnection: upgrade\r\n", b"x: " + b"y" * 1100, b"GET /" + b"x" * 100),
                *(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
            ]
        ),
    )
    address = urlsplit(place.url)

    def check(pieces: list[bytes]) -> None:
        answer = b""
        with socket.create_connection((str(address.hostname), int(address.port or 0)), timeout=20) as connection:
            try:
                connection.sendall(b"".join(pieces))
                connection.shutdown(socket.SHUT_WR)
                while chunk := connection.recv(65536):
                    answer += chunk
            except (ConnectionResetError, BrokenPipeError):
                pass  # it has refused and closed before all of it was sent
        if answer:
            assert answer.startswith(b"HTTP/1.1 ")
            assert answer[9:12] < b"500"

    hunt(check, st.lists(parts, min_size=1, max_size=6), cases)
    until(lambda: is_idle(place))


@sizes
def test_steers_of_all_sorts(place: Place, cases: int) -> None:
    names = st.sampled_from(["a", "a", "b"])
    steers = st.fixed_dictionaries(
        {},
        optional={
            "router": st.sampled_from(["round-robin", "power-of-two", "prefix-affinity", "magic"]) | json_values,
            "weights": st.dictionaries(names, st.floats() | json_values, max_size=2) | json_values,
            "limits": st.dictionaries(names, st.integers() | json_values, max_size=2) | json_values,
            "closed": st.lists(names, max_size=2) | json_values,
            "extra": json_values,
        },
    )
    tokens = st.sampled_from([ADMIN, ADMIN, ADMIN, "", "x"])

    def check(case: tuple[Any, str]) -> None:
        steer, token = case
        content = steer if isinstance(steer, bytes) else json.dumps(steer).encode()
        before = place.admin.read()
        status, back, body = call(place.url, "/admin/steer", content, bearer(token))
        assert status in (200, 400, 401)
        check_answer(status, back, body)
        now = place.admin.read()
        if status != 200:
            assert (now.router, now.weights, now.limits) == (before.router, before.weights, before.limits)
        assert now.weights["a"] >= 0 and now.limits["a"] >= 0

    hunt(check, st.tuples(st.one_of(steers, json_values, st.binary(max_size=40)), tokens), cases)
    place.admin.steer("least-outstanding", {"a": 1.0}, {"a": 0}, closed=[])
    assert call(place.url, "/v1/chat/completions", {"model": MODEL})[0] == 200


@sizes
def test_observations_of_all_sorts(sidecar: str, cases: int) -> None:
    spaces = call(sidecar, "/spaces")[2]
    lengths, heads = spaces["observation"]["length"], spaces["action"]["heads"]
    numbers = st.floats(-20, 20) | st.integers(-3, 8) | st.floats()
    readings = st.one_of(numbers, st.lists(numbers, max_size=3), st.lists(numbers, min_size=2, max_size=2), json_values)
    changes = st.dictionaries(st.sampled_from([*FIELDS, "other"]), readings, max_size=3)
    raw = st.fixed_dictionaries(
        {name: st.floats(-10, 10).map(lambda x, n=n: [x] * n) | readings for name, n in lengths.items()}  # type: ignore[misc]
    )
    asked = st.one_of(
        st.fixed_dictionaries(
            {"telemetry": changes.map(lambda change: OBSERVED | change) | json_values},
            optional={"forecast_w": readings, "start": st.booleans() | json_values},
        ),
        st.fixed_dictionaries(
            {"observation": raw},
            optional={"action_mask": st.lists(st.booleans(), min_size=sum(heads), max_size=sum(heads)) | json_values},
        ),
        json_values,
    ).map(lambda value: json.dumps(value).encode())

    def check(content: bytes) -> None:
        status, back, body = call(sidecar, "/decide", content)
        assert status in (200, 400), body
        check_answer(status, back, body)
        if status == 200:
            assert all(0 <= option < head for option, head in zip(body["encoded"], heads, strict=True))

    hunt(check, asked | st.binary(max_size=60), cases)
    assert call(sidecar, "/decide", {"telemetry": OBSERVED})[0] == 200
