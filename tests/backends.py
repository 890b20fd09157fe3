"""Inference servers for tests of the gateway: they speak as much of OpenAI's API as it takes, over real sockets."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from llmcluster.deploy.gateway.config import GatewayConfig, LimitSpec, TimeoutSpec
from llmcluster.deploy.gateway.server import serve, serve_app

MODEL = "tiny"
ADMIN = "administration-token-0123"
CLIENT = "client-token-0123456789"
Message = dict[str, Any]
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "12345678"}]}


@pytest.fixture
def admin_tokens(tmp_path: Path) -> Path:
    path = tmp_path / "admin"
    path.write_text(f"# who may steer\n\n{ADMIN}\n")
    return path


@pytest.fixture
def client_tokens(tmp_path: Path) -> Path:
    path = tmp_path / "clients"
    path.write_text(CLIENT + "\n")
    return path


def until(holds: Callable[[], Any], within_s: float = 10.0) -> Any:
    """Waits until something holds, and gives it."""
    end = time.monotonic() + within_s
    while not (found := holds()):
        assert time.monotonic() < end, "it does not come to hold"
        time.sleep(0.002)
    return found


class Server:
    """One server, whose ways can be changed while it runs.

    Attributes:
        url: Where it is.
        seen: Bodies of the requests that came.
        headers: Their headers.
        gone: Streams whose client went away before the end.
        tokens: Tokens of each answer.
        gap_s: Time before each token.
        status: Status of its answers.
        break_after: Tokens after which an answer breaks off.
        healthy: Whether it says so.
        hold: Answers begin once this is set.
        pause_after: Tokens after which a stream waits until `hold` is set.
    """

    def __init__(self, name: str) -> None:
        self.name, self.url = name, ""
        self.seen: list[Message] = []
        self.headers: list[dict[str, str]] = []
        self.gone, self.open = 0, 0
        self.tokens, self.gap_s, self.status, self.healthy = 4, 0.0, 200, True
        self.break_after: int | None = None
        self.pause_after: int | None = None
        self.hold = threading.Event()
        self.hold.set()
        routes = [Route("/health", self._health), Route("/v1/models", self._models)]
        routes += [
            Route(f"/v1/{path}", self._answer, methods=["POST"])
            for path in ("chat/completions", "completions", "embeddings")
        ]
        self.app = Starlette(routes=routes)

    async def _health(self, request: Request) -> Response:
        return Response(status_code=200 if self.healthy else 503)

    async def _models(self, request: Request) -> Response:
        entry = {"id": MODEL, "object": "model", "created": 7, "owned_by": "vllm", "max_model_len": 2048}
        return JSONResponse({"object": "list", "data": [entry]})

    async def _answer(self, request: Request) -> Response:
        asked = await request.json()
        self.seen.append(asked)
        self.headers.append(dict(request.headers))
        if self.pause_after is None:
            await self._held()
        if self.status != 200:
            return JSONResponse({"error": {"message": "as told", "code": self.status}}, self.status)
        usage = {"prompt_tokens": 10, "completion_tokens": self.tokens, "total_tokens": 10 + self.tokens}
        if request.url.path.endswith("embeddings"):
            data = [{"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}]
            return JSONResponse({"object": "list", "data": data, "model": asked["model"], "usage": usage})
        if asked.get("stream"):
            options = asked.get("stream_options")
            with_usage = isinstance(options, dict) and bool(options.get("include_usage"))
            chat = "chat" in request.url.path
            return StreamingResponse(self._stream(usage if with_usage else None, chat), media_type="text/event-stream")
        text = "".join(f"{self.name}{i} " for i in range(self.tokens))
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}, "text": text}
        kind = "chat.completion" if "chat" in request.url.path else "text_completion"
        return JSONResponse(
            {"id": "x", "object": kind, "created": 1, "model": asked["model"], "choices": [choice], "usage": usage}
        )

    async def _held(self) -> None:
        while not self.hold.is_set():
            await asyncio.sleep(0.002)

    async def _stream(self, usage: Message | None, chat: bool) -> AsyncIterator[bytes]:
        self.open += 1
        ended = False
        try:
            if chat:
                yield _event([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
            for i in range(self.tokens):
                if i == self.break_after:
                    ended = True
                    raise ConnectionAbortedError("as told")
                if i == self.pause_after:
                    await self._held()
                await asyncio.sleep(self.gap_s)
                text = f"{self.name}{i} "
                own = {"delta": {"content": text}} if chat else {"text": text}
                yield _event([{"index": 0, "finish_reason": None, **own}])
            if usage is not None:
                yield _event([], usage)
            yield b"data: [DONE]\n\n"
            ended = True
        finally:
            self.open -= 1
            self.gone += not ended


def _event(choices: list[Message], usage: Message | None = None) -> bytes:
    event = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": MODEL, "choices": choices}
    return b"data: " + json.dumps({**event, "usage": usage}).encode() + b"\n\n"


@contextmanager
def servers(*names: str) -> Iterator[list[Server]]:
    """Some servers, each in a thread."""
    with ExitStack() as stack:
        made = [Server(name) for name in names]
        for server in made:
            timeouts = TimeoutSpec(drain_s=0.5)
            serving = stack.enter_context(serve_app(server.app, "127.0.0.1", 0, LimitSpec(), timeouts))
            server.url = serving.url
        yield made


@contextmanager
def closing_socket(*answers: bytes) -> Iterator[str]:
    """A server that closes every connection once something has come.

    POSTs get the answers before, in their order and then the last one again; everything else gets nothing.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    left = list(answers)

    def serve_all() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5)
                if connection.recv(65536).startswith(b"POST") and left:
                    connection.sendall(left.pop(0) if len(left) > 1 else left[0])

    thread = threading.Thread(target=serve_all, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


@contextmanager
def gateway_over(behind: list[Server] | dict[str, str], **settings: Any) -> Iterator[str]:
    """The address of a gateway before some servers, or before addresses by name."""
    urls = behind if isinstance(behind, dict) else {server.name: server.url for server in behind}
    settings = {"timeouts": {"drain_s": 0.5}, "health": {"interval_s": 0.05}, **settings}
    specs = [{"name": name, "url": url, "model": MODEL} for name, url in urls.items()]
    config = GatewayConfig.model_validate({"port": 0, "backends": specs, **settings})
    with serve(config) as serving:
        yield serving.url


def call(
    url: str, path: str, content: Any = None, headers: dict[str, str] | None = None, method: str | None = None
) -> tuple[int, dict[str, str], Any]:
    """Status, headers and body of one request: JSON where it is JSON; bytes are sent as they are."""
    body = content if content is None or isinstance(content, bytes) else json.dumps(content).encode()
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
    try:
        own = {"content-type": "application/json", **(headers or {})}
        connection.request(method or ("GET" if body is None else "POST"), path, body, own)
        response = connection.getresponse()
        text = response.read()
    finally:
        connection.close()
    about = {name.lower(): value for name, value in response.getheaders()}
    is_json = about.get("content-type", "").startswith("application/json")
    return response.status, about, json.loads(text) if is_json and text else text


def bearer(token: str) -> dict[str, str]:
    """The header that bears a token."""
    return {"authorization": f"Bearer {token}"}
