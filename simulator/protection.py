"""What happens when a power limit is passed: servers brake, breakers trip, and the site sheds load.

GPUs need nothing of it: their drivers hold the power limit, and heat throttles them (see the compiled engine).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from .breakers import Breaker
from .limits import Feeds, PowerLimit
from .snapshot import State
from .topology import ClusterSpec, Slot
from .units import to_ps

F64 = NDArray[np.float64]

BRAKE_CLOCK = 0.5
"""Clock of GPUs under a power brake: NVML's "HW power brake slowdown" halves the core clock, or more than that."""
BRAKE_S = 10
"""How long a brake holds after the last second above the limit, seconds; assumed."""


class ShedSpec(BaseModel):
    """Shedding of load: what the site does when it is above its budget for long."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    after_s: int = Field(default=30, ge=0, description="How long the budget may be passed at a stretch, seconds.")
    restore_s: float = Field(default=300.0, gt=0, description="Time until what was shed has power again, seconds.")


class Trip(NamedTuple):
    """A breaker has opened: of which rack of the facility, or which row."""

    second: int
    level: str
    number: int


class Shed(NamedTuple):
    """A server of the facility has been switched off."""

    second: int
    server: int


class Braked(NamedTuple):
    """A second in which so many slots were under a brake."""

    second: int
    slots: int


class Tally(NamedTuple):
    """What happened in a stretch of time.

    Attributes:
        trips: Breakers that opened.
        sheds: Servers that were switched off.
        braked_s: Seconds of slots under a brake.
    """

    trips: int
    sheds: int
    braked_s: int


class Strike(NamedTuple):
    """Slots that lose power now, and for how long."""

    slots: tuple[int, ...]
    repair_ps: int


@dataclass(frozen=True, eq=False)
class _Zone:
    """Slots behind one limit; ``limit_w`` is None where it is a row's, which may change."""

    level: str
    number: int
    slots: NDArray[np.int64]
    limit_w: float | None = None


