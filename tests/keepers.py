"""Keepers to test with: as a process of their own, and as a thread of this one; and waiting with a deadline."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from llmcluster.deploy.keeper.custody import Custody
from llmcluster.deploy.keeper.server import Keeper
from llmcluster.deploy.keeper.sockets import alone, listen
from llmcluster.deploy.nvml.session import NvmlSession
from llmcluster.deploy.rehearsal.nvml import EmulatedGpus
from llmcluster.tests.emulated import A100, H100


def eventually(holds: Callable[[], bool], patience_s: float = 20.0) -> None:
    """Waits until something holds; fails if it does not in so long."""
    until_s = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < until_s, "it never came to hold"
        time.sleep(0.005)


def is_untouched(gpus: EmulatedGpus) -> bool:
    """Whether limits and clocks of a pair of an H100 and an A100 are as they were."""
    limits = [gpus.limit_w(gpu) for gpu in (0, 1)]
    return limits == [H100.cap_max_w, A100.cap_max_w] and gpus.clock_lock_mhz(0) is None


def command(socket: Path, *arguments: str) -> list[str]:
    """The command line of a keeper."""
    return [sys.executable, "-m", "llmcluster.deploy.keeper", "--socket", str(socket), *arguments]


@contextmanager
def keeper_process(gpus: EmulatedGpus, socket: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A keeper over emulated GPUs as a process; it is asked to end, and must."""
    environment = dict(os.environ) | gpus.environment()
    with subprocess.Popen(command(socket, *arguments), env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait(20)


@contextmanager
def keeper_thread(
    socket: Path,
    uids: Collection[int] = (),
    lease_s: float = 3600.0,
    floor_w: float = 0.0,
    ceiling_w: float = float("inf"),
) -> Iterator[Custody]:
    """A keeper over this process's NVML in a thread; it restores when the block ends."""
    with closing(NvmlSession(timeout_s=0.3)) as session:
        custody = Custody(session, socket.with_suffix(".state"), floor_w, ceiling_w, timeout_s=0.5)
        with alone(socket), _served(custody, socket, uids or [os.geteuid()], lease_s):
            yield custody


@contextmanager
def _served(custody: Custody, socket: Path, uids: Collection[int], lease_s: float) -> Iterator[None]:
    listener = listen(socket, uids)
    stop = asyncio.Event()
    runner = asyncio.Runner()
    loop = runner.get_loop()

    def serve() -> None:
        with runner:
            runner.run(Keeper(custody, uids, lease_s).serve(listener, stop))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(20)
        assert not thread.is_alive()
