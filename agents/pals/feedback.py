"""Feedback: what is measured corrects what the tables say (section 3.3 of the paper)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]

EPSILON = 0.05
"""Relative error that is let pass: the paper's threshold of 5 %."""
SUSTAINED = 2
"""Ticks that an error must last; the paper says "sustained intervals" without their number."""
PROPORTIONAL, INTEGRAL, DERIVATIVE = 0.3, 0.1, 0.05
"""Gains of the PID controller, per relative error (and per tick). The paper does not give its own."""
KEPT = 0.9
"""Share of the integral that a tick leaves. Nothing exceeds traffic for long, so no error would lower it."""
CORRECTION = 0.3
"""How far the target is shifted at most, so that a target out of reach does not wind the integral up."""
MET = 0.95
"""Share of requests within their SLO below which the slots must be readier than the traffic asks for."""
JUDGED_S, RISES_S, FADES_S = 30.0, 30.0, 240.0
"""Times over which that share is averaged, in which the reserve grows e-fold while it is low, and falls after."""
MOST_RESERVE = 4.0
BIAS_WEIGHT = 0.2
BIAS = (0.8, 1.25)
"""How far power may lie from the tables."""


class Feedback:
    """Errors of one cluster over time, by model.

    Args:
        models: Number of models.
        tick_s: Time between measurements, seconds.
    """

    def __init__(self, models: int, tick_s: float) -> None:
        self._rise, self._fade = math.exp(tick_s / RISES_S), math.exp(-tick_s / FADES_S)
        self._renewed, self._met = 1 - math.exp(-tick_s / JUDGED_S), 1.0
        self._integral, self._last = np.zeros(models), np.zeros(models)
        self._strikes = 0
        self.correction = np.ones(models)
        self.power_ratio = 1.0
        self.reserve = 1.0

    def measure(self, target: F64, measured: F64) -> bool:
        """Takes the throughput of a tick, and sets :attr:`correction`, by which targets are to be multiplied.

        Args:
            target: Tokens per second wanted (M,).
            measured: Tokens per second generated (M,).

        Returns:
            Whether the error has lasted: ``|e| > ε for sustained intervals`` of algorithm 1.
        """
        error = np.where(target > 0, 1 - measured / np.maximum(target, 1e-9), 0.0).clip(-1, 1)
        self._strikes = self._strikes + 1 if (np.abs(error) > EPSILON).any() else 0
        error = np.sign(error) * (np.abs(error) - EPSILON).clip(0.0)
        self._integral = (KEPT * self._integral + INTEGRAL * error).clip(0.0, CORRECTION)
        shift = PROPORTIONAL * error + self._integral + DERIVATIVE * (error - self._last)
        self._last = error
        # Never below the target: a configuration that gives more is often the best one that there is.
        self.correction = 1 + shift.clip(0.0, CORRECTION)
        return self._strikes >= SUSTAINED

    def attain(self, share: float) -> None:
        """Takes the share of the requests of a tick that met their SLO, and moves :attr:`reserve`.

        The paper looks at throughput alone. Requests that come in bursts, or whose prompts hold up the tokens of
        others, are late long before throughput tells.
        """
        self._met += self._renewed * (share - self._met)
        if self._met < MET:
            self.reserve = min(self.reserve * self._rise, MOST_RESERVE)
        else:
            self.reserve = 1 + (self.reserve - 1) * self._fade

    def weigh(self, measured_w: float, predicted_w: float) -> None:
        """Takes the power of slots whose configuration and load the tables know, and moves :attr:`power_ratio`."""
        if predicted_w > 0:
            self.power_ratio += BIAS_WEIGHT * (float(np.clip(measured_w / predicted_w, *BIAS)) - self.power_ratio)
