"""A gated recurrent unit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..frames import Floats
from .learned import Learned, State, sigmoid

if TYPE_CHECKING:
    from torch import nn


class Gru(Learned):
    """One layer of gated recurrent units."""

    name = "gru"

    def core(self, features: int, hidden: int) -> nn.Module:
        """See :class:`Learned`."""
        from ..networks.gru import GruCore

        return GruCore(features, hidden)

    def begin_core(self, channels: int) -> State:
        """Hidden states of zero."""
        return {"hidden": np.zeros((channels, self.weights["core.cell.weight_hh_l0"].shape[1]))}

    def step_core(self, inputs: Floats) -> None:
        """One step of PyTorch's GRU."""
        w, hidden = self.weights, self._state["hidden"]
        new = inputs @ w["core.cell.weight_ih_l0"].T + w["core.cell.bias_ih_l0"]
        old = hidden @ w["core.cell.weight_hh_l0"].T + w["core.cell.bias_hh_l0"]
        size = hidden.shape[1]
        gates = sigmoid(new[:, : 2 * size] + old[:, : 2 * size])
        reset, update = gates[:, :size], gates[:, size:]
        candidate = np.tanh(new[:, 2 * size :] + reset * old[:, 2 * size :])
        self._state["hidden"] = candidate + update * (hidden - candidate)

    def read_core(self) -> Floats:
        """The hidden state."""
        return self._state["hidden"]
