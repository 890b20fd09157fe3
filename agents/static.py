"""Agents that decide the same thing every time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..envs.actions import SERVE, SLEEP, ClusterAction
from .base import Heuristic, Task, View


class Constant(Heuristic):
    """Repeats one action.

    Args:
        task: What may be known beforehand.
        action: The action.
    """

    def __init__(self, task: Task, action: ClusterAction) -> None:
        super().__init__(task)
        self.action = action

    def decide(self, view: View) -> ClusterAction:
        """The action; see :class:`Heuristic`."""
        return self.action


def serve_all(task: Task) -> NDArray[np.int64]:
    """Life-cycle targets under which every slot serves the model it starts with, or else the first that fits."""
    first = task.fleet.fits.argmax(axis=1)
    placed = [
        task.fleet.models.index(s.spec.model) if s.spec.model else first[r] for r, s in enumerate(task.blueprint.slots)
    ]
    return SERVE + np.array(placed, np.int64)


def all_on(task: Task, router: str, cap_share: float = 1.0) -> ClusterAction:
    """Every slot serves with weight 1 and a cap of ``cap_share`` of its TDP."""
    return ClusterAction(
        router=router,
        route_weight=np.ones(len(task.fleet)),
        cap_w=np.maximum(task.fleet.cap_max_w * cap_share, task.fleet.cap_min_w),
        lifecycle=serve_all(task),
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
        lifecycle=np.where(chosen, serve_all(task), SLEEP),
    )


class RoundRobin(Constant):
    """All slots on, no caps, requests dealt in turn."""

    def __init__(self, task: Task) -> None:
        super().__init__(task, all_on(task, "round-robin"))


class LeastOutstanding(Constant):
    """All slots on, no caps, each request to the slot with the fewest."""

    def __init__(self, task: Task) -> None:
        super().__init__(task, all_on(task, "least-outstanding"))


class UniformCap(Constant):
    """All slots on, each capped at the lowest share that the budget ever falls to: safe whatever happens."""

    def __init__(self, task: Task) -> None:
        super().__init__(task, all_on(task, "least-outstanding", min(task.scenario.budget.levels)))


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
        """A random action; masks are those that never change."""
        codec = self.task.codec
        if codec.encoding == "box":
            return codec.decode(self._rng.uniform(-1.0, 1.0, len(codec.layout.sizes)))
        return codec.decode(self._rng.integers(0, codec.layout.sizes))
