"""A thread to call NVML from: a call into the driver can hang, and whoever asked must not hang with it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

from .errors import SilentError

T = TypeVar("T")


class Worker:
    """Does one call after the other on a thread of its own, which a process that ends does not wait for.

    Args:
        where: What it works on, for messages.
        timeout_s: How long `ask` waits for an answer, seconds.
    """

    def __init__(self, where: str, timeout_s: float) -> None:
        self.where, self.timeout_s = where, timeout_s
        self._tasks: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._last: Future[Any] = Future()
        self._last.set_result(None)
        Thread(target=self._work, name=f"nvml {where}", daemon=True).start()

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            future, call = task
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call())
            except BaseException as fault:  # handed to whoever asked
                future.set_exception(fault)

    def queue(self, call: Callable[[], T]) -> Future[T]:
        """Does ``call`` when those before it have come back, however long that takes."""
        future: Future[T] = Future()
        self._last = future
        self._tasks.put((future, call))
        return future

    def begin(self, call: Callable[[], T]) -> Future[T]:
        """Does ``call`` now; raises `SilentError` if an earlier one has not come back."""
        if not self._last.done():
            raise SilentError(self.where, "an earlier call has not come back yet")
        return self.queue(call)

    def wait(self, future: Future[T], timeout_s: float | None = None) -> T:
        """What a call gives; raises `SilentError` if that takes too long, and what the call raised if it did."""
        try:
            return future.result(self.timeout_s if timeout_s is None else timeout_s)
        except TimeoutError as fault:
            raise SilentError(self.where) from fault

    def ask(self, call: Callable[[], T]) -> T:
        """Does ``call`` and waits for it."""
        return self.wait(self.begin(call))

    def stop(self) -> None:
        """Ends the thread once its calls have come back."""
        self._tasks.put(None)
