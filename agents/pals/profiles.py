"""The tables of a task and the ladders of configurations on them, made when they are first asked for."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ...simulator.errors import InputError
from ..base import Task
from ..scaling import request_ps
from .allocation import Ladder
from .bursts import burst, limit_s
from .sweep import fewer, lengths_of, mean_tokens, sweep
from .table import PowerTable

BATCH_STEPS = 9
"""Batches where they are no action: powers of two up to vLLM's default of 256."""


class Profiles:
    """What the slots of a task can do.

    Args:
        task: What may be known beforehand.
        batch: The only limit of requests in flight; by default all that the action has.
        cap: Whether caps may be lowered.
        given: Tables of deployments, by number; the others are swept.

    Raises:
        InputError: The batch is out of range.
    """

    def __init__(self, task: Task, batch: int | None, cap: bool, given: Mapping[int, PowerTable]) -> None:
        self._task, self._lowers, self._given = task, cap, dict(given)
        self._tables: dict[int, PowerTable] = {}
        self._ladders: dict[int, Ladder] = {}
        most, limited = task.fleet.max_num_seqs, "concurrency" in task.codec.groups
        shares = np.linspace(0.0, 1.0, task.codec.steps if limited else BATCH_STEPS)
        self._batch = np.unique(np.rint(np.power(float(most), shares))).astype(np.int64)
        if batch is not None:
            if not 1 <= batch <= most:
                raise InputError("batch", f"{batch} is out of range", f"Give 1 to {most}")
            self._batch = np.array([batch])
        tokens = [mean_tokens(lengths_of(task.scenario, name)) for name in task.fleet.models]
        self.prompt_tokens, self.output_tokens = np.array(tokens).T
        """Tokens of a request to be expected of each model (M,)."""
        self.readiness = np.array([self._readiness(m) for m in range(len(tokens))])
        """How many times the traffic that is remembered of each model its slots must be ready for (M,)."""

    def _readiness(self, model: int) -> float:
        """Of a burst only the prompts must be computed within the time to first token; its outputs spread out."""
        task = self._task
        held = [d for d in range(len(task.blueprint.deployments)) if task.blueprint.deployments[d].model == model]
        taken = [request_ps(task, d, self.prompt_tokens[model], self.output_tokens[model]) for d in held]
        share = max((prompt / (prompt + output) for prompt, output in taken), default=0.0)
        return 1 + share * (burst(task.scenario, task.fleet.models[model]) - 1)

    def table(self, deployment: int) -> PowerTable:
        """Table of a deployment of the blueprint, at the caps and batches that may be set."""
        if deployment not in self._tables:
            power = self._task.blueprint.deployments[deployment].power
            cap_w = np.linspace(power.cap_min_w, power.cap_max_w, self._task.codec.steps)
            cap_w = cap_w if self._lowers else cap_w[-1:]
            table = self._given[deployment] if deployment in self._given else self._swept(deployment, cap_w)
            self._tables[deployment] = table.refined(cap_w, self._batch)
        return self._tables[deployment]

    def _swept(self, deployment: int, cap_w: NDArray[np.float64]) -> PowerTable:
        task = self._task
        name = task.fleet.models[task.blueprint.deployments[deployment].model]
        at = int(np.flatnonzero((task.blueprint.index == deployment).any(axis=1))[0])
        spec = task.blueprint.slots[at].spec
        alone = {"model": name, "gpus": spec.tp * spec.pp, "count": 1, "initial": "serving", "role": "mixed"}
        # Each in a room of its own: neighbours must not warm it.
        server = spec.model_copy(update={**alone, "inlet_k_per_kw": 0.0, "fan_min_m3_per_s": 0.0})
        few = [tuple(fewer(levels).tolist()) for levels in (cap_w, self._batch)]
        return sweep(server, task.scenario.cluster.engine, lengths_of(task.scenario, name), *few)

    def ladder(self, deployment: int) -> Ladder:
        """Configurations of a deployment that may be chosen."""
        if deployment not in self._ladders:
            name = self._task.fleet.models[self._task.blueprint.deployments[deployment].model]
            self._ladders[deployment] = Ladder.of(self.table(deployment), limit_s(self._task.scenario, name, "tpot_s"))
        return self._ladders[deployment]
