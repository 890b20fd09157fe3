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
        hidden: H, also the width of the layer between the core and the heads.
        features: F.
        levels: Levels of the past per second.
        stride: Seconds from one step of the core to the next.
    """

    def __init__(self, core: nn.Module, hidden: int, features: int, levels: int, stride: int) -> None:
        super().__init__()
        self.core = core
        self.mix = nn.Parameter(torch.zeros(len(TARGETS), levels))
        self.stride = stride
        outputs = len(TARGETS) * len(QUANTILES)
        self.sizes = [outputs, hidden]
        self.head = nn.Linear(hidden, outputs + hidden)
        self.through = nn.Linear(features, outputs + hidden, bias=False)
        self.bend = nn.Linear(hidden, outputs, bias=False)
        with torch.no_grad():
            for weight in (self.head.weight, self.through.weight):
                weight[:outputs] = 0.0
            self.bend.weight.zero_()
            self.head.bias[:outputs] = torch.tensor([0.0, FIRST_WIDTH, FIRST_WIDTH]).repeat(len(TARGETS))

    def forward(self, inputs: Tensor, levels: Tensor, judged: slice = EVERY) -> Tensor:
        """Quantiles (B, L, 4, 3) from inputs (B, L, F) and levels of the past (B, L, P), of the seconds asked for."""
        said = self.core(inputs[:, self.stride - 1 :: self.stride])
        steps = torch.cat([torch.zeros_like(said[:, :1]), said], dim=1)
        held = self.head(steps).repeat_interleave(self.stride, dim=1)[:, 1 : inputs.shape[1] + 1]
        straight, bent = (held[:, judged] + self.through(inputs[:, judged])).split(self.sizes, dim=-1)
        out = (straight + self.bend(functional.relu(bent))).unflatten(-1, (len(TARGETS), len(QUANTILES)))
        middle = levels[:, judged] @ torch.softmax(self.mix, dim=-1).T + out[..., 0]
        low, high = middle - functional.softplus(out[..., 1]), middle + functional.softplus(out[..., 2])
        return torch.stack([low, middle, high], dim=-1)
