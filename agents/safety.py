"""A safety layer around any agent: its actions, moved only as far as feasibility and known limits ask."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..envs.actions import KEEP, NOWHERE, SERVE, SLEEP, ClusterAction
from ..envs.observation import Observation
from .base import Agent, State, Task, View, Watcher
from .limits import Limit, beside_w, deal, known_limits, lead_until_next, uncappable, unheld_w
from .static import ROUNDING, places

if TYPE_CHECKING:
    from ..envs.cluster_env import LLMClusterEnv

PREFIX = "safe:"
MASK, LAST_SLOT, ROUTE, PLACE, BUDGET, SHED = "mask", "last-slot", "route", "place", "budget", "shed"
REASONS = (MASK, LAST_SLOT, ROUTE, PLACE, BUDGET, SHED)


class Safe:
    """Another agent, held to what is feasible and within the limits.

    In this order, and only where it must:

    * ``mask``: an option that is closed gives way to the nearest open one.
    * ``last-slot``: the last slot that serves a model goes on serving it.
    * ``route``: where no serving slot of a model had a routing weight, all of them have the same.
    * ``place``: an instance or tenant is not put where there is no room.
    * ``budget``: caps come down until the slots that may draw power hold, all at their caps (or above them, where they
      are seen not to hold), every limit of site and rows that is known until the next decision.
    * ``shed``: where even the lowest caps do not, slots go to sleep, the least efficient first, but never the last one
      of a model.

    What holds at the caps holds whatever the traffic, so it costs performance where slots would not draw them.

    Args:
        agent: The agent, a heuristic or a learned one.
        task: What may be known beforehand.
    """

    def __init__(self, agent: Agent, task: Task) -> None:
        self.agent, self.task = agent, task
        self.interventions: Counter[str] = Counter()

    @property
    def clairvoyant(self) -> bool:
        """Whether the agent knows the future."""
        return bool(getattr(self.agent, "clairvoyant", False))

    def watch(self, env: LLMClusterEnv) -> None:
        """Begins to count anew; called at the start of each episode."""
        self.interventions = Counter()
        if isinstance(self.agent, Watcher):
            self.agent.watch(env)

    def predict(
        self,
        observation: Observation,
        state: State = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,
        action_masks: NDArray[np.bool_] | None = None,
    ) -> tuple[NDArray[Any], State]:
        """The agent's actions, made safe; see :class:`~llmcluster.agents.base.Agent`."""
        actions, state = self.agent.predict(observation, state, episode_start, deterministic, action_masks)
        if observation["cluster"].ndim == 1:
            return self._safe(observation, actions, action_masks), state
        rows = []
        for row, action in enumerate(actions):
            one = {key: values[row] for key, values in observation.items()}
            rows.append(self._safe(one, action, None if action_masks is None else action_masks[row]))
        return np.stack(rows), state

    def _safe(self, observation: Observation, given: NDArray[Any], mask: NDArray[np.bool_] | None) -> NDArray[Any]:
        codec, why = self.task.codec, []
        if mask is not None and codec.encoding == "discrete":
            opened = _opened(given, codec.layout.sizes, mask)
            why += [MASK] * bool((opened != given).any())
            given = opened
        action, reasons = self.project(View(observation, self.task.observations), codec.decode(given))
        self.interventions.update([*why, *reasons])
        return codec.encode(action) if reasons else given

    def project(self, view: View, action: ClusterAction) -> tuple[ClusterAction, list[str]]:
        """The nearest safe action, and the reasons why it is another one; none where it is not."""
        reasons = []
        for reason, project in (
            (LAST_SLOT, self._keep_serving),
            (ROUTE, self._keep_routed),
            (PLACE, self._place_where_free),
            (SHED, self._shed),
            (BUDGET, self._hold_limits),
        ):
            moved = project(view, action)
            if moved is not action:
                action = moved
                reasons.append(reason)
        return action, reasons

    def _serves(self, view: View, model: int, action: ClusterAction) -> NDArray[np.bool_]:
        """Slots that serve a model and, after the action, go on doing so (R,)."""
        holds = (view.slot("is_serving") > 0) & (view.slot(f"model_{self.task.fleet.models[model]}") > 0)
        if action.lifecycle is None:
            return holds
        return np.asarray(holds & ((action.lifecycle == KEEP) | (action.lifecycle == SERVE + model)))

    def _keep_serving(self, view: View, action: ClusterAction) -> ClusterAction:
        for model, name in enumerate(self.task.fleet.models):
            served = (view.slot("is_serving") > 0) & (view.slot(f"model_{name}") > 0)
            if action.lifecycle is not None and served.any() and not self._serves(view, model, action).any():
                busiest = int(np.where(served, view.slot("running"), -1.0).argmax())
                targets = action.lifecycle.copy()
                targets[busiest] = SERVE + model
                action = replace(action, lifecycle=targets)
        return action

    def _keep_routed(self, view: View, action: ClusterAction) -> ClusterAction:
        for model in range(len(self.task.fleet.models)):
            serves = self._serves(view, model, action)
            if action.route_weight is not None and serves.any() and not action.route_weight[serves].any():
                action = replace(action, route_weight=np.where(serves, 1.0, action.route_weight))
        return action

    def _place_where_free(self, view: View, action: ClusterAction) -> ClusterAction:
        if action.place == NOWHERE:
            return action
        return action if places(self.task, view)[action.place] else replace(action, place=NOWHERE)

    def _on(self, view: View, action: ClusterAction) -> NDArray[np.bool_]:
        """Slots that may draw up to their cap until the next decision (R,); one that drains may do so until it has."""
        on = view.slot("is_loading") + view.slot("is_serving") + view.slot("is_draining") > 0
        if action.lifecycle is not None:
            on |= action.lifecycle >= SERVE
        return on & ~uncappable(self.task, view)

    def _limits(self, view: View) -> list[Limit]:
        return known_limits(self.task, view, lead_until_next(self.task))

    def _shed(self, view: View, action: ClusterAction) -> ClusterAction:
        task, fleet = self.task, self.task.fleet
        if action.lifecycle is None or "lifecycle" not in task.codec.groups:
            return action
        caps_w = fleet.cap_min_w if "cap" in task.codec.groups else view.slot("cap")
        lowest_w = np.maximum(caps_w, unheld_w(view))
        targets, limits = action.lifecycle.copy(), self._limits(view)
        while True:
            on = self._on(view, replace(action, lifecycle=targets)) & (targets != SLEEP)
            draws_w = np.where(on, lowest_w, beside_w(task, view, on))
            over = [limit for limit in limits if _over(limit, draws_w, task)]
            spared = on & ~self._last(view, replace(action, lifecycle=targets))
            heaviest = np.where(spared & over[0].slots, lowest_w, -np.inf) if over else np.full(len(fleet), -np.inf)
            if np.isneginf(heaviest).all():
                return action if (targets == action.lifecycle).all() else replace(action, lifecycle=targets)
            targets[int(heaviest.argmax())] = SLEEP

    def _last(self, view: View, action: ClusterAction) -> NDArray[np.bool_]:
        """Slots that are the last to serve their model (R,)."""
        last = np.zeros(len(self.task.fleet), bool)
        for model in range(len(self.task.fleet.models)):
            serves = self._serves(view, model, action)
            last |= serves & (np.count_nonzero(serves) == 1)
        return last

    def _hold_limits(self, view: View, action: ClusterAction) -> ClusterAction:
        if "cap" not in self.task.codec.groups:
            return action
        task, on = self.task, self._on(view, action)
        wanted_w = task.fleet.cap_max_w if action.cap_w is None else action.cap_w
        beside, limits = beside_w(task, view, on), self._limits(view)
        draws_w = np.where(on, np.maximum(wanted_w, unheld_w(view)), beside)
        if not any(_over(limit, draws_w, task) for limit in limits):
            return action
        caps_w = np.minimum(deal(task, on, wanted_w, unheld_w(view), beside, limits, beyond=False), wanted_w)
        held = np.where(on, caps_w, wanted_w)
        return action if (held == wanted_w).all() else replace(action, cap_w=held)


def _over(limit: Limit, draws_w: NDArray[np.float64], task: Task) -> bool:
    slack_w = ROUNDING * float(task.fleet.cap_max_w.sum())
    return float(draws_w[limit.slots].sum()) > limit.watts + slack_w


def _opened(action: NDArray[Any], sizes: NDArray[np.int64], mask: NDArray[np.bool_]) -> NDArray[Any]:
    """The action with each closed option replaced by the nearest open one, the lower of two."""
    opened, first = action.copy(), 0
    for head, size in enumerate(sizes):
        is_open = np.flatnonzero(mask[first : first + size])
        first += int(size)
        if len(is_open) and action[head] not in is_open:
            opened[head] = is_open[np.abs(is_open - action[head]).argmin()]
    return opened
