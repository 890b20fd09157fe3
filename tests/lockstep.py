"""The emulated stack in lock-step: time stands still until every request and every reading is where it belongs."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from typing import Any

import aiohttp
import numpy as np

from llmcluster.deploy.config import DeployConfig
from llmcluster.deploy.deployable import checked_config
from llmcluster.deploy.gateway.app import make_app
from llmcluster.deploy.gateway.server import serve_app
from llmcluster.deploy.keeper.client import KeeperClient
from llmcluster.deploy.nvml.session import NvmlSession
from llmcluster.deploy.plant import RealPlant
from llmcluster.deploy.rehearsal.load import Outcome, send
from llmcluster.deploy.rehearsal.stage import Stage
from llmcluster.deploy.stack import gateway_client, plant_of
from llmcluster.envs.cluster_env import LLMClusterEnv
from llmcluster.envs.telemetry import Telemetry
from llmcluster.simulator.kernels.state import FINISHED, LOADING
from llmcluster.simulator.units import PS_PER_S
from llmcluster.simulator.workload.table import RequestTable

STEP_S = 0.125
PATIENCE_S = 20.0


class Lockstep:
    """A stage whose time is moved by hand, and the plant over it."""

    def __init__(self, stage: Stage, config: DeployConfig, env: LLMClusterEnv, requests: RequestTable) -> None:
        self.stage, self.machine, self.config, self.env = stage, stage.machine, config, env
        self.requests, self.now_s, self.sent = requests, 0.0, 0
        self.outcomes: list[Outcome] = []
        self._under_way: list[Future[None]] = []
        self.log: list[tuple[str, dict[str, Any]]] = []
        self.plant: RealPlant
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    @contextmanager
    def running(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.callback(self.stage.stop, "keeper")
            self.stage.start_keeper()
            self.writer = stack.enter_context(KeeperClient(self.stage.socket))
            stack.enter_context(self.stage.servers)
            app, spec = make_app(self.config.gateway, lambda: self.now_s), self.config.gateway
            self._gateway = stack.enter_context(ExitStack())
            self._gateway.enter_context(serve_app(app, spec.host, spec.port, spec.limits, spec.timeouts))
            stack.enter_context(self.stage.gpus.bound())
            session = NvmlSession([gpu for slot in self.config.slots for gpu in slot.gpus], 5.0, lambda: self.now_s)
            stack.callback(session.close)
            self.gateway = gateway_client(self.config)
            self.plant, self.capper = plant_of(
                self.config,
                self.env,
                session,
                self.gateway,
                self.writer,
                lambda kind, **facts: self.note(kind, **facts),
                lambda: self.now_s,
            )
            self._thread.start()
            self._client = self._do(self._open())
            try:
                yield
            finally:
                for one in self._under_way:
                    one.cancel()
                self._do(self._client.close())
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._thread.join()
                self._loop.close()

    def note(self, kind: str, **facts: Any) -> None:
        self.log.append((kind, facts))

    async def _open(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(self.stage.gateway_url, connector=aiohttp.TCPConnector(limit=0))

    def _do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)

    def until(self, is_so: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not is_so():
            assert time.monotonic() < deadline, what
            time.sleep(0.001)

    def of_machine(self, ask: Callable[[], Any]) -> Any:
        return self.stage.servers.call(ask)

    def done(self) -> int:
        rows = self.machine.cluster.engine.requests["status"]
        return int(self.of_machine(lambda: np.count_nonzero(rows == FINISHED)))

    def pass_tick(self) -> Telemetry:
        """Goes on by a tick, looking once a second; gives what the plant says at its end."""
        self.pass_seconds(self.env.scenario.tick_s)
        return self.plant.read()

    def pass_seconds(self, seconds: int) -> None:
        """Goes on, looking once a second."""
        for _ in range(round(seconds / STEP_S)):
            self._send()
            self.now_s += STEP_S
            self.stage.servers.advance_to(self.now_s)
            self.until(lambda: self.gateway.read().left >= self.done(), "answers do not reach the gateway")
            if self.now_s % 1 == 0:
                self.settle()
                self.plant.look()
                self.settle()

    def hush(self) -> None:
        """From now on nobody asks for anything."""
        self.sent = len(self.requests)

    def cut_gateway(self) -> None:
        """The gateway ends."""
        self._gateway.close()

    def settle(self) -> None:
        """Waits until commands to servers have come to their end, or to where they wait for time to pass."""
        status = self.machine.status
        for slot, life in enumerate(self.plant.lives):
            self.until(
                lambda slot=slot, life=life: not life.is_busy or self.of_machine(lambda: status(slot)) == LOADING,  # type: ignore[misc]
                "a command goes on",
            )

    def _send(self) -> None:
        arrival_s = self.requests.arrival_ps / PS_PER_S
        while self.sent < len(arrival_s) and arrival_s[self.sent] < self.now_s + STEP_S:
            i, self.sent = self.sent, self.sent + 1
            self.ask(int(self.requests.prompt_tokens[i]), int(self.requests.output_tokens[i]))

    def ask(self, prompt_tokens: int, output_tokens: int) -> None:
        """Sends a request now, and waits until it is with a server."""
        body = {
            "model": self.env.fleet.models[0],
            "prompt": [1] * prompt_tokens,
            "max_tokens": output_tokens,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        outcome, there = Outcome(self.now_s, output_tokens), self._sent()
        self.outcomes.append(outcome)
        self._under_way.append(asyncio.run_coroutine_threadsafe(send(self._client, body, outcome), self._loop))
        self.until(lambda: self._sent() > there, "a request is lost")

    def _sent(self) -> int:
        return int(self.of_machine(lambda: self.machine.cluster.sent))


def lockstep(stage: Stage, requests: RequestTable, **changes: dict[str, Any]) -> Lockstep:
    """A stage in lock-step: steering never lapses, and every guard is as wide as it can be."""
    wide = {"max_rise_w": 1e4, "max_fall_w": 1e4, "hysteresis_w": 0.0, "min_interval_s": 0.0}
    changes["limits"] = wide | changes.get("limits", {})
    changes["telemetry"] = {"timeout_s": 5.0} | changes.get("telemetry", {})
    stage.configure(**{"gateway": {"lease_s": 600.0}, "keeper": {"lease_s": 600.0}, **changes})
    config = checked_config(stage.config)
    return Lockstep(stage, config, LLMClusterEnv(config.scenario, forecaster="none"), requests)


def traffic(seconds: float, rate_per_s: float) -> RequestTable:
    """Requests at even distances, of all lengths."""
    rng = np.random.default_rng(5)
    count = int(seconds * rate_per_s)
    prompt, output = rng.integers(20, 3000, count), rng.integers(40, 120, count)
    return RequestTable.from_columns(np.arange(count) / rate_per_s, prompt, output)
