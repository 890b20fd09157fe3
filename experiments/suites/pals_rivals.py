"""What PALS is held against: the paper's other strategies (section 4.3), and constants."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ...agents.base import Agent, Task
from ...agents.static import Constant, UniformCap, all_on
from .pals_worlds import STATIC_BATCH

CAPS, BATCHES = np.linspace(0.0, 1.0, 9), (STATIC_BATCH, 256)
"""The grid of constant actions: shares of the range of caps, and requests in flight."""


def default(task: Task) -> Agent:
    """No cap, and the static batch: the paper's baseline."""
    return Constant(task, replace(all_on(task, "least-outstanding"), concurrency=_static(task)))


def uniform(task: Task) -> Agent:
    """The static batch, and equal caps that hold the lowest budget there is."""
    capped = UniformCap(task)
    return Constant(task, replace(capped.action, concurrency=_static(task)))


def _static(task: Task) -> NDArray[np.int64]:
    return np.full(len(task.fleet), STATIC_BATCH)


def constants(task: Task) -> dict[str, Agent]:
    """Constant caps with constant batches."""
    low_w, high_w, size = task.fleet.cap_min_w, task.fleet.cap_max_w, len(task.fleet)
    return {
        f"caps at {share:.0%} of their range, {batch} in flight": Constant(
            task,
            replace(
                all_on(task, "least-outstanding"),
                cap_w=low_w + share * (high_w - low_w),
                concurrency=np.full(size, batch),
            ),
        )
        for share in CAPS
        for batch in BATCHES
    }
