"""A gated recurrent unit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...errors import InputError
from ..base import QUANTILES, TARGETS, Covariates
from ..frames import Floats, Frame
from .base import SUMMED
from .learned import HALF_LIVES_S, LEVELS, MOST, Learned, State, sigmoid

if TYPE_CHECKING:
    from torch import nn

    from ..fused import Packed

STATE = ("means", "levels", "seen", "hidden", "seconds")
"""What the step changes, as :class:`~llmcluster.forecaster.fused.State` has it."""


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

    def reset(self, series: int, scale_w: Floats | None = None) -> None:
        """See :class:`Model`; compiles the step at its first use on a machine."""
        super().reset(series, scale_w)
        from .. import fused

        self._packed = self._pack(fused.Packed, 0.0, self.weights["widen"])

    def update(self, power_w: Floats, covariates: Covariates | None = None) -> Floats:
        """See :class:`Model`; all samples in one compiled call."""
        from .. import fused  # modules are not kept, so that a model can be copied and pickled

        samples = np.atleast_2d(np.asarray(power_w, np.float64))
        inputs = self._given(covariates, samples.shape)
        state = fused.State(self._begun, self._power, self._inputs, *(self._state[name] for name in STATE))
        out: Floats = np.empty((1, samples.shape[1], len(TARGETS), len(QUANTILES)))
        fused.steps(samples, inputs, self._scale_w, state, self._packed, self.stride_s, out)
        return np.asarray(out[0])

    def _predict(self, frame: Frame) -> Floats:
        """The same as :class:`Learned` does with numpy, in one compiled call."""
        from .. import fused

        channels = frame.power.shape[1]
        own = self._begin(channels)
        held = np.full((channels, len(self.covariates)), np.nan)
        state = fused.State(np.zeros(channels, bool), np.zeros(channels), held, *(own[name] for name in STATE))
        out = np.empty((*frame.power.shape, len(TARGETS), len(QUANTILES)))
        samples = np.where(frame.begun, frame.power, np.nan)
        packed = self._pack(fused.Packed, -np.inf, np.zeros_like(self.weights["widen"]))
        beside = np.ascontiguousarray(frame.covariates)
        fused.steps(samples, beside, np.ones(channels), state, packed, self.stride_s, out)
        return out

    def _pack(self, packed: type[Packed], lowest: float, widen: Floats) -> Packed:
        w = self.weights
        share = np.exp(w["mix"] - w["mix"].max(axis=-1, keepdims=True))
        rows = (
            np.array([w["power_mean"][0], w["power_deviation"][0], MOST, lowest]),
            w["input_mean"],
            w["input_deviation"],
            1 - 0.5 ** (1.0 / HALF_LIVES_S),
            w["core.cell.weight_ih_l0"].T,
            w["core.cell.bias_ih_l0"],
            w["core.cell.weight_hh_l0"].T,
            w["core.cell.bias_hh_l0"],
            w["head.weight"].T,
            w["through.weight"].T,
            w["head.bias"],
            w["bend.weight"].T,
            share / share.sum(axis=-1, keepdims=True),
            widen,
        )
        inputs, size = self.features, w["core.cell.weight_hh_l0"].shape[-1]
        beside, gates, heads = len(self.covariates), 3 * size, len(TARGETS) * len(QUANTILES)
        told = len(widen) > 1 and SUMMED in self.covariates
        due = [(4,), (beside,), (beside,), (LEVELS - 1,), (inputs, gates), (gates,), (size, gates), (gates,)]
        both = heads + size
        due += [(size, both), (inputs, both), (both,), (size, heads), (len(TARGETS), LEVELS), (1 + told, len(TARGETS))]
        if [row.shape for row in rows] != due:  # what is compiled does not look where it reads
            raise InputError(self.name, "the weights do not fit together", "Fit the model anew")
        which = self.covariates.index(SUMMED) if told else 0
        return packed._make([*(np.ascontiguousarray(row) for row in rows), np.array([which])])
