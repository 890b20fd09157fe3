"""Tenants: foreign virtual machines that hold slots for a while and draw power that nobody here can cap."""

from __future__ import annotations

from collections import deque

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from .cluster import Cluster
from .kernels.state import TENANT
from .snapshot import State, generator_from, generator_state
from .units import to_ps


class TenantsSpec(BaseModel):
    """Virtual machines that ask for a slot, stay for their lives and leave; what they do is theirs alone.

    Lives are log-normal: most virtual machines are gone soon and a few stay for long (Cortez et al., "Resource
    Central", SOSP 2017).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    mean_interval_s: float = Field(gt=0, description="Mean time between arrivals, exponentially distributed.")
    initial: int = Field(default=0, ge=0, description="Tenants that ask for a slot at the start.")
    life_median_s: float = Field(default=600.0, gt=0, description="Median of their lives, seconds.")
    life_sigma: float = Field(default=1.0, ge=0, le=4, description="Standard deviation of a life's logarithm.")
    load: tuple[float, float] = Field(
        default=(0.2, 0.9), description="Ends between which loads are drawn: 0 is an idle GPU, 1 its TDP."
    )
    mean_hold_s: float = Field(default=120.0, gt=0, description="Mean time at a load, exponentially distributed.")

    @model_validator(mode="after")
    def _loads_ascend(self) -> TenantsSpec:
        if not 0 <= self.load[0] <= self.load[1] <= 1:
            raise ValueError(f"load {list(self.load)} must ascend within 0 to 1")
        return self


class Tenants:
    """Carries their lives out as events of the cluster's agenda.

    Args:
        spec: Who comes.
        cluster: Where to. Nothing in it holds this object, which must be kept as long as tenants are to come.
        rng: Source of arrivals, lives and loads.
        queue: Where they ask for a slot; :meth:`move_in` gives one to the first that waits.
        sign: What is put there for each.

    Attributes:
        holder: int64 (R,): number of the tenant on each slot, 0 where there is none.
        arrived: Tenants that have asked so far.
    """

    def __init__(
        self, spec: TenantsSpec, cluster: Cluster, rng: np.random.Generator, queue: deque[int], sign: int
    ) -> None:
        self._spec, self._cluster, self._rng = spec, cluster, rng
        self._queue, self._sign = queue, sign
        blueprint = cluster.blueprint
        self._idle_w = np.array([blueprint.deployments[d].power.idle_w for d in blueprint.initial])
        self._tdp_w = blueprint.cap_max_w
        self.holder = np.zeros(len(blueprint.slots), np.int64)
        self.arrived, self._seated = 0, 0
        cluster.agenda.on("tenant-asks", self._arrive)
        cluster.agenda.on("tenant-load", self._change_load)
        cluster.agenda.on("tenant-leaves", self._leave)
        for _ in range(spec.initial):
            self._ask_for_slot()
        self._after(spec.mean_interval_s, "tenant-asks")

    def move_in(self, slot: int) -> None:
        """Seats the tenant that has waited longest on a slot that is empty or asleep.

        Raises:
            InputError: The slot is neither.
        """
        self._cluster.occupy(slot, self._draw_load_w(slot))
        self._seated += 1
        self.holder[slot] = self._seated
        life_s = self._spec.life_median_s * np.exp(self._spec.life_sigma * self._rng.standard_normal())
        agenda = self._cluster.agenda
        agenda.at(agenda.now_ps + to_ps(float(life_s)), "tenant-leaves", slot, self._seated)
        self._after(self._spec.mean_hold_s, "tenant-load", slot, self._seated)

    def _after(self, mean_s: float, kind: str, *values: int) -> None:
        agenda = self._cluster.agenda
        agenda.at(agenda.now_ps + to_ps(float(self._rng.exponential(mean_s))), kind, *values)

    def _draw_load_w(self, slot: int) -> float:
        share = float(self._rng.uniform(*self._spec.load))
        return float(self._idle_w[slot] + share * (self._tdp_w[slot] - self._idle_w[slot]))

    def _ask_for_slot(self) -> None:
        self.arrived += 1
        self._queue.append(self._sign)

    def _arrive(self, _: tuple[int, ...]) -> None:
        self._ask_for_slot()
        self._after(self._spec.mean_interval_s, "tenant-asks")

    def _is_there(self, slot: int, number: int) -> bool:
        """Whether the tenant is still on the slot: its machine may have failed under it."""
        return bool(self.holder[slot] == number and self._cluster.engine.slots["status"][slot] == TENANT)

    def _change_load(self, values: tuple[int, ...]) -> None:
        slot, number = values
        if self._is_there(slot, number):
            self._cluster.lifecycle.set_load(slot, self._draw_load_w(slot))
            self._after(self._spec.mean_hold_s, "tenant-load", slot, number)

    def _leave(self, values: tuple[int, ...]) -> None:
        slot, number = values
        if self._is_there(slot, number):
            self._cluster.lifecycle.vacate(slot)
        if self.holder[slot] == number:
            self.holder[slot] = 0

    def save_state(self) -> State:
        """What is neither in the slots nor in the agenda."""
        return {
            "holder": self.holder.copy(),
            "arrived": self.arrived,
            "seated": self._seated,
            "rng": generator_state(self._rng),
        }

    def restore_state(self, state: State) -> None:
        """Takes up a state of :meth:`save_state`; slots and agenda are restored by the cluster."""
        self.holder[...] = state["holder"]
        self.arrived, self._seated = state["arrived"], state["seated"]
        self._rng = generator_from(state["rng"])
