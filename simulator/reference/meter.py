"""What a slot draws, second by second, in exact energies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from ..kernels.state import (
    BIN_PS,
    BINS,
    DRAINING,
    FAILED,
    J_PER_UNIT,
    LOADING,
    SERVING,
    TENANT,
    UNITS_PER_W,
    Engine,
    Records,
)
from .control import Control
from .physics import Heat
from .scheduler import Plan


@dataclass(slots=True)
class Flight:
    """An iteration under way; ``spent`` is how much of its energy is in the bins."""

    plan: Plan
    step: int
    start_ps: int
    end_ps: int
    energy: int
    spent: int = 0

    def energy_by(self, time_ps: int) -> int:
        """Energy from its start to ``time_ps``, which lies in it."""
        if time_ps == self.end_ps:
            return self.energy
        return math.floor(self.energy * (float(time_ps - self.start_ps) / float(self.end_ps - self.start_ps)))


class Instant(NamedTuple):
    """A slot between two seconds.

    Attributes:
        power_w: Power now.
        energy: Drawn in the open second so far, in units of 1e-14 J.
        prompt_tokens: Computed in it.
        output_tokens: Generated in it.
        flight_ps: When the iteration under way began, -1 at rest.
    """

    power_w: float
    energy: int
    prompt_tokens: int
    output_tokens: int
    flight_ps: int


class Meter:
    """Power and heat of one slot.

    Attributes:
        control: What is set for the slot.
        flight: The iteration under way, None at rest.
        heat: Its temperature.
    """

    def __init__(self, engine: Engine, slot: int, control: Control) -> None:
        self._engine, self._slot = engine, slot
        self._accounted_ps = self._closed_ps = 0
        self._energy = self._prompt_tokens = self._output_tokens = 0  # of the open second
        self.control, self.heat = control, Heat()
        self.flight: Flight | None = None

    def begin(self, flight: Flight) -> Flight:
        """An iteration begins."""
        self.account(flight.start_ps)
        self.flight = flight
        return flight

    def end(self, time_ps: int) -> Flight:
        """The iteration under way ends, or is lost before its end."""
        self.account(time_ps)
        flight, self.flight = self.flight, None
        assert flight is not None
        return flight

    def count_tokens(self, end_ps: int, prompt: int, output: int) -> None:
        """Counts the tokens of an iteration in the second of its end."""
        if end_ps == self._closed_ps:
            record = self._bin_before(end_ps)
            record["prompt_tokens"] += prompt
            record["output_tokens"] += output
        else:
            self._prompt_tokens += prompt
            self._output_tokens += output

    def account(self, time_ps: int) -> None:
        """Counts the energy drawn up to ``time_ps`` in the open second."""
        if self.flight is not None:
            drawn = self.flight.energy_by(time_ps) - self.flight.spent
            self.flight.spent += drawn
            self._energy += drawn
        elif time_ps > self._accounted_ps:
            self._energy += self._rest_cw() * (time_ps - self._accounted_ps)
        self._accounted_ps = time_ps

    @property
    def instant(self) -> Instant:
        """What it shows at the time up to which it has accounted."""
        begun_ps = -1 if self.flight is None else self.flight.start_ps
        return Instant(self._instant_w(), self._energy, self._prompt_tokens, self._output_tokens, begun_ps)

    def close(self, edge_ps: int) -> Records:
        """Ends the second before ``edge_ps``: energy, meter, heat; returns its record."""
        self.account(edge_ps)
        record, deployment = self._bin_before(edge_ps), self.control.deployment
        # A second's energy in joules is also its mean power in watts.
        mean_w = self._energy * J_PER_UNIT
        record["energy"] = self._energy
        record["prompt_tokens"], record["output_tokens"] = self._prompt_tokens, self._output_tokens
        self._energy = self._prompt_tokens = self._output_tokens = 0
        self._closed_ps = edge_ps
        averaging = self._engine.deployments["averaging"][deployment]
        record["metered_w"] = mean_w if averaging else self._instant_w()
        record["temperature_c"] = self.heat.pass_second(self._engine, deployment, mean_w, self.control.inlet_c)
        return record

    def _bin_before(self, time_ps: int) -> Records:
        """The bin of the second in which the picosecond before ``time_ps`` lies."""
        return self._engine.bins[(time_ps - 1) // BIN_PS % BINS, self._slot]

    def _instant_w(self) -> float:
        if self.flight is None:
            return self._rest_cw() / UNITS_PER_W
        return self.flight.energy / (self.flight.end_ps - self.flight.start_ps) / UNITS_PER_W

    def _rest_cw(self) -> int:
        """Power without work."""
        status, record = self.control.status, self._engine.deployments[self.control.deployment]
        if status in (SERVING, DRAINING, LOADING):
            return int(record["idle_cw"])
        if status == TENANT:
            return round(self.control.load_w * UNITS_PER_W)
        return 0 if status == FAILED else int(record["off_cw"])
