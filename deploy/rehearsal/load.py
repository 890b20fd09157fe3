"""Clients of a rehearsal: streamed completions over the OpenAI API, at the times of a workload."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import aiohttp
import numpy as np

from ...simulator.units import PS_PER_S
from ...simulator.workload.table import RequestTable

FAILED_STATUS = 400
MOST_TOKENS = 8192
"""Prompts are sent as token ids, and no longer than this: what is rehearsed is not the context limit."""


@dataclass
class Outcome:
    """What became of one request.

    Attributes:
        sent_s: When it was sent, seconds since the first.
        tokens: Tokens that came.
        wanted: Tokens that were asked for.
        ttft_s: Time to the first of them.
        total_s: Time to the last.
        fault: Why it failed; empty where it did not.
    """

    sent_s: float
    wanted: int
    tokens: int = 0
    ttft_s: float = float("nan")
    total_s: float = float("nan")
    fault: str = ""

    @property
    def lost(self) -> bool:
        """Whether it did not get what it asked for."""
        return bool(self.fault) or self.tokens < self.wanted


@dataclass
class Tally:
    """All requests of a load.

    Attributes:
        outcomes: In the order in which they were sent.
    """

    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def lost(self) -> list[Outcome]:
        """Those that did not get what they asked for."""
        return [one for one in self.outcomes if one.lost]

    def percentile_s(self, name: str, share: float) -> float:
        """A percentile of ``ttft_s`` or ``total_s`` of those that were served; 0 if none was."""
        served = [getattr(one, name) for one in self.outcomes if not one.lost]
        return float(np.percentile(served, share)) if served else 0.0


async def play(url: str, requests: RequestTable, models: Sequence[str], token: str | None = None) -> Tally:
    """Sends the requests of a workload at their times, and waits until all have ended.

    Args:
        url: Where the gateway is.
        requests: The workload.
        models: Names of its models; the first one for requests that any will do.
        token: Bearer token, where clients need one.
    """
    tally, began_s = Tally(), time.monotonic()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10.0, sock_read=120.0)
    connector = aiohttp.TCPConnector(limit=0)
    async with (
        aiohttp.ClientSession(url, headers=headers, timeout=timeout, connector=connector) as session,
        asyncio.TaskGroup() as group,
    ):
        for i, arrival_ps in enumerate(requests.arrival_ps.tolist()):
            await asyncio.sleep(max(began_s + arrival_ps / PS_PER_S - time.monotonic(), 0.0))
            outcome = Outcome(time.monotonic() - began_s, int(requests.output_tokens[i]))
            tally.outcomes.append(outcome)
            body = {
                "model": models[max(int(requests.model[i]), 0)],
                "prompt": [1] * min(int(requests.prompt_tokens[i]), MOST_TOKENS),
                "max_tokens": outcome.wanted,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            group.create_task(send(session, body, outcome))
    return tally


async def send(session: aiohttp.ClientSession, body: dict[str, object], outcome: Outcome) -> None:
    """Sends one streamed completion, and notes what became of it."""
    began_s = time.monotonic()
    try:
        async with session.post("/v1/completions", json=body) as response:
            if response.status >= FAILED_STATUS:
                outcome.fault = f"{response.status} {(await response.text())[:200]}"
                return
            ended = False
            async for line in response.content:
                if line.startswith(b"data: [DONE]"):
                    ended = True
                elif line.startswith(b"data: {"):
                    if np.isnan(outcome.ttft_s):
                        outcome.ttft_s = time.monotonic() - began_s
                    if b'"usage":{' in line:
                        outcome.tokens = int(json.loads(line[6:])["usage"]["completion_tokens"])
            if not ended:
                outcome.fault = "the stream was cut"
    except (aiohttp.ClientError, TimeoutError) as fault:
        outcome.fault = f"{type(fault).__name__}: {fault}"
    outcome.total_s = time.monotonic() - began_s
