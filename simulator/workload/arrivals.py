"""Arrival processes without memory of the system: what they share, Poisson and Gamma."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
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


class Renewal(OpenLoop):
    """Arrivals with independent gaps, which can be drawn block after block without end."""

    @abstractmethod
    def first_s(self, rng: np.random.Generator) -> float:
        """Draws the time to the first arrival of a process that has run for ever, seconds."""

    @abstractmethod
    def gaps_s(self, n: int, rng: np.random.Generator) -> Seconds:
        """Draws ``n`` inter-arrival times, seconds."""

    def blocks_s(self, duration_s: float, n: int, rng: np.random.Generator) -> Iterator[Seconds]:
        """Draws the arrival times in ``[0, duration_s)``, ``n`` at a time; the last block, maybe empty, has fewer."""
        gaps = self.gaps_s(n, rng)
        gaps[0] = self.first_s(rng)
        now = 0.0
        while True:
            times = now + np.cumsum(gaps)
            if times[-1] >= duration_s:
                yield times[: np.searchsorted(times, duration_s)]
                return
            yield times
            now = float(times[-1])
            gaps = self.gaps_s(n, rng)


@ARRIVALS.register("poisson")
class Poisson(Renewal):
    """Independent arrivals at a constant rate, requests per second."""

    kind: Literal["poisson"] = "poisson"
    rate_per_s: float = Field(gt=0)

    def times_s(self, duration_s: float, rng: np.random.Generator) -> Seconds:
        """Draws the number of arrivals, then their places."""
        return np.sort(rng.uniform(0, duration_s, rng.poisson(self.rate_per_s * duration_s)))

    def first_s(self, rng: np.random.Generator) -> float:
        """Like any gap: the process has no memory."""
        return float(rng.exponential(1 / self.rate_per_s))

    def gaps_s(self, n: int, rng: np.random.Generator) -> Seconds:
        """Exponential gaps."""
        return rng.exponential(1 / self.rate_per_s, n)


@ARRIVALS.register("gamma")
class Gamma(Renewal):
    """Renewal process with Gamma inter-arrival times.

    Attributes:
        rate_per_s: Mean rate, requests per second.
        cv: Coefficient of variation of the inter-arrival time: 1 is Poisson, more is burstier, less more regular.
    """

    kind: Literal["gamma"] = "gamma"
    rate_per_s: float = Field(gt=0)
    cv: float = Field(gt=0, le=20)

    def times_s(self, duration_s: float, rng: np.random.Generator) -> Seconds:
        """Draws gaps until the run is full."""
        parts = [np.array([self.first_s(rng)])]
        while (now := parts[-1][-1]) < duration_s:
            expected = (duration_s - now) * self.rate_per_s
            parts.append(now + np.cumsum(self.gaps_s(int(expected + 4 * self.cv * np.sqrt(expected)) + 16, rng)))
        times = np.concatenate(parts)
        return times[: np.searchsorted(times, duration_s)]

    def first_s(self, rng: np.random.Generator) -> float:
        """The rest of a length-biased gap: the run starts at a random instant."""
        return float(rng.uniform() * rng.gamma(self.cv**-2 + 1, self._scale_s))

    def gaps_s(self, n: int, rng: np.random.Generator) -> Seconds:
        """Gamma gaps."""
        return rng.gamma(self.cv**-2, self._scale_s, n)

    @property
    def _scale_s(self) -> float:
        return 1 / (self.rate_per_s * self.cv**-2)
