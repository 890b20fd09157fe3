"""Readings of a vLLM server from its page `/metrics`, whatever its version calls them."""

from __future__ import annotations

import json
import logging
import time
from collections import defaultdict
from collections.abc import Callable

from ..readings import EngineReading, ReadingError
from .counters import Counter
from .http import checked_url, fetch
from .page import Labels, values
from .vllm_names import (
    CACHED,
    ITERATIONS,
    KNOWN,
    KV_USED,
    OUTPUT,
    PREEMPTIONS,
    PROMPT,
    RUNNING,
    SLEEP,
    SWAPPED,
    WAITING,
    bare,
)

logger = logging.getLogger(__name__)

Series = dict[Labels, float]


class VllmSource:
    """The :class:`~llmcluster.deploy.readings.EngineSource` of one vLLM server.

    Engines in data parallel and other sets of labels are added up; the share of the KV cache is their mean. Prompt
    tokens are those computed where the version also tells how many were found in the cache, else all.

    Args:
        url: Where the server listens, without a path.
        timeout_s: A server that takes longer does not answer.
        clock: Monotonic seconds.
    """

    def __init__(self, url: str, timeout_s: float = 0.5, clock: Callable[[], float] = time.monotonic) -> None:
        self._url, self._timeout_s, self._clock = checked_url(url), timeout_s, clock
        self._counters = {name: Counter() for name in ("prompt", "cached", "output", "preemptions", "iterations")}
        self._strange: set[str] = set()
        self._tells_sleep = True

    def read(self) -> EngineReading:
        """The reading of now.

        Raises:
            ReadingError: It does not answer in time, or with something else.
        """
        until_s = time.monotonic() + self._timeout_s
        source = self._url + "/metrics"
        status, page = fetch(source, self._timeout_s)
        time_s = self._clock()
        if status != 200:
            raise ReadingError(f"{source} answers {status}; look whether the server is ready")
        told: dict[str, Series] = defaultdict(dict)
        for value in values(page, "vllm:", source):
            told[value.name][value.labels] = value.value
        self._log_strange(told)
        if not _first(told, RUNNING):
            raise ReadingError(f"{source} has no {RUNNING[0]}; look whether vLLM is there, and logs its statistics")
        shares = _first(told, KV_USED)
        computed = self._count("prompt", told, PROMPT) - self._count("cached", told, CACHED)
        return EngineReading(
            time_s=time_s,
            running=sum(_first(told, RUNNING).values()),
            waiting=sum(_first(told, WAITING).values()) + sum(_first(told, SWAPPED).values()),
            kv_used=sum(shares.values()) / max(len(shares), 1),
            prompt_tokens=max(computed, 0.0),
            output_tokens=self._count("output", told, OUTPUT),
            preemptions=self._count("preemptions", told, PREEMPTIONS),
            iterations=self._count("iterations", told, ITERATIONS),
            asleep=self._is_asleep(_first(told, SLEEP), until_s - time.monotonic()),
        )

    def _count(self, name: str, told: dict[str, Series], names: tuple[str, ...]) -> float:
        return self._counters[name].add(_first(told, names))

    def _is_asleep(self, states: Series, left_s: float) -> bool:
        """Whether no engine is awake; older versions have no such metric and are asked."""
        awake = [value for key, value in states.items() if ("sleep_state", "awake") in key]
        if awake:
            return not any(awake)
        if not self._tells_sleep or left_s <= 0:
            return False
        status, answer = fetch(self._url + "/is_sleeping", left_s)
        if status != 200:
            self._tells_sleep = False  # it was started without VLLM_SERVER_DEV_MODE=1, and so cannot sleep
            return False
        return is_sleeping(answer)

    def _log_strange(self, told: dict[str, Series]) -> None:
        """Says once which metrics there are of which nothing is known: one of them may be an old one renamed."""
        strange = {bare(name) for name in told} - KNOWN - self._strange
        if strange:
            self._strange |= strange
            logger.info("%s has metrics that are not known: %s", self._url, ", ".join(sorted(strange)))


def is_sleeping(answer: bytes) -> bool:
    """Whether the answer to `/is_sleeping` says so."""
    try:
        said = json.loads(answer)
        return said["is_sleeping"] is True
    except (ValueError, KeyError, TypeError) as fault:
        raise ReadingError(f"/is_sleeping answers {answer[:80]!r}; look whether vLLM is there") from fault


def _first(told: dict[str, Series], names: tuple[str, ...]) -> Series:
    """Values by labels under the first of some names that the page has."""
    return next((told[name] for name in names if name in told), {})
