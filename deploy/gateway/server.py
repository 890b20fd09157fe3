"""Running the gateway: in this process until it is told to end, or in a thread beside it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn
from starlette.types import ASGIApp

from ...errors import InputError
from .app import make_app
from .bounded import bounded
from .config import GatewayConfig, LimitSpec, TimeoutSpec

STARTS_WITHIN_S = 30.0


@dataclass(frozen=True)
class Serving:
    """A server that runs in a thread.

    Attributes:
        url: Where it is.
        thread: The thread.
    """

    url: str
    thread: threading.Thread


def make_server(app: ASGIApp, limits: LimitSpec, timeouts: TimeoutSpec) -> uvicorn.Server:
    """Uvicorn for an application, with bounds on what clients send before a body."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            loop="uvloop",
            http=bounded(limits, timeouts),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=round(timeouts.drain_s) or 1,
        )
    )


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; raises `InputError` where that cannot be."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        made = socket.create_server((host, port), family=family, backlog=4096)
    except OSError as fault:
        raise InputError(f"{host}:{port}", f"cannot be listened at ({fault})", "Give another host or port") from fault
    made.setblocking(False)
    return made


def run(config: GatewayConfig) -> None:
    """Runs the gateway until SIGTERM or SIGINT; requests under way then have `drain_s` to end.

    Raises:
        InputError: It cannot listen where it shall, or a file of tokens does not hold.
    """
    app = make_app(config)
    with listen(config.host, config.port) as made:
        make_server(app, config.limits, config.timeouts).run(sockets=[made])


@contextmanager
def serve(config: GatewayConfig) -> Iterator[Serving]:
    """Runs the gateway in a thread while in here.

    Raises:
        InputError: It cannot listen where it shall, or a file of tokens does not hold.
    """
    with serve_app(make_app(config), config.host, config.port, config.limits, config.timeouts) as serving:
        yield serving


@contextmanager
def serve_app(app: ASGIApp, host: str, port: int, limits: LimitSpec, timeouts: TimeoutSpec) -> Iterator[Serving]:
    """Runs an application in a thread while in here.

    Raises:
        InputError: It cannot listen where it shall.
    """
    made = listen(host, port)
    server = make_server(app, limits, timeouts)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [made]}, name=f"serve {host}:{port}", daemon=True)
    thread.start()
    try:
        waiter = threading.Event()
        for _ in range(int(STARTS_WITHIN_S / 0.005)):
            if server.started or not thread.is_alive():
                break
            waiter.wait(0.005)
        if not server.started:
            raise RuntimeError(f"the server at {host}:{port} did not start; its log says why")
        address = f"[{host}]" if ":" in host else host
        yield Serving(f"http://{address}:{made.getsockname()[1]}", thread)
    finally:
        server.should_exit = True
        thread.join()
        made.close()
