"""Slots that are alike, and the action under which some of each kind serve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..envs.actions import ClusterAction
from ..envs.telemetry import LEAD_TIMES_S
from ..simulator.topology import ServerSpec
from .base import Task, View
from .static import first_fit, highest_level, targets
from .sweep import alone

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Kind:
    """Slots with the same GPUs and the same model.

    Attributes:
        slot: One of them by itself, with the model that it serves.
        model: Index of the model.
        members: Numbers of the slots.
    """

    slot: ServerSpec
    model: int
    members: tuple[int, ...]


def kinds_of(task: Task) -> tuple[Kind, ...]:
    """All kinds, without the slots that are left to the placement of instances.

    A slot serves the model it starts with, or else the first that fits.
    """
    found: dict[ServerSpec, list[int]] = {}
    for r, slot in enumerate(task.blueprint.slots):
        if slot.spec.model is None and "place" in task.codec.groups:
            continue
        model = slot.spec.model or task.fleet.models[int(task.fleet.fits[r].argmax())]
        found.setdefault(alone(slot.spec.model_copy(update={"model": model})), []).append(r)
    return tuple(
        Kind(slot, task.fleet.models.index(str(slot.model)), tuple(members)) for slot, members in found.items()
    )


def cap_shares(task: Task, levels: int) -> tuple[float, ...]:
    """Power limits to choose from, as shares of their range; none but the highest where there is no say in them."""
    if "cap" not in task.codec.groups:
        return (1.0,)
    steps = task.codec.steps - 1
    return tuple(float(step) / steps for step in np.unique(np.rint(np.linspace(0, steps, levels))))


def usable(view: View, kind: Kind) -> list[int]:
    """Slots of a kind that may serve, those first that do or soon will; failed and foreign ones are left out."""
    names = ("is_empty", "is_loading", "is_serving", "is_draining", "is_sleeping")
    status = np.stack([view.slot(name) for name in names])
    ready = status[names.index("is_serving")] * 2 + status[names.index("is_loading")]
    there = status.sum(axis=0) > 0
    return sorted((r for r in kind.members if there[r]), key=lambda r: -ready[r])


def serve(
    task: Task, view: View, chosen: Sequence[Sequence[int]], kinds: Sequence[Kind], rate: F64, cap_share: F64
) -> ClusterAction:
    """The action under which the chosen slots serve and the others sleep.

    Args:
        task: The task.
        view: What is seen.
        chosen: Slots of each kind that serve.
        kinds: The kinds.
        rate: Requests per second for each slot of a kind (K,), by which the slots of a model share its traffic.
        cap_share: Power limit of each kind as a share of its range (K,), within the announced budget.

    Returns:
        The action, with the first pending instance in the first slot that can hold it.
    """
    fleet, size = task.fleet, len(task.fleet)
    planned = np.zeros(size, bool)
    planned[[r for kind in kinds for r in kind.members]] = True
    on, weight, share = ~planned, np.ones(size), np.ones(size)
    for k, (kind, members) in enumerate(zip(kinds, chosen, strict=True)):
        share[list(kind.members)] = cap_share[k]
        on[list(members)] = True
        top = max(rate[j] for j, other in enumerate(kinds) if other.model == kind.model)
        weight[list(members)] = max(rate[k] / top, 1 / (task.codec.steps - 1)) if top > 0 else 1.0
    off_w = np.array([task.blueprint.deployments[d].power.off_w for d in task.blueprint.initial])
    announced_w = min(view.cluster(f"budget_in_{lead}s") for lead in LEAD_TIMES_S)
    level = highest_level(task, on, announced_w - float(off_w[~on].sum())) if on.any() else 1.0
    span_w = fleet.cap_max_w - fleet.cap_min_w
    action = ClusterAction(
        router="least-outstanding",
        route_weight=np.where(on, weight, 0.0),
        cap_w=fleet.cap_min_w + np.minimum(share, level) * span_w,
        lifecycle=targets(task, on),
    )
    return replace(action, place=first_fit(task, view))
