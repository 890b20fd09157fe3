"""Building the stub of libnvidia-ml.so.1 at first use, and putting it in the place of the driver's."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs
import pynvml

from ...errors import InputError
from ..nvml.library import STATE_VARIABLE

SOURCE = Path(__file__).parent / "stub" / "nvml.c"
SONAME = "libnvidia-ml.so.1"
FLAGS = ("-shared", "-fPIC", "-O2", "-std=gnu11", "-pthread", f"-Wl,-soname,{SONAME}")


def compiler() -> str:
    """The C compiler: ``CC``, or the system's; raises `InputError` if there is none."""
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        found = shutil.which(name) if name else None
        if found:
            return found
    raise InputError(
        "the emulated NVML",
        "it is built by a C compiler at first use, and there is none",
        "Install one (Debian: apt-get install gcc libc6-dev), or name it in CC",
    )


def stub_library() -> Path:
    """The built library, under the user's cache or ``LLMCLUSTER_CACHE``, in a folder named by its source."""
    cache = Path(os.environ.get("LLMCLUSTER_CACHE") or platformdirs.user_cache_dir("llmcluster"))
    source = SOURCE.read_bytes()
    folder = cache / "nvml-stub" / hashlib.sha256(source + os.uname().machine.encode()).hexdigest()[:16]
    library = folder / SONAME
    if not library.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:  # its own folder: others may build at the same time
            built = Path(scratch) / SONAME
            done = subprocess.run(
                [compiler(), *FLAGS, str(SOURCE), "-o", str(built)], capture_output=True, text=True, check=False
            )
            if done.returncode:
                problem = f"{compiler()} cannot build it:\n{done.stderr.strip()}\n"
                raise InputError(
                    str(SOURCE), problem, "Install the C library's headers, or name another compiler in CC"
                )
            built.replace(library)
    return library


def environment(state: Path) -> dict[str, str]:
    """What to add to a process's environment so that its NVML is the emulated one over ``state``."""
    others = os.environ.get("LD_LIBRARY_PATH", "")
    folders = [str(stub_library().parent), *filter(None, [others])]
    return {STATE_VARIABLE: str(state), "LD_LIBRARY_PATH": os.pathsep.join(folders)}


@contextmanager
def bound(state: Path) -> Iterator[None]:
    """Within, NVML of this very process is the emulated one over ``state``.

    The binding would find the stub by its SONAME if nothing else had loaded the driver's library before; since torch or
    an earlier call may have, it is handed the stub outright, so that no write can reach a real GPU. Sessions that are
    left open within are closed.
    """
    library, variable = pynvml.nvmlLib, os.environ.get(STATE_VARIABLE)
    _bind(ctypes.CDLL(str(stub_library())))
    os.environ[STATE_VARIABLE] = str(state)
    try:
        yield
    finally:
        with suppress(pynvml.NVMLError):
            while True:
                pynvml.nvmlShutdown()
        _bind(library)
        os.environ.pop(STATE_VARIABLE)
        if variable is not None:
            os.environ[STATE_VARIABLE] = variable


def _bind(library: ctypes.CDLL | None) -> None:
    pynvml.nvmlLib = library
    pynvml._nvmlGetFunctionPointer_cache.clear()
