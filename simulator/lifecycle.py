"""Instance life in SimPy: empty → loading → serving → draining → sleeping or empty.

A slot pursues the last target it was given; a transition that has begun to load is carried through first.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import simpy
from numpy.typing import NDArray

from .deployments import Deployment
from .kernels.state import DRAINING, EMPTY, LOADING, SERVING, SLEEPING, Records
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


@dataclass(frozen=True)
class Transition:
    """One change of a slot's state, for the log."""

    time_ps: int
    slot: int
    status: int


class Lifecycle:
    """Carries out targets for all slots.

    Args:
        world: The SimPy environment, in picoseconds.
        slots: The engine's slots, whose ``status`` and ``deployment`` this class owns.
        deployments: All deployments.
        index: int64 (slots, models): deployment of each model on each slot, -1 if it does not fit.
        rng: Source of the variation of start times.
        clear_cache: Empties the KV cache of a slot, for its deployment of that time.
    """

    def __init__(
        self,
        world: simpy.Environment,
        slots: Records,
        deployments: Sequence[Deployment],
        index: NDArray[np.int64],
        rng: np.random.Generator,
        clear_cache: Callable[[int], None],
    ) -> None:
        self._world, self._slots, self._deployments, self._index = world, slots, deployments, index
        self._rng, self._clear_cache = rng, clear_cache
        self.target = np.where(slots["status"] == SERVING, Target.SERVE + self._models(), 0).astype(np.int64)
        self.target[slots["status"] == SLEEPING] = Target.SLEEP
        self.target[slots["status"] == EMPTY] = Target.OFF
        self.ready_ps = np.zeros(len(self.target), np.int64)
        self.transitions: list[Transition] = []
        self.starts = 0
        self._busy = np.zeros(len(self.target), bool)

    def _models(self) -> NDArray[np.int64]:
        return np.array([self._deployments[d].model for d in self._slots["deployment"]], np.int64)

    def fits(self, slot: int, model: int) -> bool:
        """Whether ``slot`` can hold ``model``."""
        return bool(self._index[slot, model] >= 0)

    def command(self, slot: int, target: int) -> None:
        """Sets the target of a slot; ``Target.KEEP`` and targets that the slot cannot reach leave it as it is."""
        if target == Target.KEEP or (target >= Target.SERVE and not self.fits(slot, target - Target.SERVE)):
            return
        if target == self.target[slot]:
            return
        self.target[slot] = target
        if not self._busy[slot]:
            self._busy[slot] = True
            self._world.process(self._pursue(slot))

    def _set(self, slot: int, status: int) -> None:
        self._slots["status"][slot] = status
        self._slots["governed"][slot] = 0
        self.transitions.append(Transition(int(self._world.now), slot, status))

    def _holds(self, slot: int) -> int:
        """Target that would be met by serving what the slot holds now."""
        return int(Target.SERVE) + self._deployments[int(self._slots["deployment"][slot])].model

    def _pursue(self, slot: int) -> Generator[simpy.Event, Any, None]:
        status = self._slots["status"]
        while not self._reached(slot):
            if status[slot] == SERVING:
                self._set(slot, DRAINING)
            elif status[slot] == DRAINING:
                yield from self._drain(slot)
            elif status[slot] == SLEEPING and self.target[slot] != self._holds(slot):
                self._set(slot, EMPTY)
            else:
                yield from self._start(slot, woken=status[slot] == SLEEPING)
        self._busy[slot] = False

    def _reached(self, slot: int) -> bool:
        status, target = self._slots["status"][slot], self.target[slot]
        if target >= Target.SERVE:
            return bool(status == SERVING and target == self._holds(slot))
        # An empty slot has nothing to put to sleep and is as good as asleep.
        return bool(status == EMPTY or (status == SLEEPING and target == Target.SLEEP))

    def _drain(self, slot: int) -> Generator[simpy.Event, Any, None]:
        while self._slots["outstanding"][slot] > 0:
            yield self._world.timeout(DRAIN_POLL_PS)
            if self.target[slot] == self._holds(slot):
                self._set(slot, SERVING)
                return
        self._set(slot, SLEEPING if self.target[slot] == Target.SLEEP else EMPTY)

    def _start(self, slot: int, *, woken: bool) -> Generator[simpy.Event, Any, None]:
        number = int(self._index[slot, self.target[slot] - Target.SERVE])
        deployment = self._deployments[number]
        seconds = deployment.wake_s if woken else deployment.load_s
        seconds *= float(self._rng.uniform(1 - START_JITTER, 1 + START_JITTER))
        self._slots["deployment"][slot] = number
        self._clear_cache(slot)
        self._set(slot, LOADING)
        self.starts += 1
        delay = round(seconds * PS_PER_S)
        self.ready_ps[slot] = int(self._world.now) + delay
        yield self._world.timeout(delay)
        self._set(slot, SERVING)
