"""What the gateway costs: time added to a request, and how many streams go through it at once.

Three processes: a server that streams tokens at a given pace, the gateway, and this one, which asks. The two others are
as light as can be, so that on two cores the gateway has most of one.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import uvloop

from ..readings import ReadingError
from .client import HttpGatewayClient

MODEL = "paced"
STARTS_WITHIN_S = 60.0
ANSWER = b'{"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}'
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Load:
    """What is asked.

    Attributes:
        requests: Short requests, one after the other, with and without the gateway.
        streams: Streams at once.
        tokens_per_s: Tokens per second of a stream.
        length_s: Length of a stream, seconds.
    """

    requests: int = 2000
    streams: int = 1000
    tokens_per_s: float = 20.0
    length_s: float = 10.0


def measure(load: Load) -> dict[str, Any]:
    """Puts a load on a gateway, and tells what it did.

    Returns:
        ``direct_ms`` and ``gateway_ms``, the time of a short request at some percentiles, and ``added_ms``, their
        difference; of the streams how many came to their end (``completed``), how much later than without anything in
        between their tokens came (``token_delay_ms``, from the server's write to the client's read), how much longer
        than planned they took (``stretch``), what share of a core the gateway had (``gateway_cpu``), and how much of
        its time a token cost it (``gateway_us_per_token``), which is the figure to trust where others share the cores.
    """
    with _server() as upstream, _gateway(upstream) as (gateway, process):
        direct_ms, gateway_ms = uvloop.run(_short(upstream, gateway, load.requests))
        before_s, began_s = _cpu_s(process), time.monotonic()
        streams = uvloop.run(_streams(gateway, load))
        cpu_s, took_s = _cpu_s(process) - before_s, time.monotonic() - began_s
    added = {name: gateway_ms[name] - direct_ms[name] for name in direct_ms}
    return {
        "load": asdict(load),
        "direct_ms": direct_ms,
        "gateway_ms": gateway_ms,
        "added_ms": added,
        **streams,
        "gateway_cpu": cpu_s / took_s,
        "gateway_us_per_token": cpu_s * 1e6 / (load.streams * _tokens(load)),
    }


# ---------------------------------------------------------------------------------------------------------- asking


class _Caller(asyncio.Protocol):
    """A client's connection: one request at a time, and the times at which chunks were written and read."""

    def __init__(self) -> None:
        self.delays_s: list[float] = []
        self._rest = b""
        self._done: asyncio.Future[bool] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none by name

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(False)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        data = self._rest + data
        *lines, self._rest = data.split(b"\n")
        for line in lines:
            if line.startswith(b'data: {"at": '):
                self.delays_s.append(now - float(line[13 : line.index(b",")]))
        if DONE.strip() in lines or data.endswith(ANSWER):
            self._rest = b""
            self._end(True)

    async def ask(self, request: bytes) -> bool:
        """Whether the answer came to its end."""
        assert self._transport is not None
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._done

    def close(self) -> None:
        """Ends the connection."""
        if self._transport is not None:
            self._transport.close()

    def _end(self, well: bool) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(well)


def _request(load: Load | None) -> bytes:
    about = {} if load is None else {"stream": True, "pace": load.tokens_per_s, "tokens": _tokens(load)}
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "x" * 400}], **about}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: load\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


async def _connect(url: str) -> _Caller:
    parts = urlsplit(url)
    _, caller = await asyncio.get_running_loop().create_connection(_Caller, str(parts.hostname), int(parts.port or 80))
    return caller


async def _short(upstream: str, gateway: str, requests: int) -> tuple[dict[str, float], dict[str, float]]:
    """Times of short requests, turn about, so that what else the machine does befalls both."""
    callers = [await _connect(url) for url in (upstream, gateway)]
    request = _request(None)
    times_ms: list[list[float]] = [[], []]
    for number in range(requests + WARM_UP):
        for caller, times in zip(callers, times_ms, strict=True):
            began = time.perf_counter()
            await caller.ask(request)
            if number >= WARM_UP:
                times.append((time.perf_counter() - began) * 1e3)
    for caller in callers:
        caller.close()
    return _percentiles(times_ms[0]), _percentiles(times_ms[1])


WARM_UP = 50


