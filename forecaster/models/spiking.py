"""Spiking neurons."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..frames import Floats
from .learned import Learned, State, sigmoid

if TYPE_CHECKING:
    from torch import nn


class Spiking(Learned):
    """A recurrent layer of leaky integrate-and-fire neurons."""

    name = "spiking"

    def core(self, features: int, hidden: int) -> nn.Module:
        """See :class:`Learned`."""
        from ..networks.spiking import SpikingCore

        return SpikingCore(features, hidden)

    def begin_core(self, channels: int) -> State:
        """No potential, no spike, no trace."""
        size = len(self.weights["core.leak"])
        return {name: np.zeros((channels, size)) for name in ("potential", "spikes", "trace")}

    def step_core(self, inputs: Floats) -> None:
        """One step: leak, drive, reset by subtraction, fire."""
        w, state = self.weights, self._state
        drive = inputs @ w["core.drive.weight"].T + w["core.drive.bias"]
        drive += state["spikes"] @ w["core.recurrent.weight"].T
        state["potential"] = sigmoid(w["core.leak"]) * state["potential"] + drive - state["spikes"]
        state["spikes"] = (state["potential"] > 1.0).astype(np.float64)
        fade = sigmoid(w["core.fading"])
        state["trace"] = fade * state["trace"] + (1 - fade) * state["spikes"]

    def read_core(self) -> Floats:
        """Fading traces of the spikes."""
        return self._state["trace"]
