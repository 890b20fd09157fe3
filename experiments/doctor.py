"""What is installed, compiled and reachable here."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..simulator.kernels.compile import cache_folder, is_compiled
from ..simulator.workload.traces import TRACES, cache_path

PACKAGES = (
    "llmcluster",
    "gymnasium",
    "stable-baselines3",
    "sb3-contrib",
    "torch",
    "numpy",
    "numba",
    "simpy",
    "nvidia-ml-py",
)


def examine() -> dict[str, Any]:
    """Facts about this installation, as plain values."""
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "engine": {"compiled": is_compiled(), "cache": str(cache_folder())},
        "gpus": _gpus(),
        "traces_fetched": [name for name in TRACES if cache_path(name).is_file()],
        "measured_data": _data(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _gpus() -> dict[str, Any]:
    """GPUs that NVML sees; reading only."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as fault:
        return {"names": [], "note": f"NVML: {fault}; the simulator needs no GPU"}
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return {"names": [str(pynvml.nvmlDeviceGetName(handle)) for handle in handles], "note": ""}
    finally:
        pynvml.nvmlShutdown()


def _data() -> str | None:
    folder = Path(os.environ.get("LLMCLUSTER_DATA", "../shared/data"))
    return str(folder) if folder.is_dir() else None
