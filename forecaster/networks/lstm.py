"""Long short-term memory (Hochreiter and Schmidhuber 1997)."""

from __future__ import annotations

from torch import Tensor, nn


class LstmCore(nn.Module):
    """One layer of PyTorch's LSTM."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.cell = nn.LSTM(features, hidden, batch_first=True)

    def forward(self, inputs: Tensor) -> Tensor:
        """Hidden states (B, L, H)."""
        out: Tensor = self.cell(inputs)[0]
        return out
