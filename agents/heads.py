"""All heads of a MultiDiscrete action as one batched categorical distribution."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.distributions import MultiCategoricalDistribution
from torch import Tensor, nn

CLOSED = -1e8
"""Logit of an option that is masked or beyond the end of a shorter head."""


class HeadsDistribution(MultiCategoricalDistribution):
    """Independent categoricals, computed together: Stable-Baselines3's own loops over the heads in Python.

    It offers the interface of both Stable-Baselines3's and sb3-contrib's (maskable) distributions.

    Args:
        sizes: Options of each head, H of them.
    """

    def __init__(self, sizes: list[int]) -> None:
        super().__init__(sizes)
        widest = max(sizes)
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        column = np.arange(widest)
        self._inside = torch.as_tensor(column < np.array(sizes)[:, None])
        flat = np.minimum(starts[:, None] + column, sum(sizes) - 1)
        self._gather = torch.as_tensor(flat.ravel())
        self._shape = (len(sizes), widest)

    def proba_distribution_net(self, latent_dim: int) -> nn.Module:
        """Nothing: the actor's output are the logits."""
        return nn.Identity()

    def _padded(self, flat: Tensor) -> Tensor:
        return flat[:, self._gather].view(-1, *self._shape)

    def proba_distribution(self, action_logits: Tensor) -> HeadsDistribution:
        """Takes the logits (B, sum of sizes)."""
        self._logits = self._padded(action_logits).masked_fill(~self._inside, CLOSED)
        self._log_p = torch.log_softmax(self._logits, dim=-1)
        return self

    def apply_masking(self, masks: Tensor | NDArray[Any] | None) -> None:
        """Closes the options where ``masks`` (B, sum of sizes) is false."""
        if masks is None:
            return
        given = torch.as_tensor(masks, dtype=torch.bool, device=self._logits.device)
        opened = self._padded(given.reshape(-1, int(self._inside.sum())))
        self._log_p = torch.log_softmax(self._logits.masked_fill(~opened, CLOSED), dim=-1)

    def log_prob(self, actions: Tensor) -> Tensor:
        """Log probability of actions (B, H), (B,)."""
        return self._log_p.gather(-1, actions.long().unsqueeze(-1)).squeeze(-1).sum(dim=-1)

    def entropy(self) -> Tensor:
        """Sum of the heads' entropies (B,)."""
        return -(self._log_p.exp() * self._log_p).sum(dim=(-1, -2))

    def sample(self) -> Tensor:
        """Draws actions (B, H), by the Gumbel-max trick."""
        exponential = torch.empty_like(self._log_p).exponential_()
        return (self._log_p - exponential.clamp_min(1e-20).log()).argmax(dim=-1)

    def mode(self) -> Tensor:
        """Most probable actions (B, H)."""
        return self._log_p.argmax(dim=-1)

    def actions_from_params(self, action_logits: Tensor, deterministic: bool = False) -> Tensor:
        """Actions for the given logits."""
        return self.proba_distribution(action_logits).get_actions(deterministic=deterministic)

    def log_prob_from_params(self, action_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Actions and their log probability for the given logits."""
        actions = self.actions_from_params(action_logits)
        return actions, self.log_prob(actions)
