"""The life of one real inference server: it pursues the target that it was given last, as the simulator's slots do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from ..simulator.kernels.state import DRAINING, EMPTY, FAILED, LOADING, SERVING, SLEEPING
from ..simulator.lifecycle import Target
from .polling import Poll
from .readings import EngineReading, ReadingError

RETRY_S = 30.0
"""After a command that failed, the next one waits for so long."""


class Server(Protocol):
    """What can be done to an inference server; every call takes as long as it takes."""

    @property
    def launches(self) -> bool:
        """Whether :meth:`load` and :meth:`stop` do anything."""

    def sleep(self) -> None:
        """Drops the KV cache and the weights, and stays ready to wake."""

    def wake(self) -> None:
        """Brings the weights back."""

    def load(self, model: str) -> None:
        """Starts a server for a model on this slot's GPUs."""

    def stop(self) -> None:
        """Ends the server."""


class Life:
    """State of one slot, by what was asked of it and what its server answers.

    Args:
        server: Its server.
        model: Model that it holds at the start.
        models: Names of all models, in the order of the targets.
        is_off: Whether it has no server at the start.
        seconds: How long it takes to load a model, or to wake with it.
        timeout_s: A start that takes longer has failed.
        clock: Monotonic seconds.

    Attributes:
        model: Model that it holds, or held last.
        fault: Why the last command failed; empty where none did.
    """

    def __init__(
        self,
        server: Server,
        model: str,
        models: tuple[str, ...],
        *,
        is_off: bool,
        seconds: Callable[[str, bool], float],
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._server, self._models, self._seconds = server, models, seconds
        self._timeout_s, self._clock = timeout_s, clock
        self.model, self.fault = model, ""
        self._is_off, self._target = is_off, int(Target.KEEP)
        self._job: Poll[None] | None = None
        self._verb, self._since_s, self._not_before_s = "", 0.0, float("-inf")

    def command(self, target: int) -> None:
        """Sets the target; see :data:`~llmcluster.envs.actions.SERVE`.

        Without a launcher, ``OFF`` is ``SLEEP``, and only the model that the slot holds can be served.
        """
        if target == Target.KEEP:
            return
        if not self._server.launches:
            if target == Target.OFF:
                target = Target.SLEEP
            elif target >= Target.SERVE and self._models[target - Target.SERVE] != self.model:
                return
        self._target = target

    @property
    def _wants(self) -> str | None:
        """Model that the target names."""
        return self._models[self._target - Target.SERVE] if self._target >= Target.SERVE else None

    @property
    def _is_drained(self) -> bool:
        """Whether the target is another than to serve what it holds."""
        return self._target != Target.KEEP and self._wants != self.model

    @property
    def shall_serve(self) -> bool:
        """Whether the target is to serve a model."""
        return self._wants is not None

    @property
    def is_busy(self) -> bool:
        """Whether a command is under way that has not come back."""
        return self._job is not None and not self._job.is_over

    @property
    def ready_in_s(self) -> float:
        """Time until a start should be over."""
        if self._verb not in ("load", "wake"):
            return 0.0
        due_s = self._since_s + self._seconds(self.model, self._verb == "wake")
        return max(due_s - self._clock(), 0.0)

    def status(self, reading: EngineReading | None) -> int:
        """State by the simulator's numbers.

        Args:
            reading: What the server says; `None` where it is silent.
        """
        if self._verb in ("load", "wake"):
            return LOADING
        if reading is None:
            return EMPTY if self._is_off else FAILED
        if reading.asleep:
            return SLEEPING
        return DRAINING if self._is_drained or self._verb else SERVING

    def pursue(self, reading: EngineReading | None, in_flight: int, announce: Callable[[str], None]) -> None:
        """Goes on towards the target.

        Args:
            reading: What the server says; `None` where it is silent.
            in_flight: Requests that the gateway has under way on it.
            announce: Is told of a command before it begins; if that fails, it does not.
        """
        self._settle(reading)
        if self._verb or self._clock() < self._not_before_s:
            return
        if verb := self._next(self.status(reading), reading, in_flight):
            announce(verb)
            self._begin(verb)

    def _next(self, status: int, reading: EngineReading | None, in_flight: int) -> str:
        """The command that leads on from a state, if it is time for one."""
        idle = reading is not None and reading.running + reading.waiting == 0 and in_flight == 0
        if status == DRAINING and idle:
            return "sleep" if self._target == Target.SLEEP else "stop"
        if status == SLEEPING and self._wants == self.model:
            return "wake"
        if status == SLEEPING and self._target not in (Target.KEEP, Target.SLEEP):
            return "stop"
        return "load" if status == EMPTY and self._wants is not None else ""

    def _begin(self, verb: str) -> None:
        server = self._server
        self.model = model = self._wants or self.model if verb == "load" else self.model
        calls: dict[str, Callable[[], None]] = {
            "sleep": server.sleep,
            "wake": server.wake,
            "stop": server.stop,
            "load": lambda: server.load(model),
        }
        self._job, self._verb, self._since_s, self.fault = Poll(verb, calls[verb]), verb, self._clock(), ""
        self._job.ask()

    def _settle(self, reading: EngineReading | None) -> None:
        """Takes note of a command that has ended, and of a start that has come to its end or takes too long."""
        if self._job is not None:
            if not self._job.is_over:
                if self._clock() - self._since_s > self._timeout_s:
                    self._fail(f"{self._verb} takes longer than {self._timeout_s:g} s")
                return
            try:
                self._job.take(0.0)
            except ReadingError as problem:
                self._fail(str(problem))
                return
            self._job = None
            if self._verb in ("stop", "load"):
                self._is_off = self._verb == "stop"
        if self._verb in ("load", "wake"):
            is_done, should = reading is not None and not reading.asleep, "serve"
        elif self._verb == "sleep":
            is_done, should = reading is None or reading.asleep, "sleep"
        else:
            is_done, should = reading is None, "end"
        if is_done:
            self._verb = ""
        elif self._verb and self._clock() - self._since_s > self._timeout_s:
            self._fail(f"it does not {should} {self._timeout_s:g} s after {self._verb}")

    def _fail(self, why: str) -> None:
        self._job, self._verb, self.fault = None, "", why
        self._not_before_s = self._clock() + RETRY_S