class Protection:
    """Looks at the power of every second and says who brakes, trips or is shed.

    * A **server** above its power limit pulls the brake of its GPUs: half the clock, and ten seconds more of it.
    * So does a **row** above its limit, if the specification says so.
    * The breaker of a **rack** or a **row** trips on inverse time; all behind it is without power until it is reset.
    * A **site** above its budget for long sheds whole servers, those of the lowest priority first and among equals the
      last ones, as many as the last second was above.

    Args:
        spec: The cluster.
        slots: Its slots.
        tdp_w: Highest power of each, watts (R,).
        feeds: Limits over time; by default the specification's, which then never change.
        shed: Whether the site sheds load, and when.

    Attributes:
        feeds: Limits over time.
        trips: The log of breakers.
        sheds: The log of servers.
        braked: The log of brakes.
    """

    def __init__(
        self,
        spec: ClusterSpec,
        slots: Sequence[Slot],
        tdp_w: F64,
        feeds: Feeds | None = None,
        shed: ShedSpec | None = None,
    ) -> None:
        row, rack, server = (np.array([getattr(s, level) for s in slots]) for level in ("row", "rack", "server"))
        self.feeds = feeds or Feeds.of(spec, np.arange(len(spec.rows))[:, None] == row, tdp_w)
        self._shed, self._server = shed, server
        self._breakers: list[tuple[_Zone, Breaker]] = []
        self._brakes: list[_Zone] = []
        racks = [one for of_row in spec.rows for one in of_row.racks]
        for number, behind in enumerate(racks):
            if behind.breaker is not None:
                own = np.flatnonzero(rack == number)
                rating_w = behind.breaker.rating_share * float(tdp_w[own].sum())
                self._breakers.append((_Zone("rack", number, own, rating_w), Breaker(behind.breaker)))
        for number, of in enumerate(spec.rows):
            own = np.flatnonzero(row == number)
            if of.breaker is not None:
                self._breakers.append((_Zone("row", number, own), Breaker(of.breaker)))
            if of.power_limit_share is not None and of.brake:
                self._brakes.append(_Zone("row", number, own))
        for number in range(int(server.max()) + 1):
            own = np.flatnonzero(server == number)
            share = slots[own[0]].spec.power_limit_share
            if share is not None:
                self._brakes.append(_Zone("server", number, own, share * float(tdp_w[own].sum())))
        priority = [slots[int(np.flatnonzero(server == n)[0])].spec.shed_priority for n in range(int(server.max()) + 1)]
        self._order = sorted(range(len(priority)), key=lambda n: (priority[n], -n))
        self._release_s = np.zeros(len(slots), np.int64)
        self._over_s = 0
        self.trips: list[Trip] = []
        self.sheds: list[Shed] = []
        self.braked: list[Braked] = []

    @property
    def is_needed(self) -> bool:
        """Whether there is anything to look at."""
        return bool(self._breakers or self._brakes or (self._shed and self.feeds.site))

    def heat(self, level: str) -> F64:
        """How near each slot's breaker of this level, ``rack`` or ``row``, is to a trip, 0 to 1 (R,); 0 without one."""
        heat = np.zeros(len(self._server))
        for zone, breaker in self._breakers:
            if zone.level == level:
                heat[zone.slots] = breaker.heat
        return heat

    def look(self, second: int, power_w: F64) -> list[Strike]:
        """Judges a second that has passed.

        Args:
            second: The second, from its beginning.
            power_w: Mean power of each slot in it, watts (R,).

        Returns:
            Who loses power now.
        """
        strikes = []
        for zone, breaker in self._breakers:
            if breaker.carry(float(power_w[zone.slots].sum()) / _limit_w(zone, self.feeds.breakers, second)):
                self.trips.append(Trip(second, zone.level, zone.number))
                strikes.append(Strike(tuple(zone.slots.tolist()), to_ps(breaker.spec.reset_s)))
        for zone in self._brakes:
            if power_w[zone.slots].sum() > _limit_w(zone, self.feeds.rows, second):
                self._release_s[zone.slots] = second + 1 + BRAKE_S
        if slots := int(np.count_nonzero(self.is_braked(second + 1))):
            self.braked.append(Braked(second + 1, slots))
        return strikes + self._shed_load(second, power_w)

    def is_braked(self, second: int) -> NDArray[np.bool_]:
        """Whether each slot is under a brake in a second, (R,)."""
        return np.asarray(self._release_s > second)

    def _shed_load(self, second: int, power_w: F64) -> list[Strike]:
        """Whole servers that the site switches off now."""
        if self._shed is None or self.feeds.site is None:
            return []
        over_w = float(power_w.sum() - self.feeds.site.at(second))
        self._over_s = self._over_s + 1 if over_w > 0 else 0
        if self._over_s <= self._shed.after_s:
            return []
        self._over_s = 0
        strikes = []
        for server in self._order:
            own = np.flatnonzero(self._server == server)
            drawn_w = float(power_w[own].sum())
            if over_w > 0 and drawn_w > 0:
                over_w -= drawn_w
                self.sheds.append(Shed(second, server))
                strikes.append(Strike(tuple(own.tolist()), to_ps(self._shed.restore_s)))
        return strikes

    def tally(self, first_s: int, until_s: int | None = None) -> Tally:
        """What happened from one second on, before another."""

        def during(second: int) -> bool:
            return first_s <= second and (until_s is None or second < until_s)

        return Tally(
            trips=sum(during(trip.second) for trip in self.trips),
            sheds=sum(during(shed.second) for shed in self.sheds),
            braked_s=sum(braked.slots for braked in self.braked if during(braked.second)),
        )

    def save_state(self) -> State:
        """Heat, brakes, how long the site has been above its budget, and the logs; the limits are their owner's."""
        return {
            "heat": [breaker.heat for _, breaker in self._breakers],
            "release_s": self._release_s.copy(),
            "over_s": self._over_s,
            "trips": tuple(self.trips),
            "sheds": tuple(self.sheds),
            "braked": tuple(self.braked),
        }

    def restore_state(self, state: State) -> None:
        """Takes up a state of :meth:`save_state`."""
        for (_, breaker), heat in zip(self._breakers, state["heat"], strict=True):
            breaker.heat = heat
        self._release_s[...], self._over_s = state["release_s"], state["over_s"]
        self.trips = [Trip(*trip) for trip in state["trips"]]
        self.sheds = [Shed(*shed) for shed in state["sheds"]]
        self.braked = [Braked(*braked) for braked in state["braked"]]


def _limit_w(zone: _Zone, of_rows: Sequence[PowerLimit | None], second: int) -> float:
    """What a zone may draw in a second, watts."""
    if zone.limit_w is not None:
        return zone.limit_w
    limit = of_rows[zone.number]
    assert limit is not None, f"row {zone.number} has no limit"
    return float(limit.at(second))
