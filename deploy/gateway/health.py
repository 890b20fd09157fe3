"""Whether backends answer, asked of them at intervals."""

from __future__ import annotations

import asyncio
import re

from .backends import Backend
from .config import HealthSpec
from .dispatch import Dispatcher
from .upstream import Upstream

ASLEEP = re.compile(rb'\s*\{\s*"is_sleeping"\s*:\s*true\s*\}\s*')


class HealthChecks:
    """Asks every backend for ``/health``, and whether it sleeps, again and again.

    Args:
        upstream: Who asks.
        dispatcher: Who has the backends, and gives them requests again once they answer.
        spec: How often, and how long an answer may take.
    """

    def __init__(self, upstream: Upstream, dispatcher: Dispatcher, spec: HealthSpec) -> None:
        self._upstream, self._dispatcher, self._spec = upstream, dispatcher, spec

    async def run(self) -> None:
        """Goes on until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            for backend in self._dispatcher.backends.values():
                group.create_task(self._watch(backend))

    async def _watch(self, backend: Backend) -> None:
        while True:
            if await self._upstream.look(backend, "/health", self._spec.timeout_s) is None:
                backend.failed()
            else:
                slept = backend.asleep
                # Only a vLLM in development mode has this path; one without it cannot sleep.
                said = await self._upstream.look(backend, "/is_sleeping", self._spec.timeout_s)
                backend.asleep = said is not None and ASLEEP.fullmatch(said) is not None
                if backend.answered() or (slept and not backend.asleep):
                    self._dispatcher.serve(backend.spec.model)
            await asyncio.sleep(self._spec.interval_s)
