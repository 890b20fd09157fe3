"""What compiling the engine costs: in this process, or in a fresh one with an empty cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import Any

import numba.core.event

from ...simulator.errors import InputError
from ...simulator.workload.table import RequestTable
from .setup import Setup, play


def compile_s() -> float:
    """Runs a few requests and returns the seconds of it that went into compiling: 0 where the cache had it all."""
    events: Any = numba.core.event
    timer = events.TimingListener()
    setup = Setup(replicas=2)
    requests = RequestTable.from_columns([0, 10**9, 10**12], [100, 5000, 10], [10, 1, 100])
    with events.install_listener("numba:compile", timer):
        play(setup.cluster(setup.blueprint(), requests), 2 * 10**12)
    return float(timer.duration) if timer.done else 0.0


def cold_compile_s() -> float:
    """The same in a process of its own whose cache folder is empty.

    Raises:
        InputError: The cache folder is not where the environment says.
    """
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", __spec__.name],
            env={**os.environ, "XDG_CACHE_HOME": folder},
            capture_output=True,
            text=True,
            check=True,
        )
    told = json.loads(done.stdout)
    if told["was_compiled"]:
        raise InputError("--compile", "the cache folder does not follow XDG_CACHE_HOME here", "Leave the option out")
    return float(told["compile_s"])


if __name__ == "__main__":
    from ...simulator.kernels.compile import is_compiled

    print(json.dumps({"was_compiled": is_compiled(), "compile_s": compile_s()}))
