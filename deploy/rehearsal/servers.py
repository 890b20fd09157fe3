"""Emulated inference servers, one for each slot of the live machine, on ports of this host."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

import uvicorn
from starlette.applications import Starlette

from ...simulator.kernels.state import EMPTY, FAILED, LOADING, SLEEPING, TENANT
from .control import control_app
from .live import LiveMachine
from .server_app import ServerApp

P = ParamSpec("P")
T = TypeVar("T")
CONTROL = -1  # in the place of a slot
GONE = (EMPTY, FAILED, TENANT)
LINGER_NOT = struct.pack("ii", 1, 0)
"""For SO_LINGER: a socket that is closed is reset, as those of a killed process may be."""


class EmulatedServers:
    """A server for each slot, in a thread of their own, which also owns the machine.

    A server listens as long as its slot holds a model, is about to, or sleeps: it is gone where the slot is empty or
    has failed. Its port stays its own.

    Args:
        machine: The machine; from now on only :meth:`call` may touch it.
        host: Address to listen on.
        ports: By slot; free ones by default.

    Attributes:
        apps: The servers' applications, by slot.
        urls: Where they listen, by the slot's name.
        control_url: Where they can be started and stopped, see :mod:`.launch`.
    """

    def __init__(self, machine: LiveMachine, host: str = "127.0.0.1", ports: Mapping[str, int] | None = None) -> None:
        self.machine = machine
        self._host = host
        self.apps = [ServerApp(machine, slot) for slot in range(len(machine.slots))]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="emulated servers", daemon=True)
        self._servers: dict[int, tuple[uvicorn.Server, asyncio.Task[None]]] = {}
        self._held: dict[int, int] = {}
        self._pacing: asyncio.Task[None] | None = None
        asked = [(ports or {}).get(name, 0) for name in machine.slots]
        # All at once, so that they differ; each is let go again where its server is gone.
        self._sockets = {slot: _bound(host, port) for slot, port in enumerate(asked)}
        self._ports = {slot: own.getsockname()[1] for slot, own in self._sockets.items()}
        self._sockets[CONTROL] = _bound(host, 0)
        self._ports[CONTROL] = self._sockets[CONTROL].getsockname()[1]
        self.control_url = f"http://{host}:{self._ports[CONTROL]}"
        self.urls = {name: f"http://{host}:{self._ports[slot]}" for slot, name in enumerate(machine.slots)}

    # ------------------------------------------------------------------------------------------------------------ life

    def __enter__(self) -> Self:
        """Starts the servers."""
        self._thread.start()
        self._wait(self._open())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends them, and what they still have to do."""
        self._wait(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _open(self) -> None:
        self.machine.on_status.append(self._follow)
        for slot in range(len(self.apps)):
            if self.machine.status(slot) not in GONE:
                self._start(slot)
        self._listen(CONTROL, control_app(self.machine))
        while not all(server.started for server, _ in self._servers.values()):
            await asyncio.sleep(0.005)

    async def _close(self) -> None:
        self.machine.on_status.remove(self._follow)
        tasks = [task for _, task in self._servers.values()]
        if self._pacing is not None:
            self._pacing.cancel()
            tasks.append(self._pacing)
        for slot in list(self._servers):
            self._stop(slot)
        for own in self._sockets.values():
            own.close()
        await asyncio.gather(*tasks, return_exceptions=True)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _start(self, slot: int) -> None:
        self._held[slot] = self._deployment(slot)
        self._listen(slot, self.apps[slot].app)

    def _listen(self, slot: int, app: Starlette) -> None:
        own = self._sockets.pop(slot, None) or _bound(self._host, self._ports[slot])
        config = uvicorn.Config(app, log_config=None, log_level="critical", access_log=False, lifespan="off")
        server = uvicorn.Server(config)
        self._sockets[slot] = own
        self._servers[slot] = server, asyncio.get_running_loop().create_task(server.serve(sockets=[own]))

    def _stop(self, slot: int) -> None:
        """Cuts whatever is connected to a server, which then listens no more."""
        server, task = self._servers.pop(slot)
        if not server.started:
            task.cancel()
        server.should_exit = server.force_exit = True
        for listener in getattr(server, "servers", []):
            listener.close()
        self._sockets.pop(slot).close()
        for connection in list(server.server_state.connections):
            transport = connection.transport
            with suppress(OSError):
                transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
            transport.abort()

    def _follow(self, slot: int, before: int, now: int) -> None:
        """A slot has changed its state: its server dies with it, or another is started, which also loads anew."""
        anew = now == LOADING and (before != SLEEPING or self._held[slot] != self._deployment(slot))
        if slot in self._servers and (now in GONE or anew):
            self._stop(slot)
        if slot not in self._servers and now not in GONE:
            self.apps[slot].restart()
            self._start(slot)

    def _deployment(self, slot: int) -> int:
        return int(self.machine.cluster.engine.slots["deployment"][slot])

    # ---------------------------------------------------------------------------------------------------- from outside

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls a function in the servers' thread, where alone the machine may be touched, and gives its result."""

        async def called() -> T:
            return function(*args, **kwargs)

        return self._wait(called())

    def advance_to(self, time_s: float) -> None:
        """Lets the machine go on, where it does not by itself; what there is to send is sent in the meantime."""
        self.call(self.machine.advance_to, time_s)

    def run(self, speed: float = 1.0) -> None:
        """From now on time goes on by itself, ``speed`` simulated seconds to a second."""

        def begin() -> None:
            self._pause()
            self._pacing = self._loop.create_task(self.machine.run(speed))

        self.call(begin)

    def pause(self) -> None:
        """From now on it goes on only by :meth:`advance_to`."""
        self.call(self._pause)

    def _pause(self) -> None:
        if self._pacing is not None:
            self._pacing.cancel()
            self._pacing = None

    def kill(self, name: str) -> None:
        """Kills a server: its connections are cut, and its port is closed."""
        self.call(self.machine.kill, self.machine.number(name))

    def start(self, name: str, model: str | None = None) -> None:
        """Starts a server that is gone; it loads its model, by default the one that it had."""
        self.call(self.machine.serve, self.machine.number(name), model)

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def _bound(host: str, port: int) -> socket.socket:
    own = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    own.bind((host, port))
    own.setblocking(False)
    return own
