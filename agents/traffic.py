"""What traffic an agent is ready for: what the scenario says beforehand, then what the meters show."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..envs.observation import BACKLOG_SCALE
from ..envs.spec import SloSpec
from ..envs.traces import REFERENCE_LOAD
from ..simulator.workload.table import ANY_MODEL
from .base import Task, View
from .scaling import PROMPT_TOKENS

F64 = NDArray[np.float64]

DRAWN_S, DRAW_SEED = 300.0, 20231116
"""Length and seed of the traffic from which typical lengths are learnt; no episode is drawn from that seed alone."""
CLEAR_S = 30.0
"""A queue is to be gone after this time."""
LEAST = 0.05
"""Share of the usual rate that is always provided for, lest a model be found asleep by its next request."""
BELIEVED_REQUESTS = 200.0
"""What is known beforehand counts as much as so many requests seen."""


@dataclass(frozen=True)
class Stream:
    """Requests for one model, as known beforehand.

    Attributes:
        model: Index of the model, or ANY_MODEL.
        requests_per_s: Mean rate.
        prompt_tokens: Mean prompt.
        output_tokens: Mean output.
        slo: The strictest limits among those that ask for the model.
    """

    model: int
    requests_per_s: float
    prompt_tokens: float
    output_tokens: float
    slo: SloSpec


def expected_streams(task: Task) -> tuple[Stream, ...]:
    """The scenario's traffic by model, from a draw of its generators; of a trace file only the reward's references."""
    workload, models = task.scenario.workload, task.fleet.models
    seen: dict[int, list[tuple[float, float, float, SloSpec]]] = {}
    classes = task.scenario.slo
    for stream in workload.streams or (workload,):
        reward = task.scenario.reward
        rate, prompt, output = reward.requests_per_s / REFERENCE_LOAD, PROMPT_TOKENS, reward.tokens_per_request
        if stream.arrivals is not None and stream.requests is not None:
            rng = np.random.default_rng(DRAW_SEED)
            drawn = stream.arrivals.requests(DRAWN_S, stream.requests, None, rng)
            if len(drawn):
                rate = len(drawn) / DRAWN_S
                prompt, output = float(drawn.prompt_tokens.mean()), float(drawn.output_tokens.mean())
        slo = classes[stream.slo_class] if stream.slo_class else next(iter(classes.values()))
        asked = models.index(stream.model) if len(models) > 1 and stream.model in models else ANY_MODEL
        seen.setdefault(asked, []).append((rate, prompt, output, slo))
    return tuple(_merged(model, parts) for model, parts in sorted(seen.items()))


def _merged(model: int, parts: list[tuple[float, float, float, SloSpec]]) -> Stream:
    rate = np.array([part[0] for part in parts])
    prompt, output = (float(np.average([part[i] for part in parts], weights=rate)) for i in (1, 2))
    strictest = {name: min(getattr(part[3], name) for part in parts) for name in ("ttft_s", "tpot_s")}
    return Stream(model, float(rate.sum()), prompt, output, SloSpec(**strictest))


@dataclass
class _Memory:
    """Of one row of a batch: rates of the last ticks, and sums of what was seen."""

    recent: list[F64] = field(default_factory=list)
    arrivals: float = 0.0
    arriving_tokens: float = 0.0
    prompt_tokens: F64 = field(default_factory=lambda: np.zeros(0))
    output_tokens: F64 = field(default_factory=lambda: np.zeros(0))


@dataclass(frozen=True)
class Demand:
    """What to be ready for, by stream.

    Attributes:
        requests_per_s: Rate (C,).
        prompt_tokens: Mean prompt (C,).
        output_tokens: Predicted mean output (C,): true ones are known only when requests are done.
    """

    requests_per_s: F64
    prompt_tokens: F64
    output_tokens: F64


class Traffic:
    """Keeps track of each model's rate and lengths: meters tell tokens by slot, and requests of all models together.

    Args:
        task: What may be known beforehand.
        patience: The highest rate of so many ticks and the present one counts.
    """

    def __init__(self, task: Task, patience: int) -> None:
        self.streams = expected_streams(task)
        self._task, self._patience = task, patience
        named = {stream.model: c for c, stream in enumerate(self.streams)}
        self._class_of_model = np.array([named.get(m, named.get(ANY_MODEL, 0)) for m in range(len(task.fleet.models))])
        self._rate = np.array([s.requests_per_s for s in self.streams])
        self._prompt = np.array([s.prompt_tokens for s in self.streams])
        self._output = np.array([s.output_tokens for s in self.streams])
        self._memory: dict[int, _Memory] = {}

    def forget(self, row: int | None = None) -> None:
        """Forgets what one row of a batch saw, or all of them."""
        if row is None:
            self._memory = {}
        else:
            self._memory.pop(row, None)

    def demand(self, view: View) -> Demand:
        """Takes the readings of a tick in, once, and says what to be ready for."""
        memory = self._memory.setdefault(view.row, _Memory())
        classes, tick_s = len(self.streams), self._task.scenario.tick_s
        held = np.stack([view.slot(f"model_{name}") for name in self._task.fleet.models]).argmax(axis=0)
        of_slot = self._class_of_model[held]

        def by_class(feature: str) -> F64:
            return np.asarray(np.bincount(of_slot, view.slot(feature).clip(min=0), classes), np.float64)

        prompts, outputs = by_class("prompt_tokens_per_s"), by_class("output_tokens_per_s")
        if not len(memory.prompt_tokens):
            memory.prompt_tokens = BELIEVED_REQUESTS * self._prompt
            memory.output_tokens = BELIEVED_REQUESTS * self._output
        memory.prompt_tokens = memory.prompt_tokens + prompts * tick_s
        memory.output_tokens = memory.output_tokens + outputs * tick_s
        memory.arrivals += view.cluster("arrivals") * tick_s
        memory.arriving_tokens += view.cluster("arriving_tokens") * tick_s
        prompt = self._prompt * self._longer(memory)
        output = prompt * memory.output_tokens / memory.prompt_tokens
        waiting = BACKLOG_SCALE * (np.exp2(view.slot("waiting")) - 1)
        rate = prompts / prompt + np.bincount(of_slot, waiting, classes) / CLEAR_S
        at_gateway = BACKLOG_SCALE * (np.exp2(view.cluster("held_at_gateway")) - 1)
        arrivals = view.cluster("arrivals") + at_gateway / CLEAR_S
        if memory.arrivals == 0:
            rate = self._rate
        missing = max(arrivals - float(rate.sum()), 0.0)
        parts = rate if rate.sum() > 0 else self._rate
        rate = np.maximum(rate + missing * parts / parts.sum(), LEAST * self._rate)
        memory.recent = [*memory.recent, rate][-self._patience - 1 :]
        return Demand(np.max(memory.recent, axis=0), prompt, output)

    def _longer(self, memory: _Memory) -> float:
        """By how much prompts are longer than expected, all models alike."""
        share = self._rate / self._rate.sum()
        believed = BELIEVED_REQUESTS * float(share @ self._prompt)
        seen = (believed + memory.arriving_tokens) / (BELIEVED_REQUESTS + memory.arrivals)
        return seen * BELIEVED_REQUESTS / believed
