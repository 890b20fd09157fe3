"""Arrival processes without memory of the system: what they share, Poisson and Gamma."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, SerializeAsAny

from ..units import PS_PER_S
from .kinds import Kinds, Part
from .lengths import Lengths
from .modulation import Modulation
from .table import RequestTable

Seconds = NDArray[np.float64]


class Arrivals(Part):
    """How requests come to be sent."""

    kind: str

    @abstractmethod
    def requests(
        self, duration_s: float, lengths: Lengths, modulation: Modulation | None, rng: np.random.Generator
    ) -> RequestTable:
        """Draws the requests of ``duration_s`` seconds.

        Args:
            duration_s: Length of the run, seconds.
            lengths: Draws prompt and output lengths.
            modulation: Multiplies the rate, or None.
            rng: Source of randomness.

        Returns:
            Requests that arrive in ``[0, duration_s)``.
        """


ARRIVALS: Kinds[Arrivals] = Kinds("arrivals")
AnyArrivals = Annotated[SerializeAsAny[Arrivals], BeforeValidator(ARRIVALS.parse)]


class OpenLoop(Arrivals):
    """Requests that arrive whether or not earlier ones have been answered."""

    @abstractmethod
    def times_s(self, duration_s: float, rng: np.random.Generator) -> Seconds:
        """Draws ascending arrival times in ``[0, duration_s)``, seconds, of the process in its steady state."""

    def requests(
        self, duration_s: float, lengths: Lengths, modulation: Modulation | None, rng: np.random.Generator
    ) -> RequestTable:
        """Draws arrival times, bends time by the modulation, and draws the lengths from a stream of their own."""
        for_times, for_lengths, for_clock = rng.spawn(3)
        if modulation is None:
            times = self.times_s(duration_s, for_times)
        else:
            clock = modulation.clock(duration_s, for_clock)
            times = clock.real(self.times_s(clock.operational_s, for_times))
        prompt, output = lengths.sample(len(times), for_lengths)
        return RequestTable.from_columns(np.rint(times * PS_PER_S).astype(np.int64), prompt, output)


@ARRIVALS.register("poisson")
class Poisson(OpenLoop):
    """Independent arrivals at a constant rate, requests per second."""

    kind: Literal["poisson"] = "poisson"
    rate_per_s: float = Field(gt=0)

    def times_s(self, duration_s: float, rng: np.random.Generator) -> Seconds:
        """Draws the number of arrivals, then their places."""
        return np.sort(rng.uniform(0, duration_s, rng.poisson(self.rate_per_s * duration_s)))


@ARRIVALS.register("gamma")
class Gamma(OpenLoop):
    """Renewal process with Gamma inter-arrival times.

    Attributes:
        rate_per_s: Mean rate, requests per second.
        cv: Coefficient of variation of the inter-arrival time: 1 is Poisson, more is burstier, less more regular.
    """

    kind: Literal["gamma"] = "gamma"
    rate_per_s: float = Field(gt=0)
    cv: float = Field(gt=0, le=20)

    def times_s(self, duration_s: float, rng: np.random.Generator) -> Seconds:
        """Draws gaps until the run is full; it starts at a random instant, so within a length-biased gap."""
        shape = self.cv**-2
        scale = 1 / (self.rate_per_s * shape)
        parts = [rng.uniform(size=1) * rng.gamma(shape + 1, scale)]
        while (now := parts[-1][-1]) < duration_s:
            expected = (duration_s - now) * self.rate_per_s
            gaps = rng.gamma(shape, scale, int(expected + 4 * self.cv * np.sqrt(expected)) + 16)
            parts.append(now + np.cumsum(gaps))
        times = np.concatenate(parts)
        return times[: np.searchsorted(times, duration_s)]
