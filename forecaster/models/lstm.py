"""Long short-term memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..frames import Floats
from .learned import Learned, State, sigmoid

if TYPE_CHECKING:
    from torch import nn


class Lstm(Learned):
    """One layer of long short-term memory."""

    name = "lstm"

    def core(self, features: int, hidden: int) -> nn.Module:
        """See :class:`Learned`."""
        from ..networks.lstm import LstmCore

        return LstmCore(features, hidden)

    def begin_core(self, channels: int) -> State:
        """Hidden and cell states of zero."""
        size = self.weights["core.cell.weight_hh_l0"].shape[1]
        return {"hidden": np.zeros((channels, size)), "cell": np.zeros((channels, size))}

    def step_core(self, inputs: Floats) -> None:
        """One step of PyTorch's LSTM."""
        w, state = self.weights, self._state
        gates = inputs @ w["core.cell.weight_ih_l0"].T + w["core.cell.bias_ih_l0"]
        gates += state["hidden"] @ w["core.cell.weight_hh_l0"].T + w["core.cell.bias_hh_l0"]
        enter, forget, candidate, leave = np.split(gates, 4, axis=1)
        state["cell"] = sigmoid(forget) * state["cell"] + sigmoid(enter) * np.tanh(candidate)
        state["hidden"] = sigmoid(leave) * np.tanh(state["cell"])

    def read_core(self) -> Floats:
        """The hidden state."""
        return self._state["hidden"]
