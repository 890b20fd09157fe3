"""What a controller may know: meters and counters, the same from a simulated and from a real cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .actions import ClusterAction

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

LEAD_TIMES_S = (0, 30, 60)
"""How far ahead the power budget and the other announcements are seen."""

NOBODY_ASKS, TENANT_ASKS = -1, -2
"""In place of a model: no instance waits for a slot, or it is a tenant that does."""


@dataclass(frozen=True, eq=False)
class Fleet:
    """The controllable slots, R of them, and what may run on them. It does not change during a run.

    Attributes:
        slots: Names.
        gpus: Name of each slot's GPU, R of them.
        models: Names of the M models.
        fits: bool (R, M): whether the slot can hold the model.
        cap_min_w: Lowest power limit, watts (R,).
        cap_max_w: Highest power limit, watts (R,).
        max_num_seqs: Running requests at most, of one slot.
        variants: For each slot what it may serve with, R tuples of names such as ``Llama-3.1-8B tp1``. The first entry
            stands for leaving things as they are, so that an index is an action: ``variants[r].index(name)``.
        quality: Score of each of these, `nan` for the first and where none is known, R tuples.
    """

    slots: tuple[str, ...]
    gpus: tuple[str, ...]
    models: tuple[str, ...]
    fits: NDArray[np.bool_]
    cap_min_w: F64
    cap_max_w: F64
    max_num_seqs: int
    variants: tuple[tuple[str, ...], ...] = ()
    quality: tuple[tuple[float, ...], ...] = ()

    def __len__(self) -> int:
        """Number of slots."""
        return len(self.slots)


@dataclass(frozen=True, eq=False)
class Telemetry:
    """Readings at the end of a tick of n seconds, for R slots.

    Attributes:
        power_w: Metered power of each second of the tick, watts (n, R).
        temperature_c: Die temperature, °C (R,).
        clock_ratio: Core clock relative to the highest (R,).
        cap_w: Power limit in force, watts (R,).
        status: Instance state (R,): 0 empty, 1 loading, 2 serving, 3 draining, 4 sleeping, 5 failed, 6 tenant.
        ready_in_s: Time until a loading instance serves, seconds (R,); 0 otherwise.
        model: Model that the slot holds or held last (R,).
        running: Requests in the batch (R,).
        waiting: Requests in the queue (R,).
        kv_used: Share of the KV cache in use (R,).
        prompt_tokens_per_s: Prompt tokens computed, mean of the tick (R,).
        output_tokens_per_s: Tokens generated, mean of the tick (R,).
        route_weight: Routing weight in force (R,).
        arrivals_per_s: Requests that came to the gateway, mean of the tick.
        arriving_tokens_per_s: Their prompt tokens.
        held_at_gateway: Requests that no slot serves at present.
        slo_attainment: Share of the requests that left in this tick and met their SLO; 1 if none left.
        budget_w: Power budget now and as announced for 30 s and 60 s ahead, watts (3,).
        pending_instances: Instances and tenants waiting for a slot.
        pending_model: Model of the first of them, NOBODY_ASKS or TENANT_ASKS.
        inlet_c: Inlet temperature, °C (R,).
        row_headroom_w: What the row of each slot may draw more than now: now and, as far as it is known, 30 s and 60 s
            ahead, watts (3, R); where rows have limits.
        outside_c: Outside temperature now and as forecast, °C (3,); where it matters.
        price_per_kwh: Price of electricity now and ahead (3,); where there is one.
        carbon_g_per_kwh: Carbon intensity now and ahead, grams (3,); where it counts.
        in_flight_limit: Requests that each slot has in flight at most (R,); `max_num_seqs` without a limit.
        variant: What each slot holds or held last, an index into ``Fleet.variants`` (R,).
        rack_breaker: How near the breaker of each slot's rack is to a trip (R,): 0 cold, 1 tripped. No meter tells it:
            it follows from the rack's power and the breaker's curve, as in the simulator.
        row_breaker: The same of its row's (R,).
        braked: Whether each slot is under a power brake, bool (R,); NVML tells it.
    """

    power_w: F64
    temperature_c: F64
    clock_ratio: F64
    cap_w: F64
    status: I64
    ready_in_s: F64
    model: I64
    running: F64
    waiting: F64
    kv_used: F64
    prompt_tokens_per_s: F64
    output_tokens_per_s: F64
    route_weight: F64
    arrivals_per_s: float
    arriving_tokens_per_s: float
    held_at_gateway: int
    slo_attainment: float
    budget_w: F64
    pending_instances: int
    pending_model: int
    inlet_c: F64 | None = None
    row_headroom_w: F64 | None = None
    outside_c: F64 | None = None
    price_per_kwh: F64 | None = None
    carbon_g_per_kwh: F64 | None = None
    in_flight_limit: F64 | None = None
    variant: I64 | None = None
    rack_breaker: F64 | None = None
    row_breaker: F64 | None = None
    braked: NDArray[np.bool_] | None = None


class Plant(Protocol):
    """A cluster under control, simulated or real."""

    @property
    def fleet(self) -> Fleet:
        """What can be controlled."""

    def apply(self, action: ClusterAction) -> None:
        """Carries an action out."""

    def read(self) -> Telemetry:
        """Readings of the tick that has just ended."""
