"""Networks as they forecast: from their weights, without PyTorch, a sample at a time."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import InputError
from ..base import QUANTILES, TARGETS
from ..frames import FIT, Floats, Frame
from ..telemetry import Telemetry
from .base import Model, UnlikeTraining

if TYPE_CHECKING:
    from torch import nn

    from ..training import Progress

HALF_LIVES_S = np.array([4.0, 15.0, 60.0, 240.0])
LEVELS = 1 + len(HALF_LIVES_S)
MOST = 5.0
"""Inputs are cut at so many deviations of training."""
DEVICES = ("auto", "cpu", "cuda")
State = dict[str, Floats]


@dataclass(frozen=True)
class TrainSettings:
    """How a network is trained.

    Attributes:
        hidden: Width of the network.
        epochs: Passes over the training part at most.
        patience: Passes without a better validation after which it stops; more where a pass is few steps.
        batch: Windows to a step.
        window_s: Length of a window.
        stride_s: Seconds from one step of the core to the next; forecasts follow power every second all the same.
        learning_rate: That of AdamW at its highest.
        weight_decay: That of AdamW.
        blind: Share of windows in which it does not see some groups of covariates, or any, so that it learns to do
            without.
        device: Where PyTorch computes: ``cpu``, ``cuda``, or ``auto`` for a GPU if there is one.
    """

    hidden: int = 32
    epochs: int = 100
    patience: int = 12
    batch: int = 32
    window_s: int = 256
    stride_s: int = 1
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    blind: float = 0.0
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Checks the device's name."""
        if self.device not in DEVICES:
            raise InputError(f"--device {self.device}", "is unknown", f"Use one of {', '.join(DEVICES)}")


