"""Tells the keeper that the loop lives, from a thread, as long as it does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from .readings import LimitWriter, ReadingError


class Beats:
    """Beats at an even pace while the loop says often enough that it goes on.

    A loop that hangs says nothing any more, so the keeper restores the limits although the process still runs.

    Args:
        writer: The keeper; `None` in a dry run.
        every_s: Pace.
        hung_after_s: Without a sign of the loop for so long, there are no more beats.
        clock: Monotonic seconds.

    Attributes:
        fault: Why a beat has failed since :meth:`take_fault`; empty where none has.
    """

    def __init__(
        self,
        writer: LimitWriter | None,
        every_s: float,
        hung_after_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._writer, self._every_s, self._hung_after_s, self._clock = writer, every_s, hung_after_s, clock
        self._alive_s = clock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="beats", daemon=True)
        self.fault = ""

    def alive(self) -> None:
        """The loop goes on."""
        self._alive_s = self._clock()

    def take_fault(self) -> str:
        """Why a beat has failed since the last call: then the keeper has let go of everything that was set."""
        fault, self.fault = self.fault, ""
        return fault

    def _run(self) -> None:
        while not self._end.wait(self._every_s):
            if self._writer is None or self._clock() - self._alive_s > self._hung_after_s:
                continue
            try:
                self._writer.beat()
            except ReadingError as fault:
                self.fault = str(fault)

    def __enter__(self) -> Self:
        """Begins to beat."""
        self.alive()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, at: TracebackType | None) -> None:
        """Ends."""
        self._end.set()
        self._thread.join()
