"""The simulator as a live machine: requests come whenever somebody sends them, and time goes on as it is told to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ...envs.plant import SimulatedPlant, fleet_of
from ...envs.scenario import Scenario, load_scenario
from ...envs.telemetry import Telemetry
from ...simulator.blueprint import Blueprint
from ...simulator.errors import InputError
from ...simulator.kernels.state import (
    C_ON_FAILURE,
    FAIL,
    MIXED,
    SERVING,
    STATUS_NAMES,
    Records,
)
from ...simulator.lifecycle import Target
from ...simulator.units import PS_PER_S
from ...simulator.workload.table import RequestTable
from .requests import LiveRequest, NotServingError
from .tally import Counts, Tally

SCENARIO = Path(__file__).with_name("rehearsal.toml")
"""Eight H100 in four slots, for a rehearsal that is given no other scenario."""

CAPACITY = 100_000
"""Requests that a machine takes in its life, by default: each has its row of the request table, 140 bytes."""

STEP_S = 0.01
"""In real time the machine goes on by so much, about the time of one token."""

COUNTED = ("energy", "prompt_tokens", "output_tokens")


class LiveMachine:
    """A scenario's cluster, whose own workload is left out.

    It belongs to one thread. Time goes on by :meth:`advance_to`, or in real or scaled time while :meth:`run` runs.

    Args:
        scenario: The scenario, its name or its file; slots must be ``mixed``.
        seed: Of all that is random in it.
        capacity: Requests that it takes in its life.

    Attributes:
        scenario: The scenario.
        plant: The simulated plant: what a real one is held against.
        slots: Names of the slots.
        telemetry: What the plant told at the end of the last tick.
        tally: What telemetry does not tell.
        before_step: Called before time goes on.
        on_step: Called after it has gone on.
        on_second: Called at each whole second with its number, before ``on_step``.
        on_status: Called with slot, former and new state whenever one changes, before those who wait are woken.
    """

    def __init__(self, scenario: str | Path | Scenario = SCENARIO, seed: int = 0, capacity: int = CAPACITY) -> None:
        self.scenario = scenario = load_scenario(scenario)
        blueprint = Blueprint.of(scenario.cluster)
        ones = np.ones(capacity, np.int32)
        table = RequestTable.from_columns(np.zeros(capacity), ones, ones, slo_classes=tuple(scenario.slo))
        self.tally = Tally(len(blueprint.slots))
        self.plant = SimulatedPlant(
            scenario, blueprint, fleet_of(blueprint), table, np.random.default_rng(seed), "reference", self.tally
        )
        self.cluster = self.plant.cluster
        if (self.cluster.engine.slots["role"] != MIXED).any():
            raise InputError(
                f"scenario '{scenario.name}'", "has slots that hand over requests", 'Use slots of role "mixed"'
            )
        # As if each waited for one before it: rows do not arrive by themselves, they are taken as requests are sent.
        self.cluster.engine.requests["think_ps"] = 0
        # Nobody but the gateway outside sends a request elsewhere.
        self.cluster.engine.cursor[C_ON_FAILURE] = FAIL
        self.slots = self.plant.fleet.slots
        self.telemetry: Telemetry = self.plant.read()
        self.before_step: list[Callable[[], None]] = []
        self.on_step: list[Callable[[], None]] = []
        self.on_second: list[Callable[[int], None]] = []
        self.on_status: list[Callable[[int, int, int], None]] = []
        self._capacity, self._row = capacity, 0
        self._live: dict[int, LiveRequest] = {}
        self._closed = [[0, 0, 0] for _ in self.slots]  # whole numbers of any size: energies soon exceed 64 bits
        self._status = self.cluster.engine.slots["status"].tolist()
        self._changed = [asyncio.Event() for _ in self.slots]
        self._pace: Callable[[], float] | None = None

    # ----------------------------------------------------------------------------------------------------------- time

    @property
    def now_s(self) -> float:
        """Time that it has reached, seconds since its start."""
        return self.cluster.now_ps / PS_PER_S

    def advance_to(self, time_s: float) -> None:
        """Lets everything before ``time_s`` happen; nothing if that is past."""
        until_ps = round(time_s * PS_PER_S)
        for called in self.before_step:
            called()
        while self.cluster.now_ps < until_ps:
            edge = self.cluster.now_ps // PS_PER_S + 1
            stop_ps = min(until_ps, edge * PS_PER_S)
            self.cluster.advance(stop_ps)
            if stop_ps == edge * PS_PER_S:
                self._close_second(edge)
        self._tell()

    async def run(self, speed: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        """Keeps up with a clock until cancelled.

        Args:
            speed: Simulated seconds to a second.
            clock: Seconds.
        """
        started, first_s = clock(), self.now_s

        def pace() -> float:
            return first_s + speed * (clock() - started)

        self._pace = pace
        try:
            while True:
                self.advance_to(pace())
                await asyncio.sleep(STEP_S / max(speed, 1.0))
        finally:
            self._pace = None

    def _close_second(self, edge: int) -> None:
        last = self.cluster.history.records[-1]
        for total, record in zip(self._closed, last[list(COUNTED)].tolist(), strict=True):
            total[:] = [a + b for a, b in zip(total, record, strict=True)]
        if edge % self.scenario.tick_s == 0:
            self.plant.take_stock()
            self.telemetry = self.plant.read()
        for told in self.on_second:
            told(edge)

    def _tell(self) -> None:
        status = self.cluster.engine.slots["status"].tolist()
        for slot, (before, now) in enumerate(zip(self._status, status, strict=True)):
            if before != now:
                self._status[slot] = now
                for told in self.on_status:
                    told(slot, before, now)
                self._changed[slot].set()
                self._changed[slot] = asyncio.Event()
        for row, live in list(self._live.items()):
            if live.is_over:
                del self._live[row]
            live.notice()
        for called in self.on_step:
            called()

    def _catch_up(self) -> None:
        """Where time goes by itself, what comes from outside comes at its time and not at the last step's."""
        if self._pace is not None:
            self.advance_to(self._pace())

    # ------------------------------------------------------------------------------------------------------- requests

    def submit(self, slot: int, prompt_tokens: int, output_tokens: int) -> LiveRequest:
        """Sends a request to a slot now.

        Raises:
            NotServingError: The slot takes none at present, or the machine has used up its capacity.
            InputError: It is longer than the slot's model can take, or has no tokens.
        """
        self._catch_up()
        status = self.status(slot)
        if status != SERVING:
            raise NotServingError(f"{self.slots[slot]} is {STATUS_NAMES[status]}")
        if self._row >= self._capacity:
            raise NotServingError(f"the machine has served the {self._capacity} requests that it was made for")
        longest = self.max_tokens(slot)
        if min(prompt_tokens, output_tokens) < 1 or prompt_tokens + output_tokens > longest:
            problem = f"{prompt_tokens} prompt and {output_tokens} output tokens are not within 1 and {longest}"
            raise InputError("request", problem, "Ask for less")
        request = self.cluster.reference.submit(self._row, prompt_tokens, output_tokens, slot)
        live = self._live[self._row] = LiveRequest(slot, prompt_tokens, output_tokens, request)
        self._row += 1
        return live

    def cancel(self, live: LiveRequest) -> None:
        """The client of a request has gone: its slot drops it, at the end of an iteration that computes it."""
        self._catch_up()
        if not live.is_over:
            self.cluster.reference.cancel(live.request)
            self._tell()

    def in_flight(self, slot: int) -> list[LiveRequest]:
        """Requests at a slot, in the order in which they came."""
        return [live for live in self._live.values() if live.slot == slot and not live.is_over]

    # -------------------------------------------------------------------------------------------------------- readings

    def number(self, name: str) -> int:
        """Number of a slot by its name."""
        if name not in self.slots:
            raise InputError(f"slot '{name}'", "there is none of that name", f"Use one of {', '.join(self.slots)}")
        return self.slots.index(name)

    def status(self, slot: int) -> int:
        """State of a slot: one of ``STATUS_NAMES``."""
        return int(self.cluster.engine.slots["status"][slot])

    def deployment(self, slot: int) -> Records:
        """What a slot serves, or served last."""
        engine = self.cluster.engine
        return engine.deployments[engine.slots["deployment"][slot]]

    def model(self, slot: int) -> str:
        """Name of the model that a slot serves, or served last."""
        return self.plant.fleet.models[int(self.deployment(slot)["model"])]

    def max_tokens(self, slot: int) -> int:
        """Tokens of a request there, prompt and output, at most."""
        return int(self.deployment(slot)["max_tokens"])

    def queues(self, slot: int) -> tuple[int, int, float]:
        """Requests running and waiting at a slot, and the share of its KV cache in use, now."""
        record, blocks = self.cluster.engine.slots[slot], int(self.deployment(slot)["kv_blocks"])
        waiting = int(record["waiting"])
        return int(record["outstanding"]) - waiting, waiting, 1.0 - int(record["free_blocks"]) / blocks

    def counts(self, slot: int) -> Counts:
        """Counters of a slot up to now."""
        energy, prompt, output = self._closed[slot]
        now = self.cluster.reference.instant(slot)
        flown_ps = self.cluster.now_ps - now.flight_ps if now.flight_ps >= 0 else 0
        return Counts(
            energy + now.energy,
            prompt + now.prompt_tokens,
            output + now.output_tokens,
            self.tally.busy_ps[slot] + flown_ps,
            now.power_w,
        )

    # ----------------------------------------------------------------------------------------------------- life cycle

    def command(self, slot: int, target: int) -> None:
        """Gives a slot a life-cycle target, see :class:`Target`."""
        self._catch_up()
        self.cluster.command(slot, target)
        self.cluster.settle()
        self._tell()

    def serve(self, slot: int, model: str | None = None) -> None:
        """Lets a slot load or wake, to serve a model, by default the one that it had."""
        models = self.plant.fleet.models
        name = self.model(slot) if model is None else model
        if name not in models or not self.plant.fleet.fits[slot, models.index(name)]:
            raise InputError(f"slot '{self.slots[slot]}'", f"cannot hold '{name}'", f"Use one of {', '.join(models)}")
        self.command(slot, Target.SERVE + models.index(name))

    def kill(self, slot: int) -> None:
        """The server of a slot dies, and its requests with it; its GPUs are free and idle from then on."""
        self._catch_up()
        self.cluster.command(slot, Target.OFF)
        self.cluster.fail(slot, repair_s=0.0)
        self.cluster.settle()
        self._tell()

    async def until(self, slot: int, *states: int) -> int:
        """Waits until a slot is in one of some states; gives the one."""
        while self.status(slot) not in states:
            await self._changed[slot].wait()
        return self.status(slot)