class Learned(Model):
    """A network with a core of its own between inputs and heads that all share.

    Inputs of a channel are its power, how far that is from its exponential means, and covariates, all standardised by
    training. The core takes a step every ``stride_s`` seconds. The heads mix those levels and add a function of what
    the core said in its last step and of the newest inputs, of one layer and a way around it, which begins as nothing:
    the network begins as a good naive model.
    """

    reads_covariates = True
    settings: TrainSettings = TrainSettings()
    progress: Progress | None = None
    checkpoint: Path | None = None

    def predict(self, telemetry: Telemetry) -> Floats:
        """See :class:`Model`; warns where most of the power is beyond what the network can see of it."""
        forecast = super().predict(telemetry)
        far = np.abs(self._standard_power(telemetry.power_w / telemetry.scale_w)) > MOST
        if far.sum() > telemetry.known.sum() / 2:
            text = f"power is far from all that {self.name} was fitted on; its scale should be as then (--scale)"
            warnings.warn(f"{telemetry.source}: {text}", UnlikeTraining, stacklevel=2)
        return forecast

    def _learn(self, frames: Sequence[Frame], rng: np.random.Generator) -> None:
        from ..training import train

        power = np.concatenate([frame.power[frame.rows(FIT)] for frame in frames])
        inputs = np.concatenate([frame.covariates[frame.rows(FIT)] for frame in frames])
        known = ~np.isnan(inputs)
        count = np.maximum(known.sum(axis=0), 1)
        usual = np.where(known, inputs, 0.0).sum(axis=0) / count
        spread = np.sqrt(np.where(known, (inputs - usual) ** 2, 0.0).sum(axis=0) / count)
        own = {
            "power_mean": np.array([power.mean()]),
            "power_deviation": np.array([max(float(power.std()), 1e-6)]),
            "input_mean": usual,
            "input_deviation": np.where(spread > 0, spread, 1.0),
            "stride_s": np.array([float(self.settings.stride_s)]),
        }
        self.weights = own
        views = [self.views(frame) for frame in frames]
        self.weights = own | train(self, frames, views, rng)

    def views(self, frame: Frame) -> tuple[Floats, Floats]:
        """Inputs (T, C, F) and levels (T, C, 5) of a series, standardised."""
        from .ewma import averages

        power = self._standard_power(frame.power)
        means = np.moveaxis(averages(power, HALF_LIVES_S), 1, -1)
        return self._inputs_of(power, means, frame.covariates), np.concatenate([power[..., None], means], axis=-1)

    @property
    def stride_s(self) -> int:
        """Seconds from one step of the core to the next."""
        return int(self.weights["stride_s"][0])

    @property
    def features(self) -> int:
        """Number of inputs of a channel."""
        return LEVELS + len(self.covariates)

    def _standard_power(self, power: Floats) -> Floats:
        return np.asarray((power - self.weights["power_mean"]) / self.weights["power_deviation"])

    def _inputs_of(self, power: Floats, means: Floats, covariates: Floats) -> Floats:
        """Inputs (..., F) from standardised power (...), its means (..., 4) and raw covariates (..., K)."""
        standard = (covariates - self.weights["input_mean"]) / self.weights["input_deviation"]
        parts = [power[..., None], power[..., None] - means, np.where(np.isnan(standard), 0.0, standard)]
        return np.concatenate(parts, axis=-1).clip(-MOST, MOST)

    def _quantiles(self, hidden: Floats, seen: Floats, levels: Floats) -> Floats:
        """What the heads make of hidden states (..., H), inputs (..., F), levels (..., 5): quantiles over the scale."""
        weights = self.weights
        out = hidden @ weights["head.weight"].T + seen @ weights["through.weight"].T + weights["head.bias"]
        straight, bent = np.split(out, [len(TARGETS) * len(QUANTILES)], axis=-1)
        out = straight + np.maximum(bent, 0.0) @ weights["bend.weight"].T
        out = out.reshape(*out.shape[:-1], len(TARGETS), len(QUANTILES))
        share = np.exp(weights["mix"] - weights["mix"].max(axis=-1, keepdims=True))
        middle = levels @ (share / share.sum(axis=-1, keepdims=True)).T + out[..., 0]
        low, high = middle - softplus(out[..., 1]), middle + softplus(out[..., 2])
        standard = np.stack([low, middle, high], axis=-1)
        return np.asarray(standard * weights["power_deviation"] + weights["power_mean"])

    def _predict(self, frame: Frame) -> Floats:
        twin = copy(self)  # so that samples taken so far are not forgotten
        twin._state = twin._begin(frame.power.shape[1])
        out = np.empty((*frame.power.shape, len(TARGETS), len(QUANTILES)))
        begun = np.zeros(frame.power.shape[1], bool)
        for i, power in enumerate(frame.power):
            first = frame.begun[i] & ~begun
            begun |= first
            if first.any():
                twin._start(first, power)
            twin._absorb(power, frame.covariates[i])
            out[i] = twin._forecast()
        return out

    def _begin(self, channels: int) -> State:
        return {
            "means": np.zeros((channels, len(HALF_LIVES_S))),
            "levels": np.zeros((channels, LEVELS)),
            "seen": np.zeros((channels, self.features)),
            "seconds": np.zeros(1),
            **self.begin_core(channels),
        }

    def _start(self, first: Any, power: Floats) -> None:
        self._state["means"][first] = self._standard_power(power[first])[:, None]
        for name, value in self.begin_core(int(first.sum())).items():
            self._state[name][first] = value

    def _absorb(self, power: Floats, inputs: Floats) -> None:
        standard = self._standard_power(power)
        means = self._state["means"]
        means += (1 - 0.5 ** (1.0 / HALF_LIVES_S)) * (standard[:, None] - means)
        self._state["levels"] = np.concatenate([standard[:, None], means], axis=-1)
        self._state["seen"] = self._inputs_of(standard, means, inputs)
        self._state["seconds"] = self._state["seconds"] + 1
        if self._state["seconds"][0] % self.stride_s == 0:
            self.step_core(self._state["seen"])

    def _forecast(self) -> Floats:
        return self._quantiles(self.read_core(), self._state["seen"], self._state["levels"])

    # What a network adds

    @abstractmethod
    def core(self, features: int, hidden: int) -> nn.Module:
        """The core as PyTorch trains it."""

    @abstractmethod
    def begin_core(self, channels: int) -> State:
        """The core's state before the first sample; the first axis of each array is the channel."""

    @abstractmethod
    def step_core(self, inputs: Floats) -> None:
        """Takes inputs (C, F) into the state."""

    @abstractmethod
    def read_core(self) -> Floats:
        """What the core says, (C, H); zeros before its first step."""


def softplus(x: Floats) -> Floats:
    """log(1 + exp(x)) without overflow."""
    return np.asarray(np.logaddexp(0.0, x))


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + exp(-x)) without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))
