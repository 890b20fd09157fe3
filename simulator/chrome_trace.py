"""What a cluster does, as a trace for Perfetto (ui.perfetto.dev) or chrome://tracing.

The format is Chrome's Trace Event Format (JSON array of events, times in microseconds): a process per slot, with its
iterations as slices, its requests as asynchronous slices (queued, running), preemptions and first tokens as instants,
and counters of power, temperature and batch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from .files import whole
from .kernels.state import J_PER_UNIT, REQUEST_STATUS_NAMES, Records
from .reference.observer import Observer
from .units import PS_PER_S

PS_PER_US = 10**6


class ChromeTrace(Observer):
    """Writes the trace as the run goes on; hand it to a cluster with the reference engine.

    The file bears its name once all is written. Use it as a context manager.

    Args:
        path: The file.
        slots: Names of the slots.
    """

    def __init__(self, path: Path, slots: Sequence[str]) -> None:
        self._path, self._slots = path, slots
        self._running: dict[int, str] = {}

    def __enter__(self) -> Self:
        """Opens the file under another name."""
        self._stack = ExitStack()
        self._file: TextIO = self._stack.enter_context(self._stack.enter_context(whole(self._path)).open("w"))
        self._file.write("[\n")
        self._first = True
        for number, name in enumerate(self._slots):
            self._write(name="process_name", ph="M", pid=number, args={"name": name})
            self._write(name="process_sort_index", ph="M", pid=number, args={"sort_index": number})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Names the file, or removes it if there was a fault."""
        self._file.write("\n]\n")
        self._stack.__exit__(kind, fault, trace)

    def _write(self, **event: Any) -> None:
        self._file.write(("" if self._first else ",\n") + json.dumps(event))
        self._first = False

    def _request(self, slot: int, request: int, t: int, phase: str, name: str, **args: Any) -> None:
        """An event of the asynchronous slices of a request."""
        self._write(
            name=name,
            cat="request",
            ph=phase,
            id=request,
            pid=slot,
            tid=1,
            ts=t / PS_PER_US,
            args=args | {"row": request},
        )

    def _end(self, slot: int, request: int, t: int, **args: Any) -> None:
        name = self._running.pop(request, None)
        if name is not None:
            self._request(slot, request, t, "e", name, **args)

    def _begin(self, slot: int, request: int, t: int, name: str, **args: Any) -> None:
        self._running[request] = name
        self._request(slot, request, t, "b", name, **args)

    def iteration(
        self, slot: int, start_ps: int, end_ps: int, decodes: int, prefill_tokens: int, step: int, energy: int
    ) -> None:
        """A slice."""
        kinds = [name for name, tokens in (("prefill", prefill_tokens), ("decode", decodes)) if tokens]
        self._write(
            name=" + ".join(kinds),
            cat="iteration",
            ph="X",
            pid=slot,
            tid=0,
            ts=start_ps / PS_PER_US,
            dur=(end_ps - start_ps) / PS_PER_US,
            args={
                "decodes": decodes,
                "prefill_tokens": prefill_tokens,
                "clock_step": step,
                "energy_j": energy * J_PER_UNIT,
                "power_w": energy * J_PER_UNIT / ((end_ps - start_ps) / PS_PER_S),
            },
        )

    def queued(self, slot: int, request: int, t: int) -> None:
        """Begins to wait."""
        self._begin(slot, request, t, "queued")

    def admitted(self, slot: int, request: int, t: int, hit_tokens: int) -> None:
        """Waits no more, but runs."""
        self._end(slot, request, t)
        self._begin(slot, request, t, "running", hit_tokens=hit_tokens)

    def preempted(self, slot: int, request: int, t: int) -> None:
        """Runs no more, but waits."""
        self._end(slot, request, t)
        instant = {"cat": "preemption", "ph": "i", "s": "p", "pid": slot, "tid": 0, "ts": t / PS_PER_US}
        self._write(name="preemption", args={"row": request}, **instant)
        self._begin(slot, request, t, "queued")

    def first_token(self, slot: int, request: int, t: int) -> None:
        """An instant within the run."""
        self._request(slot, request, t, "n", "first token")

    def left(self, slot: int, request: int, t: int, status: int) -> None:
        """Ends whatever it did."""
        self._end(slot, request, t, status=REQUEST_STATUS_NAMES[status])

    def second(self, slot: int, edge_ps: int, record: Records) -> None:
        """Counters, each valid for the second that has ended."""
        counters: dict[str, dict[str, float]] = {
            "power (W)": {"mean": float(record["energy"]) * J_PER_UNIT, "metered": float(record["metered_w"])},
            "temperature (°C)": {"GPU": float(record["temperature_c"])},
            "clock (ratio)": {"clock": float(record["clock_ratio"])},
            "requests": {"running": int(record["running"]), "waiting": int(record["waiting"])},
            "KV blocks used (share)": {"used": float(record["kv_used"])},
        }
        for name, values in counters.items():
            self._write(name=name, ph="C", pid=slot, ts=(edge_ps - PS_PER_S) / PS_PER_US, args=values)
