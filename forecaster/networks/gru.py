"""A gated recurrent unit (Cho and others 2014)."""

from __future__ import annotations

from torch import Tensor, nn


class GruCore(nn.Module):
    """One layer of PyTorch's GRU."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.cell = nn.GRU(features, hidden, batch_first=True)

    def forward(self, inputs: Tensor) -> Tensor:
        """Hidden states (B, L, H)."""
        out: Tensor = self.cell(inputs)[0]
        return out
