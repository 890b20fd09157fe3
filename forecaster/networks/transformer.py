"""A transformer over patches of the past (after PatchTST; Nie and others 2023)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..models.transformer import HEADS, PATCH, PATCHES


class Layer(nn.Module):
    """Attention and a feed-forward layer, each normalised first and with a way around it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend = nn.Linear(width, 3 * width)
        self.join = nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (N, P, W) to tokens."""
        query, key, value = (
            part.unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for part in self.attend(self.before(tokens)).chunk(3, dim=-1)
        )
        seen = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        tokens = tokens + self.join(seen)
        out: Tensor = tokens + self.narrow(functional.relu(self.widen(self.between(tokens))))
        return out


class TransformerCore(nn.Module):
    """Patches that end now, one patch ago and so on are embedded and attend to one another; the newest is read."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.embed = nn.Linear(PATCH * features, hidden)
        self.place = nn.Parameter(torch.randn(PATCHES, hidden) * 0.02)
        self.layer = Layer(hidden)
        self.after = nn.LayerNorm(hidden)

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs (B, L, H); before the first step inputs are taken to have been what they are in it."""
        batch, length, _ = inputs.shape
        reach = PATCH * PATCHES - 1
        padded = torch.cat([inputs[:, :1].expand(-1, reach, -1), inputs], dim=1)
        patches = padded.unfold(1, PATCH, 1).transpose(-1, -2).flatten(2)  # (B, reach + L - 7, 8 F)
        embedded = self.embed(patches)
        window = embedded.unfold(1, reach - PATCH + 2, 1)[..., ::PATCH]  # (B, L, H, P), the oldest first
        tokens = window.permute(0, 1, 3, 2).flatten(0, 1) + self.place
        out: Tensor = self.after(self.layer(tokens))[:, -1].unflatten(0, (batch, length))
        return out
