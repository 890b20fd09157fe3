"""The candidates for the best constant action."""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import NDArray

from ..simulator.topology import ServerSpec
from .base import Agent, Task
from .scaling import PROMPT_TOKENS, capacity_requests_per_s
from .static import Constant, only

MAX_CANDIDATES = 400
CAP_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


def candidates(task: Task) -> dict[str, Agent]:
    """A grid over constant actions, each under a name that says what it does.

    Slots are alike if they have the same GPU and start with the same model. The grid takes every number of serving
    slots of each kind (coarser where there are many), five caps, all routers, and weights equal or by capacity. Slots
    that are left to the placement of instances are always open.

    Args:
        task: What may be known beforehand.

    Returns:
        Agents by name.
    """
    slots = task.blueprint.slots
    placed = np.array([s.spec.model is None and "place" in task.codec.groups for s in slots])
    kinds = list(dict.fromkeys(_kind(s.spec) for s, p in zip(slots, placed, strict=True) if not p))
    gpus = [gpu for gpu, _, _ in kinds]
    labels = [gpu if gpus.count(gpu) == 1 else f"{gpu} {split} ({model or 'empty'})" for gpu, split, model in kinds]
    members = [[r for r, s in enumerate(slots) if _kind(s.spec) == kind] for kind in kinds]
    capacity = capacity_requests_per_s(task, PROMPT_TOKENS, task.scenario.reward.tokens_per_request)
    weights: dict[str, NDArray[np.float64] | None] = {"equal": None, "by capacity": capacity / capacity.max()}
    if len(kinds) == 1:
        del weights["by capacity"]
    per_point = len(CAP_SHARES) * len(task.codec.routers) * len(weights)
    counts = [np.arange(len(m) + 1) for m in members]
    while math.prod(len(c) for c in counts) * per_point > MAX_CANDIDATES:
        finest = max(range(len(counts)), key=lambda i: len(counts[i]))
        if len(counts[finest]) == 2:
            break
        fewer = len(counts[finest]) - 1
        counts[finest] = np.unique(np.linspace(0, len(members[finest]), fewer).round().astype(int))
    found: dict[str, Agent] = {}
    for on in itertools.product(*counts):
        chosen = placed.copy()
        for number, member in zip(on, members, strict=True):
            chosen[member[:number]] = True
        if not chosen.any():
            continue
        what = " + ".join(f"{n} {label}" for n, label in zip(on, labels, strict=True) if n)
        for share, router, (kind, weight) in itertools.product(CAP_SHARES, task.codec.routers, weights.items()):
            name = f"{what}, caps at {share:.0%} of their range, {router}, weights {kind}"
            found[name] = Constant(task, only(task, chosen, share, router, weight))
    return found


def _kind(spec: ServerSpec) -> tuple[str, str, str | None]:
    """GPU, how the model is cut over GPUs, and model."""
    split = f"tp={spec.tp}" + (f" pp={spec.pp}" if spec.pp > 1 else "") + (" ep" if spec.ep else "")
    return spec.gpu, split, spec.model
