"""Markov-modulated Poisson arrivals: the rate jumps between states."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from .arrivals import ARRIVALS, OpenLoop, Seconds


@ARRIVALS.register("markov")
class Markov(OpenLoop):
    """Poisson arrivals whose rate stays in a state for an exponential time, then moves to any other state alike.

    Attributes:
        rates_per_s: Rate in each state, requests per second.
        mean_dwell_s: Mean stay in each state, seconds.
    """

    kind: Literal["markov"] = "markov"
    rates_per_s: tuple[float, ...] = Field(min_length=1)
    mean_dwell_s: tuple[float, ...]

    @model_validator(mode="after")
    def _check(self) -> Markov:
        if len(self.mean_dwell_s) != len(self.rates_per_s):
            raise ValueError(f"mean_dwell_s has {len(self.mean_dwell_s)} values for {len(self.rates_per_s)} states")
        if min(self.rates_per_s) < 0 or max(self.rates_per_s) == 0:
            raise ValueError("rates_per_s must not be negative, and one of them must be above 0")
        if min(self.mean_dwell_s) <= 0:
            raise ValueError("mean_dwell_s must be above 0")
        return self

    def times_s(self, duration_s: float, rng: np.random.Generator) -> Seconds:
        """Draws the path of states, then uniform places under its integral."""
        ends, states = self._path(duration_s, rng)
        starts = np.concatenate([[0.0], ends[:-1]])
        expected = np.concatenate([[0.0], np.cumsum((ends - starts) * np.asarray(self.rates_per_s)[states])])
        places = np.sort(rng.uniform(0, expected[-1], rng.poisson(expected[-1])))
        return np.asarray(np.interp(places, expected, np.concatenate([[0.0], ends])))

    def _path(self, duration_s: float, rng: np.random.Generator) -> tuple[Seconds, NDArray[np.int64]]:
        """End of each stay (the last is ``duration_s``) and its state, from the stationary distribution on."""
        dwell = np.asarray(self.mean_dwell_s)
        n_states = len(dwell)
        state = int(rng.choice(n_states, p=dwell / dwell.sum()))
        ends, states = [np.zeros(1)], []
        while ends[-1][-1] < duration_s:
            n = int(2 * (duration_s - ends[-1][-1]) / dwell.mean()) + 16
            steps = rng.integers(1, n_states, n) if n_states > 1 else np.zeros(n, np.int64)
            visited = (state + np.concatenate([[0], np.cumsum(steps)])) % n_states
            ends.append(ends[-1][-1] + np.cumsum(rng.exponential(dwell[visited[:-1]])))
            states.append(visited[:-1])
            state = int(visited[-1])
        all_ends = np.concatenate(ends[1:])
        last = int(np.searchsorted(all_ends, duration_s)) + 1
        return np.minimum(all_ends[:last], duration_s), np.concatenate(states)[:last]
