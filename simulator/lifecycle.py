"""Instance life: empty → loading → serving → draining → sleeping or empty; failures, and foreign machines on slots.

A slot pursues the last target it was given; a load that has begun is carried through first, unless the slot fails.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .agenda import Agenda
from .deployments import Deployment
from .errors import InputError
from .kernels.state import (
    DRAINING,
    EMPTY,
    FAILED,
    FOREVER,
    LOADING,
    SERVING,
    SLEEPING,
    STATUS_NAMES,
    TENANT,
    Records,
)
from .snapshot import State, generator_from, generator_state
from .units import PS_PER_S

DRAIN_POLL_PS = PS_PER_S // 4
START_JITTER = 0.15
"""Loads and wakes vary by this share to either side: storage and network are shared. Assumed."""


class Target(IntEnum):
    """What a slot is to become; ``SERVE`` and above name the model: ``SERVE + m`` serves model ``m``."""

    KEEP = 0
    SLEEP = 1
    OFF = 2
    SERVE = 3


class Transition(NamedTuple):
    """One change of a slot's state, for the log."""

    time_ps: int
    slot: int
    status: int


class Load(NamedTuple):
    """A slot begins to hold another deployment than before."""

    time_ps: int
    slot: int
    deployment: int


class Lifecycle:
    """Carries out targets for all slots.

    What a slot waits for (the end of a load or a repair, the next look at a drain) is one event of the agenda; which of
    the three it is follows from the slot's status.

    Args:
        agenda: Events to come.
        slots: The engine's slots, whose ``status``, ``deployment`` and ``load_w`` this class owns.
        deployments: All deployments.
        index: int64 (slots, models): deployment of each model on each slot, -1 if it does not fit.
        rng: Source of the variation of start times.
        clear_cache: Empties the KV cache of a slot, for its deployment of that time.
        refresh_cap: Fits the power limit of a slot to its deployment of that time.
        evict: Is told of every slot that has just failed, and takes its requests away.

    Attributes:
        target: int64 (slots,): what each slot is to become.
        ready_ps: int64 (slots,): when the load or repair under way ends, or the last one ended.
        chosen: int64 (slots, models): the deployment with which each slot serves each model, -1 if it does not fit; as
            laid out until :meth:`reconfigure`.
        transitions: The log.
        loads: Changes of what slots hold.
        starts: Loads and wakes so far.
    """

    def __init__(
        self,
        agenda: Agenda,
        slots: Records,
        deployments: Sequence[Deployment],
        index: NDArray[np.int64],
        rng: np.random.Generator,
        clear_cache: Callable[[int], None],
        refresh_cap: Callable[[int], None],
        evict: Callable[[int], None],
    ) -> None:
        self._agenda, self._slots, self._deployments, self.chosen = agenda, slots, deployments, index.copy()
        self._rng, self._evict = rng, evict
        self._clear_cache, self._refresh_cap = clear_cache, refresh_cap
        self.target = np.where(slots["status"] == SERVING, Target.SERVE + self._models(), 0).astype(np.int64)
        self.target[slots["status"] == SLEEPING] = Target.SLEEP
        self.target[slots["status"] == EMPTY] = Target.OFF
        self.ready_ps = np.zeros(len(self.target), np.int64)
        self.transitions: list[Transition] = []
        self.loads: list[Load] = []
        self.starts = 0
        self._busy = np.zeros(len(self.target), bool)
        self._turn = np.zeros(len(self.target), np.int64)
        agenda.on("slot", self._go_on)

    def _models(self) -> NDArray[np.int64]:
        return np.array([self._deployments[d].model for d in self._slots["deployment"]], np.int64)

    def fits(self, slot: int, model: int) -> bool:
        """Whether ``slot`` can hold ``model``."""
        return bool(self.chosen[slot, model] >= 0)

    def command(self, slot: int, target: int) -> None:
        """Sets the target of a slot; ``Target.KEEP`` and targets that the slot cannot reach leave it as it is.

        A slot that has failed or has a tenant pursues it afterwards.
        """
        if target == Target.KEEP or (target >= Target.SERVE and not self.fits(slot, target - Target.SERVE)):
            return
        if target == self.target[slot]:
            return
        self.target[slot] = target
        if not self._busy[slot]:
            self._wait(slot, self._agenda.now_ps)

    def finish_at(self, slot: int, ready_ps: int) -> None:
        """Lets the load under way on a slot end at another time: for a state that was read from elsewhere.

        Raises:
            InputError: The slot does not load, or the time has passed.
        """
        status = self._slots["status"][slot]
        if status != LOADING or ready_ps < self._agenda.now_ps:
            problem = f"is {STATUS_NAMES[status]} and cannot be ready at {ready_ps} ps"
            raise InputError(f"slot {slot}", problem, "Choose a slot that loads, and a time to come")
        self.ready_ps[slot] = ready_ps
        self._wait(slot, ready_ps)

    def reconfigure(self, slot: int, deployment: int) -> None:
        """Lets a slot serve the model of ``deployment`` with it from now on.

        If that is what it serves, it drains and loads anew; a load that has begun is carried through first.
        """
        model = self._deployments[deployment].model
        self.chosen[slot, model] = deployment
        if self.target[slot] == Target.SERVE + model and not self._busy[slot]:
            self._wait(slot, self._agenda.now_ps)

    def fail(self, *slots: int, repair_ps: int) -> None:
        """Lets slots fail at one instant: whatever they do is lost.

        Once repaired, they are empty and pursue their targets. Repairs do not add up: of several under way, the one
        that ends last counts.

        Raises:
            InputError: The repair takes negative time.
        """
        if repair_ps < 0:
            raise InputError("repair", f"takes {repair_ps} ps", "Give a time of at least 0")
        due_ps = min(self._agenda.now_ps + repair_ps, int(FOREVER))
        struck = [slot for slot in slots if self._slots["status"][slot] != FAILED]
        for slot in struck:
            self._slots["load_w"][slot] = 0.0
            self._set(slot, FAILED)
        for slot in slots:
            if slot in struck or due_ps > self.ready_ps[slot]:
                self.ready_ps[slot] = due_ps
                self._wait(slot, due_ps)
        for slot in struck:
            self._evict(slot)  # when all have failed, lest requests flee from one to the next

    def occupy(self, slot: int, load_w: float) -> None:
        """Gives an empty or sleeping slot to a foreign machine that draws ``load_w``; the weights in it are dropped.

        Raises:
            InputError: The slot is neither empty nor asleep, or the power is negative or no number.
        """
        status = self._slots["status"][slot]
        if status not in (EMPTY, SLEEPING):
            raise InputError(
                f"slot {slot}", f"is {STATUS_NAMES[status]}", "Choose one that is empty or asleep for a tenant"
            )
        _check_load(slot, load_w)
        self._turn[slot] += 1
        self._busy[slot] = True
        self._slots["load_w"][slot] = load_w
        self._set(slot, TENANT)

    def set_load(self, slot: int, load_w: float) -> None:
        """Changes what the foreign machine on a slot draws, watts of the whole slot.

        Raises:
            InputError: There is none on the slot, or the power is negative or no number.
        """
        self._check_tenant(slot)
        _check_load(slot, load_w)
        self._slots["load_w"][slot] = load_w

    def vacate(self, slot: int) -> None:
        """Lets the foreign machine leave a slot, which then pursues its target.

        Raises:
            InputError: There is none on the slot; it may have failed.
        """
        self._check_tenant(slot)
        self._slots["load_w"][slot] = 0.0
        self._set(slot, EMPTY)
        self._wait(slot, self._agenda.now_ps)

    def _check_tenant(self, slot: int) -> None:
        status = self._slots["status"][slot]
        if status != TENANT:
            raise InputError(f"slot {slot}", f"has no tenant: it is {STATUS_NAMES[status]}", "Occupy it first")

    def _set(self, slot: int, status: int) -> None:
        self._slots["status"][slot] = status
        self._slots["governed"][slot] = 0
        self.transitions.append(Transition(self._agenda.now_ps, int(slot), status))

    def _wait(self, slot: int, due_ps: int) -> None:
        """Lets a slot go on at ``due_ps``; what it waited for until now no longer counts."""
        self._busy[slot] = True
        self._turn[slot] += 1
        self._agenda.at(due_ps, "slot", int(slot), int(self._turn[slot]))

    def _go_on(self, values: tuple[int, ...]) -> None:
        slot, turn = values
        if turn != self._turn[slot]:
            return
        status = self._slots["status"][slot]
        if status == LOADING or (status == DRAINING and self._holds_its_target(slot)):
            self._set(slot, SERVING)
        elif status == FAILED:
            self._set(slot, EMPTY)
        self._pursue(slot)

    def _holds_its_target(self, slot: int) -> bool:
        """Whether a slot's target would be met by serving with what it holds now."""
        model = self.target[slot] - Target.SERVE
        return bool(model >= 0 and self._slots["deployment"][slot] == self.chosen[slot, model])

    def _pursue(self, slot: int) -> None:
        """Moves a slot towards its target until it must wait."""
        status = self._slots["status"]
        while not self._reached(slot):
            if status[slot] == SERVING:
                self._set(slot, DRAINING)
            elif status[slot] == DRAINING and self._slots["outstanding"][slot] > 0:
                return self._wait(slot, self._agenda.now_ps + DRAIN_POLL_PS)
            elif status[slot] == DRAINING:
                self._set(slot, SLEEPING if self.target[slot] == Target.SLEEP else EMPTY)
            elif status[slot] == SLEEPING and not self._holds_its_target(slot):
                self._set(slot, EMPTY)
            else:
                return self._start(slot, woken=status[slot] == SLEEPING)
        self._busy[slot] = False

    def _reached(self, slot: int) -> bool:
        status, target = self._slots["status"][slot], self.target[slot]
        if target >= Target.SERVE:
            return bool(status == SERVING and self._holds_its_target(slot))
        # An empty slot has nothing to put to sleep and is as good as asleep.
        return bool(status == EMPTY or (status == SLEEPING and target == Target.SLEEP))

    def _start(self, slot: int, *, woken: bool) -> None:
        number = int(self.chosen[slot, self.target[slot] - Target.SERVE])
        deployment = self._deployments[number]
        seconds = deployment.wake_s if woken else deployment.load_s
        seconds *= float(self._rng.uniform(1 - START_JITTER, 1 + START_JITTER))
        if self._slots["deployment"][slot] != number:
            self.loads.append(Load(self._agenda.now_ps, slot, number))
        self._slots["deployment"][slot] = number
        self._clear_cache(slot)
        self._refresh_cap(slot)
        self._set(slot, LOADING)
        self.starts += 1
        self.ready_ps[slot] = self._agenda.now_ps + round(seconds * PS_PER_S)
        self._wait(slot, int(self.ready_ps[slot]))

    def save_state(self) -> State:
        """Everything but the slots' own records and the agenda."""
        return {
            "target": self.target.copy(),
            "ready_ps": self.ready_ps.copy(),
            "chosen": self.chosen.copy(),
            "busy": self._busy.copy(),
            "turn": self._turn.copy(),
            "transitions": tuple(self.transitions),
            "loads": tuple(self.loads),
            "starts": self.starts,
            "rng": generator_state(self._rng),
        }

    def restore_state(self, state: State) -> None:
        """Takes up a state of :meth:`save_state`; slots and agenda are restored by their owners."""
        self.target[...], self.ready_ps[...] = state["target"], state["ready_ps"]
        self.chosen[...] = state["chosen"]
        self._busy[...], self._turn[...] = state["busy"], state["turn"]
        # From memory they come as they are, from bytes as lists.
        self.transitions = [Transition(*change) for change in state["transitions"]]
        self.loads = [Load(*load) for load in state["loads"]]
        self.starts = state["starts"]
        self._rng = generator_from(state["rng"])


def _check_load(slot: int, load_w: float) -> None:
    if not 0.0 <= load_w < float("inf"):
        raise InputError(f"slot {slot}", f"cannot draw {load_w} W", "Give watts of at least 0")
