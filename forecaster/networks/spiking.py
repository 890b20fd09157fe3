"""Leaky integrate-and-fire neurons, trained by a surrogate gradient (Neftci, Mostafa and Zenke 2019)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

STEEPNESS = 5.0


class Spike(torch.autograd.Function):
    """A step whose gradient is that of a fast sigmoid."""

    @staticmethod
    def forward(ctx: Any, above: Tensor) -> Tensor:
        """1 where the potential is above the threshold."""
        ctx.save_for_backward(above)
        return (above > 0).to(above.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """The surrogate."""
        above: Tensor = ctx.saved_tensors[0]
        return gradient / (1 + STEEPNESS * above.abs()) ** 2


class SpikingCore(nn.Module):
    """Recurrent neurons that leak, fire at 1 and are reset by subtraction; a trace of their spikes is read."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.drive = nn.Linear(features, hidden)
        self.recurrent = nn.Linear(hidden, hidden, bias=False)
        nn.init.normal_(self.recurrent.weight, std=0.1 / hidden**0.5)
        self.leak = nn.Parameter(torch.linspace(0.5, 4.0, hidden))
        self.fading = nn.Parameter(torch.linspace(0.5, 4.0, hidden))

    def forward(self, inputs: Tensor) -> Tensor:
        """Traces of spikes (B, L, H)."""
        current = self.drive(inputs)
        keep, fade = torch.sigmoid(self.leak), torch.sigmoid(self.fading)
        potential = spikes = trace = torch.zeros_like(current[:, 0])
        traces = []
        for step in current.unbind(dim=1):
            potential = keep * potential + step + self.recurrent(spikes) - spikes
            spikes = Spike.apply(potential - 1.0)  # type: ignore[no-untyped-call]
            trace = fade * trace + (1 - fade) * spikes
            traces.append(trace)
        return torch.stack(traces, dim=1)
