"""Agents that decide the same thing every time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..envs.actions import KEEP, NOWHERE, SERVE, SLEEP, ClusterAction
from .base import Heuristic, Task, View

ROUNDING = 1e-5
"""Observations are in single precision: a budget that just suffices for a level must not miss it by that."""


class Constant(Heuristic):
    """Repeats one action; a pending instance goes to the first slot that is free and can hold it.

    Args:
        task: What may be known beforehand.
        action: The action.
    """

    def __init__(self, task: Task, action: ClusterAction) -> None:
        super().__init__(task)
        self.action = action

    def decide(self, view: View) -> ClusterAction:
        """The action; see :class:`Heuristic`."""
        return replace(self.action, place=first_fit(self.task, view))


def places(task: Task, view: View) -> NDArray[np.bool_]:
    """Slots that are empty or asleep and can hold what waits for one (R,); none where nothing waits."""
    pending = [view.cluster(f"pending_model_{name}") > 0 for name in task.fleet.models]
    free = view.slot("is_empty") + view.slot("is_sleeping") > 0
    if any(pending):
        return np.asarray(free & task.fleet.fits[:, pending.index(True)])
    asks = task.scenario.tenants is not None and view.cluster("pending_tenant") > 0
    return np.asarray(free & asks)


def first_fit(task: Task, view: View) -> int:
    """The first slot that is empty or asleep and can hold what waits for one; NOWHERE if there is none."""
    free = places(task, view)
    return int(free.argmax()) if free.any() else NOWHERE


def targets(task: Task, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Life-cycle targets under which the ``chosen`` slots serve and the others sleep.

    A slot serves the model it starts with. One that starts without a model serves the first that fits, unless instances
    are to be placed: then it is left to them.
    """
    fleet = task.fleet
    wanted = np.where(chosen, SERVE + fleet.fits.argmax(axis=1), SLEEP)
    for r, slot in enumerate(task.blueprint.slots):
        if slot.spec.model is not None and chosen[r]:
            wanted[r] = SERVE + fleet.models.index(slot.spec.model)
        elif slot.spec.model is None and "place" in task.codec.groups:
            wanted[r] = KEEP
    return wanted


def highest_level(task: Task, chosen: NDArray[np.bool_], budget_w: float) -> float:
    """The highest level, as a share of the range of caps, at which the caps of the ``chosen`` slots stay in budget."""
    low_w, high_w = task.fleet.cap_min_w[chosen].sum(), task.fleet.cap_max_w[chosen].sum()
    steps = task.codec.steps - 1
    share = np.clip((budget_w - low_w) / max(high_w - low_w, 1e-9), 0.0, 1.0)
    return float(np.floor(share * steps + ROUNDING) / steps)


def all_on(task: Task, router: str) -> ClusterAction:
    """Every slot serves with weight 1 and no cap."""
    return ClusterAction(
        router=router,
        route_weight=np.ones(len(task.fleet)),
        cap_w=task.fleet.cap_max_w,
        lifecycle=targets(task, np.ones(len(task.fleet), bool)),
    )


def only(
    task: Task, chosen: NDArray[np.bool_], cap_share: float, router: str, weight: NDArray[np.float64] | None = None
) -> ClusterAction:
    """Only the ``chosen`` slots serve; the others sleep.

    Args:
        task: What may be known beforehand.
        chosen: Slots that serve (R,).
        cap_share: Cap of every slot as a share of its range.
        router: Router.
        weight: Routing weights of the chosen slots (R,); equal by default.

    Returns:
        The action.
    """
    fleet = task.fleet
    return ClusterAction(
        router=router,
        route_weight=np.where(chosen, 1.0 if weight is None else weight, 0.0),
        cap_w=fleet.cap_min_w + cap_share * (fleet.cap_max_w - fleet.cap_min_w),
        lifecycle=targets(task, chosen),
    )


class RoundRobin(Constant):
    """All slots on, no caps, requests dealt in turn."""

    def __init__(self, task: Task) -> None:
        super().__init__(task, all_on(task, "round-robin"))


class LeastOutstanding(Constant):
    """All slots on, no caps, each request to the slot with the fewest."""

    def __init__(self, task: Task) -> None:
        super().__init__(task, all_on(task, "least-outstanding"))


class PowerOfTwo(Constant):
    """All slots on, no caps, each request to the lesser of two slots drawn by weight.

    Where the scenario does not list that router, least-outstanding stands in for it.
    """

    def __init__(self, task: Task) -> None:
        super().__init__(task, all_on(task, "power-of-two"))


class PrefixAffinity(Constant):
    """All slots on, no caps, each request to where the beginning of its prompt is cached.

    Where the scenario does not list that router, least-outstanding stands in for it.
    """

    def __init__(self, task: Task) -> None:
        super().__init__(task, all_on(task, "prefix-affinity"))


class UniformCap(Constant):
    """All slots on, all capped alike so that the lowest limits there ever are hold: safe whatever happens."""

    def __init__(self, task: Task) -> None:
        row = np.array([slot.row for slot in task.blueprint.slots])
        chosen = np.ones(len(task.fleet), bool)
        levels = [highest_level(task, chosen, _watts(task, chosen, task.scenario.lowest_limit()))]
        for i in range(len(task.scenario.cluster.rows)):
            levels.append(highest_level(task, row == i, _watts(task, row == i, task.scenario.lowest_limit(i))))
        super().__init__(task, only(task, chosen, min(levels), "least-outstanding"))


def _watts(task: Task, slots: NDArray[np.bool_], share: float) -> float:
    """A share of the TDPs of some slots."""
    return share * float(task.fleet.cap_max_w[slots].sum())


class Random(Heuristic):
    """Draws every head evenly among the open options.

    Args:
        task: What may be known beforehand.
        seed: Seed of its draws.
    """

    def __init__(self, task: Task, seed: int = 0) -> None:
        super().__init__(task)
        self._rng = np.random.default_rng(seed)

    def decide(self, view: View) -> ClusterAction:
        """A random action among those that are open."""
        codec = self.task.codec
        if codec.encoding == "box":
            return codec.decode(self._rng.uniform(-1.0, 1.0, len(codec.layout.sizes)))
        is_open = codec.fixed_mask.copy()
        if "place" in codec.groups:
            is_open[-len(self.task.fleet) :] = places(self.task, view)
        draws = np.where(is_open, self._rng.random(len(is_open)), -1.0)
        heads = np.split(draws, np.cumsum(codec.layout.sizes)[:-1])
        return codec.decode([int(head.argmax()) for head in heads])
