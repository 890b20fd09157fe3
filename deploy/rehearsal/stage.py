"""The stage of a rehearsal: emulated GPUs and servers here, and keeper, gateway and loop as processes of their own."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import tomli_w

from ...envs.scenario import Scenario
from ...simulator.catalog import Catalog
from ...simulator.errors import InputError
from ..config import load_config
from ..keeper.client import KeeperClient
from ..readings import ReadingError
from .feed import Feed
from .live import LiveMachine
from .nvml import EmulatedGpus
from .servers import EmulatedServers

KEEPER = (sys.executable, "-m", "llmcluster.deploy.keeper")
GATEWAY = (sys.executable, "-m", "llmcluster.deploy.gateway")
PATIENCE_S = 60.0
LEASE_S = 2.0
POLL_S = 0.02


class Stage:
    """Everything but the clients.

    Args:
        scenario: What is emulated, and what the agent was trained on; its name or file is written into the
            configuration.
        folder: Where configuration, sockets, tokens and logs go.
        loop: The command line that ``deploy run`` and its options are added to.
        seed: Of the simulator.

    Attributes:
        machine: The simulator; only to be touched through ``servers``.
        gpus: The emulated GPUs.
        servers: The emulated servers.
        config: The configuration's file.
        audit: The audit log.
        tdp_w: Highest limits of all GPUs together.
        processes: What runs, by name.
    """

    def __init__(
        self,
        scenario: str | Path,
        folder: Path,
        loop: Sequence[str],
        seed: int = 0,
    ) -> None:
        self.folder, self._loop = folder, tuple(loop)
        self.machine = LiveMachine(str(scenario), seed)
        self.scenario: Scenario = self.machine.scenario
        catalog, slots = Catalog.builtin(), self.machine.cluster.blueprint.slots
        kinds = [catalog.gpu(slot.spec.gpu) for slot in slots for _ in range(slot.spec.tp * slot.spec.pp)]
        self.gpus = EmulatedGpus(folder / "gpus", kinds)
        self.tdp_w = float(self.machine.plant.fleet.cap_max_w.sum())
        self.feed = Feed(self.machine, self.gpus)
        self.servers = EmulatedServers(self.machine)
        self.config, self.audit = folder / "deploy.toml", folder / "audit.jsonl"
        self.socket = folder / "keeper.sock"
        self.gateway_url = f"http://127.0.0.1:{_free_port()}"
        self.metrics_url = f"http://127.0.0.1:{_free_port()}/metrics"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._stack = ExitStack()
        (folder / "admin.token").write_text(f"# Of a rehearsal.\n{secrets.token_hex(16)}\n")
        (folder / "admin.token").chmod(0o600)
        self._name, self._began_s = str(scenario), 0.0
        self.configure()

    def configure(self, **changes: dict[str, Any]) -> None:
        """Writes the configuration, with changes merged in table by table; before anything is started."""
        fleet, machine = self.machine.plant.fleet, self.machine
        slots = [
            {
                "name": name,
                "gpus": [str(gpu) for gpu in self.feed.gpus[r]],
                "url": self.servers.urls[name],
                "model": machine.model(r),
            }
            for r, name in enumerate(fleet.slots)
        ]
        tables: dict[str, dict[str, Any]] = {
            "gateway": {
                "port": int(self.gateway_url.rpartition(":")[2]),
                "admin_tokens": "admin.token",
                "lease_s": LEASE_S,
                "backends": [{key: slot[key] for key in ("name", "url", "model")} for slot in slots],
                "slo": {name: slo.model_dump() for name, slo in self.scenario.slo.items()},
                "health": {"interval_s": 0.5},
            },
            "keeper": {"socket": str(self.socket), "lease_s": LEASE_S},
            "audit": {"path": "audit.jsonl"},
            "exporter": {"port": int(self.metrics_url.split(":")[2].partition("/")[0])},
            "limits": {},
            "telemetry": {},
        }
        for name, table in changes.items():
            tables[name] = tables.get(name, {}) | table
        self.config.write_text(tomli_w.dumps({"scenario": self._name, "slots": slots, **tables}))

    # ------------------------------------------------------------------------------------------------------- processes

    def __enter__(self) -> Self:
        """Starts servers, keeper and gateway, and lets time go on; the loop is started by :meth:`start_loop`."""
        self._stack.enter_context(self.servers)
        try:
            self.start_keeper()
            self._start("gateway", [*GATEWAY, f"--config={self.config}"])
            self.until(self._gateway_answers, "the gateway to answer")
            self.servers.run()
            self._began_s = time.monotonic()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends all processes, the loop first."""
        self._end()

    def _end(self) -> None:
        for name in list(reversed(self.processes)):
            self.stop(name)
        self._stack.close()

    def _start(self, name: str, command: Sequence[str]) -> None:
        # One thread each for libraries that would take all cores: there are few, and many processes.
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        environment = {**os.environ, **self.gpus.environment(), **threads}
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def start_keeper(self) -> None:
        """Starts the keeper, and waits until it answers."""
        self._start("keeper", [*KEEPER, *load_config(self.config).keeper_arguments()])
        self.until(self._keeper_answers, "the keeper to answer")

    def start_loop(self, agent: str, *options: str) -> None:
        """Starts the control loop, and waits for its first decision."""
        before = len(self.lines("decision"))
        self._start("loop", [*self._loop, "deploy", "run", f"--config={self.config}", f"--agent={agent}", *options])
        self.until(lambda: len(self.lines("decision")) > before, "the loop to decide")

    def stop(self, name: str, meanwhile: Callable[[], object] = lambda: None) -> int:
        """Asks a process to end, and waits until it has; gives its exit code.

        Args:
            name: Which one.
            meanwhile: Done before waiting.
        """
        process = self.processes.pop(name)
        process.terminate()
        meanwhile()
        try:
            return process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def kill(self, name: str) -> None:
        """Kills a process as SIGKILL does."""
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def _keeper_answers(self) -> bool:
        try:
            KeeperClient(self.socket, control=False).close()
        except ReadingError:
            return False
        return True

    def _gateway_answers(self) -> bool:
        try:
            with urlopen(f"{self.gateway_url}/health", timeout=1.0) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False

    def until(self, is_so: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> float:
        """Waits until something is so; gives the seconds that took.

        Raises:
            InputError: A process has ended, or it takes too long.
        """
        began_s = time.monotonic()
        while not is_so():
            for name, process in self.processes.items():
                if process.poll() is not None:
                    said = (self.folder / f"{name}.log").read_text(errors="replace")[-2000:]
                    raise InputError(f"the {name}", f"has ended with {process.returncode}", said or "It said nothing")
            if time.monotonic() - began_s > patience_s:
                raise InputError("the rehearsal", f"waits for {what} for {patience_s:g} s", f"See {self.folder}")
            time.sleep(POLL_S)
        return time.monotonic() - began_s

    # -------------------------------------------------------------------------------------------------------- readings

    def lines(self, kind: str) -> list[dict[str, Any]]:
        """Lines of the audit log of one kind, as far as they are whole."""
        if not self.audit.is_file():
            return []
        whole = self.audit.read_text().rpartition("\n")[0].splitlines()
        return [line for line in map(json.loads, whole) if line["kind"] == kind]

    def limits_w(self) -> list[float]:
        """Power limits that are set on the GPUs."""
        return [self.gpus.limit_w(gpu) for gpu in range(len(self.gpus.uuids))]

    def power_w(self) -> list[float]:
        """True power of all GPUs in each second so far, watts."""
        joules = self.servers.call(lambda: self.machine.cluster.history.column("energy_j").sum(axis=1))
        return [float(watts) for watts in np.asarray(joules)]

    def time_of(self, second: int) -> float:
        """When a second of the simulator began, by ``time.monotonic``."""
        return self._began_s + second

    def metrics(self) -> str:
        """What the loop exports."""
        with urlopen(self.metrics_url, timeout=5.0) as answer:
            return str(answer.read().decode())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
