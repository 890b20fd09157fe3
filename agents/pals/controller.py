"""The runtime of PALS: every tick it chooses caps and batch limits (section 3.3, algorithm 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...envs.actions import ClusterAction
from ...envs.observation import BACKLOG_SCALE
from ..base import Heuristic, Task, View
from ..static import ROUNDING, all_on, first_fit
from .allocation import Ladder, Limit, allocate
from .bursts import AVERAGED_S, Remembered
from .feedback import EPSILON, Feedback
from .profiles import Profiles
from .table import PowerTable

if TYPE_CHECKING:
    from ...envs.cluster_env import LLMClusterEnv

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

HEADROOM = 1.15
"""Throughput asked of the tables over what is wanted: requests differ, so a mean that just meets its target misses it
half of the time, and a slot that is just fast enough lets queues grow without end. Where bursts of prompts are expected
that their TTFT leaves no time to work off, it is more; see :mod:`~llmcluster.agents.pals.bursts`."""
DRAINED_S = 10.0
"""Time in which requests that wait are to be worked off."""
RAISED = 0.01
"""A limit that rises by less is no reason to change anything; one that falls always is."""
NOT_SERVING = -1


@dataclass(eq=False)
class Memory:
    """What the controller knows of one cluster from the ticks before, by model where it is an array.

    Attributes:
        feedback: Errors so far.
        traffic: Output tokens per second that arrive.
        demand: The traffic; or the target as it was given, with its headroom.
        measured: Output tokens per second that are generated, averaged.
        prompts: Prompts per second, by their tokens and averaged: they tell which models the traffic is for.
        deployment: Of each slot when the configuration was chosen (R,).
        step: Step of each slot on its ladder (R,).
        target: Throughput that it was chosen for.
        limit_w: Limits that it was chosen for, watts.
    """

    feedback: Feedback
    traffic: Remembered
    demand: F64
    measured: F64
    prompts: F64
    deployment: I64 = field(default_factory=lambda: np.zeros(0, np.int64))
    step: I64 = field(default_factory=lambda: np.zeros(0, np.int64))
    target: F64 = field(default_factory=lambda: np.zeros(0))
    limit_w: F64 = field(default_factory=lambda: np.zeros(0))


class Pals(Heuristic):
    """Power caps and batch limits with the best tokens per joule that meet the throughput target within the budget.

    Hankendi et al., "PALS: Power-Aware LLM Serving for Mixture-of-Experts Models", arXiv 2605.21427. Tables of
    throughput and power over caps and batch sizes are made beforehand; at each tick the configurations that meet the
    target are ranked by T(c) / P(c), and a PID controller on the measured throughput corrects the target. A change is
    made when the error lasts, or when target or budget move.

    The paper is given its target from above; here it is that, or what the traffic asks for. It runs every 500 ms, this
    at the scenario's tick, which has whole seconds. Configurations that break the SLO's time per output token count as
    infeasible, and the throughput asked for is as much above what the traffic was lately as bursts of prompts are
    expected to exceed it within the SLO's time to first token; the paper looks at throughput alone, over half seconds,
    in which a burst is not averaged away. All slots serve.

    Args:
        task: What may be known beforehand.
        target_tokens_per_s: Throughput wanted of each model, by name, whose requests then are taken to be without
            end; of those left out, what arrives is served.
        batch: Only this limit of requests in flight ("Adaptive Cap" of section 4.3); by default it is chosen too.
        cap: Whether caps are chosen; otherwise they stay at the highest ("Adaptive Batch").
        tables: Tables of deployments of the blueprint, by number, in place of a sweep: recorded ones.

    Raises:
        InputError: The batch is out of range.
    """

    def __init__(
        self,
        task: Task,
        target_tokens_per_s: Mapping[str, float] | None = None,
        batch: int | None = None,
        *,
        cap: bool = True,
        tables: Mapping[int, PowerTable] | None = None,
    ) -> None:
        super().__init__(task)
        self._profiles = Profiles(task, batch, cap and "cap" in task.codec.groups, tables or {})
        self._all_on = all_on(task, "least-outstanding")
        given = target_tokens_per_s or {}
        self._given = np.array([given.get(name, np.nan) for name in task.fleet.models])
        self._endless = ~np.isnan(self._given)
        row = np.array([slot.row for slot in task.blueprint.slots])
        limited = [i for i, spec in enumerate(task.scenario.cluster.rows) if spec.power_limit_share is not None]
        self._rows = [row == i for i in limited]
        self._headroom = np.where(self._endless, HEADROOM, np.maximum(HEADROOM, self._profiles.readiness))
        self._renewed = 1 - np.exp(-task.scenario.tick_s / AVERAGED_S)
        self._memory: dict[int, Memory] = {}

    def watch(self, env: LLMClusterEnv) -> None:
        """Forgets the last episode."""
        self._memory = {}

    def forget(self, row: int) -> None:
        """Forgets the last episode of one row of a batch."""
        self._memory.pop(row, None)

    def decide(self, view: View) -> ClusterAction:
        """Caps and batch limits for the next tick; see :class:`Heuristic`."""
        models = len(self.task.fleet.models)
        if view.row not in self._memory:
            tick_s, none = self.task.scenario.tick_s, np.zeros(models)
            self._memory[view.row] = Memory(Feedback(models, tick_s), Remembered(tick_s, none, none), none, none, none)
        memory = self._memory[view.row]
        deployment, model = self._deployments(view)
        ladders = [self._profiles.ladder(d) if d != NOT_SERVING else None for d in deployment.tolist()]
        if not len(memory.deployment):
            # Nobody knows yet what will come.
            most = [0.0 if ladder is None else ladder.tokens_per_s[-1] for ladder in ladders]
            memory.traffic.peak = np.bincount(model, most, models).astype(np.float64)
        target = self._target(view, memory, model)
        limits = self._limits(view, deployment != NOT_SERVING)
        limit_w = np.array([limit.watts for limit in limits])
        if not np.array_equal(deployment, memory.deployment) or self._is_due(view, memory, target, limit_w):
            memory.step = self._choose(ladders, model, target, limits, memory.feedback)
            memory.deployment, memory.target, memory.limit_w = deployment, target, limit_w
        return self._action(view, ladders, memory.step)

    def _choose(
        self, ladders: list[Ladder | None], model: I64, target: F64, limits: list[Limit], feedback: Feedback
    ) -> I64:
        """Steps on the ladders. Where a headroom would leave another model short, all go without, if that helps."""
        bare = target * feedback.correction / self._headroom

        def tried(wanted: F64) -> tuple[I64, bool]:
            step = allocate(ladders, model, wanted, self._endless, limits, feedback.power_ratio)
            tokens = [0.0 if one is None else one.tokens_per_s[k] for one, k in zip(ladders, step, strict=True)]
            return step, bool((np.bincount(model, tokens, len(wanted)) >= bare * (1 - ROUNDING)).all())

        step, enough = tried(bare * self._headroom)
        if enough:
            return step
        without, enough = tried(bare)
        return without if enough else step

    def growth(self, view: View) -> float:
        """How many times the traffic of now is to be ready for: once, for it only reacts."""
        return 1.0

    def site_budget_w(self, view: View) -> float:
        """Budget to keep until the next tick, watts: that of now."""
        return view.cluster("budget_in_0s")

    def _deployments(self, view: View) -> tuple[I64, I64]:
        """Deployment of each slot, or NOT_SERVING, and the model that it holds (R,)."""
        holds = np.stack([view.slot(f"model_{name}") for name in self.task.fleet.models])
        model = holds.argmax(axis=0)
        index = self.task.blueprint.index[np.arange(len(model)), model]
        return np.where((view.slot("is_serving") > 0) & holds.any(axis=0), index, NOT_SERVING), model

    def _target(self, view: View, memory: Memory, model: I64) -> F64:
        """Throughput that each model needs, tokens per second (M,); keeps the averages."""
        output_tokens = self._profiles.output_tokens
        models = len(output_tokens)

        def average(old: F64, new: F64) -> F64:
            return np.asarray(old + self._renewed * (new - old))

        def by_model(values: F64) -> F64:
            return np.bincount(model, values, models).astype(np.float64)

        prompts = by_model(view.slot("prompt_tokens_per_s")) / self._profiles.prompt_tokens
        memory.prompts = average(memory.prompts, prompts)
        memory.measured = average(memory.measured, by_model(view.slot("output_tokens_per_s")))
        seen = memory.prompts.sum()
        share = memory.prompts / seen if seen > 0 else np.full(models, 1 / models)
        memory.traffic.take(view.cluster("arrivals") * share * output_tokens)
        memory.demand = np.where(self._endless, HEADROOM * self._given, memory.traffic.mean)
        held = _requests(np.array(view.cluster("held_at_gateway")))
        waiting = by_model(_requests(view.slot("waiting"))) + held * share
        backlog = waiting * output_tokens / DRAINED_S
        memory.feedback.attain(view.cluster("slo_attainment"))
        expected = memory.traffic.peak * memory.feedback.reserve * self.growth(view)
        ready = np.where(self._endless, self._given, expected + backlog)
        return np.asarray(self._headroom * ready)

    def _limits(self, view: View, serves: NDArray[np.bool_]) -> list[Limit]:
        """What the others leave of the budget, and of the limits of rows, to the slots that serve."""
        power_w = view.slot("power")
        others_w = np.where(serves, 0.0, power_w)
        limits = [Limit(serves, self.site_budget_w(view) - float(others_w.sum()))]
        if self._rows:
            headroom_w = view.slot("row_headroom_in_0s")
            for there in self._rows:
                limit_w = headroom_w[there][0] + power_w[there].sum()
                limits.append(Limit(serves & there, float(limit_w - others_w[there].sum())))
        return limits

    def _is_due(self, view: View, memory: Memory, target: F64, limit_w: F64) -> bool:
        """Takes the feedback, and tells whether to choose anew: the error lasts, or the target or a limit has moved."""
        power_w, running, cap_w = view.slot("power"), view.slot("running"), view.slot("cap")
        known = np.flatnonzero((memory.deployment != NOT_SERVING) & (running >= 1))
        predicted_w = [
            self._profiles.table(int(memory.deployment[r])).power_at(float(cap_w[r]), float(running[r])) for r in known
        ]
        memory.feedback.weigh(float(power_w[known].sum()), sum(predicted_w))
        lasts = memory.feedback.measure(memory.demand, memory.measured)
        moved = np.abs(target - memory.target) > EPSILON * memory.target
        pressed = (limit_w < memory.limit_w) | (limit_w > memory.limit_w * (1 + RAISED))
        return bool(lasts or moved.any() or pressed.any())

    def _action(self, view: View, ladders: list[Ladder | None], step: I64) -> ClusterAction:
        """What the steps mean; a slot that does not serve yet begins with the lowest cap."""
        fleet = self.task.fleet
        cap_w, batch = fleet.cap_min_w.copy(), np.full(len(fleet), fleet.max_num_seqs)
        weight = np.zeros(len(fleet))
        for r, ladder in enumerate(ladders):
            if ladder is not None:
                cap_w[r], batch[r] = ladder.cap_w[step[r]], ladder.batch[step[r]]
                weight[r] = ladder.tokens_per_s[step[r]]
        most, least = weight.max(), 1 / (self.task.codec.steps - 1)
        weight = np.where(weight > 0, (weight / most).clip(least), 1.0) if most > 0 else np.ones(len(fleet))
        return replace(
            self._all_on, route_weight=weight, cap_w=cap_w, concurrency=batch, place=first_fit(self.task, view)
        )


def _requests(shown: F64) -> F64:
    """Requests that a backlog in the observation stands for."""
    return np.asarray(BACKLOG_SCALE * (np.exp2(shown) - 1))
