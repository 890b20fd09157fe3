"""A structured state space, as a recurrence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..frames import Floats
from .learned import Learned, State, sigmoid

if TYPE_CHECKING:
    from torch import nn


class S4d(Learned):
    """A diagonal structured state space (S4D)."""

    name = "s4d"

    def core(self, features: int, hidden: int) -> nn.Module:
        """See :class:`Learned`."""
        from ..networks.s4d import S4dCore

        return S4dCore(features, hidden)

    def begin_core(self, channels: int) -> State:
        """States of zero, real and imaginary part."""
        shape = self.weights["core.frequency"].shape
        return {"state": np.zeros((channels, *shape, 2)), "said": np.zeros((channels, shape[0]))}

    def step_core(self, inputs: Floats) -> None:
        """One step of the state space whose input is held for a second, and what is read from it."""
        w = self.weights
        signal = inputs @ w["core.encode.weight"].T + w["core.encode.bias"]
        pole = -np.exp(w["core.log_decay"]) + 1j * w["core.frequency"]
        stepped = np.exp(pole * np.exp(w["core.log_step"])[:, None])
        before = self._state["state"].view(np.complex128)[..., 0]
        state = stepped * before + ((stepped - 1) / pole) * signal[..., None]
        output = w["core.output"].view(np.complex128)[..., 0]
        read = 2 * (output * state).sum(axis=-1).real + w["core.through"] * signal
        mixed = (read * sigmoid(read)) @ w["core.gate.weight"].T + w["core.gate.bias"]
        half = mixed.shape[-1] // 2
        self._state["state"] = np.stack([state.real, state.imag], axis=-1)
        self._state["said"] = signal + mixed[:, :half] * sigmoid(mixed[:, half:])

    def read_core(self) -> Floats:
        """The output after the last sample."""
        return self._state["said"]
