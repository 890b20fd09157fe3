"""What all networks share: levels of the past, mixed, and a core whose state moves and widens them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..base import QUANTILES, TARGETS

FIRST_WIDTH = -1.0
"""What a width is to begin with, before softplus: about a third of the deviation of training."""


class Network(nn.Module):
    """A core and its heads.

    Args:
        core: Takes (B, L, F) to (B, L, H), each step from itself and those before.
        hidden: H.
        levels: Levels of the past per step.
    """

    def __init__(self, core: nn.Module, hidden: int, levels: int) -> None:
        super().__init__()
        self.core = core
        self.mix = nn.Parameter(torch.zeros(len(TARGETS), levels))
        self.head = nn.Linear(hidden, len(TARGETS) * len(QUANTILES))
        nn.init.zeros_(self.head.weight)
        with torch.no_grad():
            self.head.bias.copy_(torch.tensor([0.0, FIRST_WIDTH, FIRST_WIDTH]).repeat(len(TARGETS)))

    def forward(self, inputs: Tensor, levels: Tensor) -> Tensor:
        """Quantiles (B, L, 4, 3) from inputs (B, L, F) and levels of the past (B, L, P)."""
        out = self.head(self.core(inputs)).unflatten(-1, (len(TARGETS), len(QUANTILES)))
        middle = levels @ torch.softmax(self.mix, dim=-1).T + out[..., 0]
        low, high = middle - functional.softplus(out[..., 1]), middle + functional.softplus(out[..., 2])
        return torch.stack([low, middle, high], dim=-1)
