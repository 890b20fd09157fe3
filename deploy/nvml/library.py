"""Opening NVML, and never the wrong one."""

from __future__ import annotations

import os

import pynvml

from .errors import LibraryMismatchError, mapped

STATE_VARIABLE = "LLMCLUSTER_NVML_STATE"


def open_library() -> None:
    """Initialises NVML; each call takes a `close_library`.

    A process that is meant to see emulated GPUs (it has ``LLMCLUSTER_NVML_STATE``) refuses the driver's library, so
    that a rehearsal on a machine with GPUs never writes to them.
    """
    with mapped("NVML"):
        pynvml.nvmlInit()
    if os.environ.get(STATE_VARIABLE) and not hasattr(pynvml.nvmlLib, "llmcluster_stub"):
        close_library()
        raise LibraryMismatchError(
            "NVML", f"{STATE_VARIABLE} asks for emulated GPUs, but the driver's own library is loaded"
        )


def close_library() -> None:
    """Gives NVML back."""
    with mapped("NVML"):
        pynvml.nvmlShutdown()
