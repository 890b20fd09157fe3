"""What all networks share: levels of the past, mixed, and a core whose state moves and widens them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..base import QUANTILES, TARGETS

FIRST_WIDTH = -1.0
"""What a width is to begin with, before softplus: about a third of the deviation of training."""

EVERY = slice(None)


class Network(nn.Module):
    """A core and its heads.

    Args:
        core: Takes (B, L, F) to (B, L, H), each step from itself and those before.
        hidden: H.
        features: F.
        levels: Levels of the past per second.
        stride: Seconds from one step of the core to the next.
    """

    def __init__(self, core: nn.Module, hidden: int, features: int, levels: int, stride: int) -> None:
        super().__init__()
        self.core = core
        self.mix = nn.Parameter(torch.zeros(len(TARGETS), levels))
        self.stride = stride
        self.head = nn.Linear(hidden, len(TARGETS) * len(QUANTILES))
        self.through = nn.Linear(features, len(TARGETS) * len(QUANTILES), bias=False)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.through.weight)
        with torch.no_grad():
            self.head.bias.copy_(torch.tensor([0.0, FIRST_WIDTH, FIRST_WIDTH]).repeat(len(TARGETS)))

    def forward(self, inputs: Tensor, levels: Tensor, judged: slice = EVERY) -> Tensor:
        """Quantiles (B, L, 4, 3) from inputs (B, L, F) and levels of the past (B, L, P), of the seconds asked for."""
        said = self.core(inputs[:, self.stride - 1 :: self.stride])
        steps = torch.cat([torch.zeros_like(said[:, :1]), said], dim=1)
        held = self.head(steps).repeat_interleave(self.stride, dim=1)[:, 1 : inputs.shape[1] + 1]
        levels = levels[:, judged]
        out = (held[:, judged] + self.through(inputs[:, judged])).unflatten(-1, (len(TARGETS), len(QUANTILES)))
        middle = levels @ torch.softmax(self.mix, dim=-1).T + out[..., 0]
        low, high = middle - functional.softplus(out[..., 1]), middle + functional.softplus(out[..., 2])
        return torch.stack([low, middle, high], dim=-1)
