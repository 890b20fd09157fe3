"""Circuit breakers with inverse-time trips: the more they are overloaded the sooner they open, and they remember."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from .signals import Points


class BreakerSpec(BaseModel):
    """A breaker: what it carries for ever, how long it carries more, and how long its load is without power then.

    The default trips after about 17 minutes of 10 % too much and after a minute of 40 %, as Facebook measured of the
    breakers of racks and power panels (Wu et al., "Dynamo", ISCA 2016, section II, figure of trip times). That is
    within what UL 489 asks for: 135 % no longer than an hour, 200 % no longer than two minutes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    rating_share: float = Field(gt=0, description="Power that it carries for ever, as a share of the TDPs behind it.")
    trip: Points = Field(
        default=((1.1, 1020.0), (1.4, 60.0)),
        min_length=2,
        description="Breakpoints `[[ratio, s], …]`: time until it trips under a steady load of so many ratings; a "
        "power law of the overload between and beyond them.",
    )
    cool_s: float = Field(
        default=300.0,
        gt=0,
        description="Time in which it cools from the brink of a trip without load, seconds; assumed.",
    )
    reset_s: float = Field(
        default=300.0, gt=0, description="Time from a trip until somebody has closed it again, seconds; assumed."
    )

    @model_validator(mode="after")
    def _is_inverse(self) -> BreakerSpec:
        ratios, times_s = zip(*self.trip, strict=True)
        if ratios[0] <= 1 or any(a >= b for a, b in pairwise(ratios)):
            raise ValueError(f"trip {[list(p) for p in self.trip]} must ascend from a ratio above 1 on")
        if min(times_s) <= 0 or any(a <= b for a, b in pairwise(times_s)):
            raise ValueError(f"trip {[list(p) for p in self.trip]} must have positive times that fall with the ratio")
        return self


class Breaker:
    """The thermal element of one breaker.

    Its heat is 0 when cold and 1 when it trips. Above the rating it grows by dt / t(load), so that any course of the
    load trips it once the shares of trip times add up to 1; below it falls as that of an inverse-time relay that
    resets, (1 − load²)·dt / cool_s (IEEE C37.112-2018, equations of the dynamic relay).

    Args:
        spec: The breaker.

    Attributes:
        heat: See above.
    """

    def __init__(self, spec: BreakerSpec) -> None:
        self.spec, self.heat = spec, 0.0
        ratios, times_s = np.array(spec.trip).T
        self._log_overload, self._log_s = np.log(ratios - 1), np.log(times_s)
        self._slope = np.diff(self._log_s) / np.diff(self._log_overload)

    def trip_s(self, ratio: float) -> float:
        """Time until it trips from cold under a steady load above its rating, seconds."""
        overload = np.log(ratio - 1)
        piece = int(np.clip(np.searchsorted(self._log_overload, overload) - 1, 0, len(self._slope) - 1))
        return float(np.exp(self._log_s[piece] + self._slope[piece] * (overload - self._log_overload[piece])))

    def carry(self, ratio: float, seconds: float = 1.0) -> bool:
        """Carries a load of ``ratio`` times its rating for a while; whether it has tripped by the end of it."""
        if ratio > 1:
            self.heat = min(self.heat + seconds / self.trip_s(ratio), 1.0)
            return self.heat >= 1.0
        self.heat = max(self.heat - seconds * (1 - ratio**2) / self.spec.cool_s, 0.0)
        return False
