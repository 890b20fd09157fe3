"""A transformer over patches of the past."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..frames import Floats
from .learned import Learned, State

if TYPE_CHECKING:
    from torch import nn

PATCH = 8
PATCHES = 16
HEADS = 4
EPSILON = 1e-5
"""That of PyTorch's layer normalisation."""


class Transformer(Learned):
    """Patches of eight steps, sixteen of them, that attend to one another (PatchTST-like)."""

    name = "transformer"

    def core(self, features: int, hidden: int) -> nn.Module:
        """See :class:`Learned`."""
        from ..networks.transformer import TransformerCore

        return TransformerCore(features, hidden)

    def begin_core(self, channels: int) -> State:
        """An empty past; it is filled with the first inputs."""
        width = len(self.weights["core.embed.bias"])
        return {
            "inputs": np.zeros((channels, PATCH, self.features)),
            "embedded": np.zeros((channels, PATCH * (PATCHES - 1) + 1, width)),
            "stepped": np.zeros((channels, 1)),
        }

    def step_core(self, inputs: Floats) -> None:
        """Embeds the patch that ends now; those that ended before are kept."""
        w, state = self.weights, self._state
        first = state["stepped"][:, 0] == 0
        state["inputs"] = np.concatenate([state["inputs"][:, 1:], inputs[:, None]], axis=1)
        state["inputs"][first] = inputs[first][:, None]
        patch = state["inputs"].reshape(len(inputs), -1)
        embedded = patch @ w["core.embed.weight"].T + w["core.embed.bias"]
        state["embedded"] = np.concatenate([state["embedded"][:, 1:], embedded[:, None]], axis=1)
        state["embedded"][first] = embedded[first][:, None]
        state["stepped"] = np.minimum(state["stepped"] + 1, 1)

    def read_core(self) -> Floats:
        """What the newest patch has made of the others."""
        w = self.weights
        tokens = self._state["embedded"][:, ::PATCH] + w["core.place"]
        normed = self._normed(tokens, "layer.before")
        query, key, value = np.split(self._linear(normed, "layer.attend"), 3, axis=-1)
        query = query[:, -1:]  # only the newest is read
        parts = []
        for part in np.split(np.arange(tokens.shape[-1]), HEADS):
            score = query[..., part] @ key[..., part].transpose(0, 2, 1) / np.sqrt(len(part))
            share = np.exp(score - score.max(axis=-1, keepdims=True))
            parts.append(share / share.sum(axis=-1, keepdims=True) @ value[..., part])
        newest = tokens[:, -1] + self._linear(np.concatenate(parts, axis=-1)[:, 0], "layer.join")
        wide = np.maximum(self._linear(self._normed(newest, "layer.between"), "layer.widen"), 0.0)
        said = self._normed(newest + self._linear(wide, "layer.narrow"), "after")
        return np.where(self._state["stepped"] > 0, said, 0.0)

    def _linear(self, x: Floats, name: str) -> Floats:
        return np.asarray(x @ self.weights[f"core.{name}.weight"].T + self.weights[f"core.{name}.bias"])

    def _normed(self, x: Floats, name: str) -> Floats:
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + EPSILON)
        return np.asarray(scaled * self.weights[f"core.{name}.weight"] + self.weights[f"core.{name}.bias"])