async def _streams(gateway: str, load: Load) -> dict[str, Any]:
    request, planned_s = _request(load), _tokens(load) / load.tokens_per_s
    taken_s: list[float] = []

    async def one(number: int) -> tuple[bool, list[float]]:
        await asyncio.sleep(number / load.streams)  # they do not all begin at one instant
        caller = await _connect(gateway)
        began = time.monotonic()
        well = await caller.ask(request)
        taken_s.append(time.monotonic() - began)
        caller.close()
        return well and len(caller.delays_s) == _tokens(load), caller.delays_s

    ended = await asyncio.gather(*(one(number) for number in range(load.streams)))
    delays = [delay * 1e3 for _, delays_s in ended for delay in delays_s]
    return {
        "completed": sum(well for well, _ in ended),
        "token_delay_ms": _percentiles(delays),
        "stretch": max(taken_s) / planned_s - 1,
    }


def _tokens(load: Load) -> int:
    return max(1, round(load.tokens_per_s * load.length_s))


def _percentiles(values: list[float]) -> dict[str, float]:
    ordered = sorted(values) or [float("nan")]
    return {f"p{share}": ordered[min(len(ordered) * share // 100, len(ordered) - 1)] for share in (50, 90, 99)}


# --------------------------------------------------------------------------------------------------------- serving


class _Paced(asyncio.Protocol):
    """A server's connection: answers at once, or streams tokens that bear the time at which they were written."""

    def __init__(self) -> None:
        self._rest = b""
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none by name

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._rest += data
        head, ends, body = self._rest.partition(b"\r\n\r\n")
        length = next((int(h[15:]) for h in head.lower().split(b"\r\n") if h.startswith(b"content-length:")), 0)
        if not ends or len(body) < length:
            return
        self._rest = b""
        asked = json.loads(body) if body else {}
        assert self._transport is not None
        if asked.get("stream"):
            self._transport.write(STREAM_HEAD)
            now = asyncio.get_running_loop().time()
            self._write(asked["tokens"], 1 / asked["pace"], now)
        else:
            about = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(ANSWER)}\r\n\r\n"
            self._transport.write(about.encode() + ANSWER)

    def _write(self, left: int, gap_s: float, due_s: float) -> None:
        assert self._transport is not None
        if left == 0:
            self._transport.write(_chunk(DONE) + b"0\r\n\r\n")
            return
        event = b'data: {"at": %.6f, "choices": [{"index": 0, "delta": {"content": " token"}}]}\n\n' % time.monotonic()
        self._transport.write(_chunk(event))
        due_s += gap_s
        self._timer = asyncio.get_running_loop().call_at(due_s, self._write, left - 1, gap_s, due_s)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _serve_paced(told: Connection) -> None:
    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(_Paced, "127.0.0.1", 0, backlog=4096)
        told.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    uvloop.run(main())


@contextmanager
def _server() -> Iterator[str]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve_paced, args=(there,), daemon=True)
    process.start()
    try:
        if not here.poll(STARTS_WITHIN_S):
            raise RuntimeError("the server of the load test did not start")
        yield f"http://127.0.0.1:{here.recv()}"
    finally:
        process.terminate()
        process.join()


@contextmanager
def _gateway(upstream: str) -> Iterator[tuple[str, int]]:
    """Address and process number of a gateway before a server."""
    token = secrets.token_hex(16)
    with tempfile.TemporaryDirectory() as folder:
        tokens, settings, said = (Path(folder) / name for name in ("admin", "gateway.toml", "said"))
        tokens.write_text(token)
        backend = f'[[backends]]\nname = "paced"\nurl = "{upstream}"\nmodel = "{MODEL}"\n'
        port = _free_port()
        settings.write_text(f'port = {port}\nadmin_tokens = "admin"\n[timeouts]\ndrain_s = 1\n{backend}')
        command = [sys.executable, "-m", f"{__package__}", "--config", str(settings)]
        with said.open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(HttpGatewayClient(url, token), process, said)
            yield url, process.pid
        finally:
            process.terminate()
            process.wait()


def _wait(client: HttpGatewayClient, process: subprocess.Popen[bytes], said: Path) -> None:
    until_s = time.monotonic() + STARTS_WITHIN_S
    while True:
        try:
            client.read()
            return
        except ReadingError as fault:
            if process.poll() is not None or time.monotonic() > until_s:
                raise RuntimeError(f"the gateway did not start: {said.read_text()}") from fault
            time.sleep(0.02)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as made:
        return int(made.getsockname()[1])


def _cpu_s(process: int) -> float:
    """Processor time of a process, from Linux's `proc`."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
