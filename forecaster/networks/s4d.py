"""A diagonal structured state space (S4D-Lin; Gu, Gupta, Goel and Ré 2022)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

STATES = 8
"""Complex states per channel; their conjugates are implied."""
SHORTEST_S, LONGEST_S = 2.0, 300.0
"""Time scales that channels begin with."""


class S4dCore(nn.Module):
    """A linear layer, a diagonal state space per channel, and a gated linear layer with a way around it."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.encode = nn.Linear(features, hidden)
        scales = torch.exp(torch.linspace(math.log(SHORTEST_S), math.log(LONGEST_S), hidden))
        self.log_step = nn.Parameter(-torch.log(scales))
        self.log_decay = nn.Parameter(torch.full((hidden, STATES), math.log(0.5)))
        self.frequency = nn.Parameter((math.pi * torch.arange(STATES, dtype=torch.float32)).repeat(hidden, 1))
        self.output = nn.Parameter(torch.randn(hidden, STATES, 2) * (0.5 / STATES) ** 0.5)
        self.through = nn.Parameter(torch.ones(hidden))
        self.gate = nn.Linear(hidden, 2 * hidden)

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs (B, L, H), by a convolution over the whole sequence."""
        signal = self.encode(inputs)
        length = signal.shape[1]
        pole = torch.complex(-torch.exp(self.log_decay), self.frequency)
        stepped = pole * torch.exp(self.log_step)[:, None]
        held = (torch.exp(stepped) - 1) / pole  # a sample is held for its second
        powers = torch.exp(stepped[..., None] * torch.arange(length, device=signal.device))
        kernel = 2 * torch.einsum("hn,hnl->hl", torch.view_as_complex(self.output) * held, powers).real
        size = 2 * length
        spectrum = torch.fft.rfft(signal.transpose(1, 2), size) * torch.fft.rfft(kernel, size)
        state = torch.fft.irfft(spectrum, size)[..., :length].transpose(1, 2)
        mixed = self.gate(functional.silu(state + self.through * signal))
        out: Tensor = signal + functional.glu(mixed, dim=-1)
        return out
