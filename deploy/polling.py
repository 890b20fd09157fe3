"""Reading many sources at once, where none that hangs holds up the others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from .readings import ReadingError

T = TypeVar("T")


class Poll(Generic[T]):
    """Calls a function in a thread of its own and waits for so long.

    A call that takes longer goes on by itself; until it ends, nothing else is asked of it. So a driver that hangs costs
    one thread, and not the loop.

    Args:
        name: What is asked, for messages.
        call: The function.
    """

    def __init__(self, name: str, call: Callable[[], T]) -> None:
        self.name, self._call = name, call
        self._done = threading.Event()
        self._busy = False
        self._answer: T | None = None
        self._fault: Exception | None = None

    def ask(self) -> bool:
        """Begins a call, unless the last one is still under way; says whether it did."""
        if self._busy and not self._done.is_set():
            return False
        self._busy = True
        self._done.clear()
        threading.Thread(target=self._run, name=self.name, daemon=True).start()
        return True

    @property
    def is_over(self) -> bool:
        """Whether the last call has ended."""
        return self._done.is_set()

    def _run(self) -> None:
        try:
            self._answer, self._fault = self._call(), None
        except Exception as fault:
            self._fault = fault
        self._done.set()

    def take(self, until_s: float) -> T:
        """The answer.

        Args:
            until_s: How long to wait for it, a time of ``time.monotonic``.

        Raises:
            ReadingError: It is not there in time, or the call failed; then that is its cause.
        """
        if not self._done.wait(max(until_s - time.monotonic(), 0.0)):
            raise ReadingError(f"{self.name} does not answer in time")
        self._busy = False
        if isinstance(self._fault, ReadingError):
            raise self._fault
        if self._fault is not None:
            raise ReadingError(f"{self.name} failed: {type(self._fault).__name__}: {self._fault}") from self._fault
        return self._answer  # type: ignore[return-value]
