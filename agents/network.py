"""The network of the learned agents: one small body shared by all slots, so that its weights fit any cluster size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..envs.actions import KEEP, ROUTERS, SERVE
from ..envs.codec import Layout

PRIOR = 3.0
"""Log-odds by which a fresh network prefers full weight, full cap, full clock and serving over each other level."""


PREFERRED_ROUTER = "least-outstanding"


@dataclass(frozen=True)
class NetworkSpec:
    """Everything that the shape of the weights depends on, none of it the number of slots.

    Attributes:
        slot_features: Features of a slot.
        cluster_features: Features of the cluster.
        forecast_features: Forecast figures per series.
        levels: Levels of a per-slot head.
        slot_groups: Groups with a head per slot.
        models: Models that slots may serve.
        cluster_heads: Names of the cluster's own heads; ``place`` is scored slot by slot.
        width: Width of the hidden layers.
        routers: Routers to choose from.
    """

    slot_features: int
    cluster_features: int
    forecast_features: int
    levels: int
    slot_groups: tuple[str, ...]
    models: int
    cluster_heads: tuple[str, ...]
    width: int = 64
    routers: tuple[str, ...] = ROUTERS

    @classmethod
    def of(
        cls, layout: Layout, models: int, lengths: Mapping[str, int], forecast_features: int, width: int = 64
    ) -> NetworkSpec:
        """The specification for an action layout, a number of models and the lengths of the observation's boxes."""
        return cls(
            slot_features=lengths["slots"] // layout.slots,
            cluster_features=lengths["cluster"],
            forecast_features=forecast_features,
            levels=layout.levels,
            slot_groups=tuple(layout.slot_groups),
            models=models,
            cluster_heads=tuple(name for name, _ in layout.cluster_heads),
            width=width,
            routers=layout.routers,
        )

    def as_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        return asdict(self)


def _mlp(sizes: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.Tanh()]
    return nn.Sequential(*layers)


class SlotBody(nn.Module):
    """Embeds every slot in the light of the cluster and of all slots (Zaheer et al., Deep Sets, NeurIPS 2017)."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.forecast_features = spec.forecast_features
        common = spec.cluster_features + spec.forecast_features
        self.slot = _mlp([spec.slot_features + spec.forecast_features + common, spec.width, spec.width])
        self.pool = _mlp([2 * spec.width + common, spec.width])

    def forward(self, observation: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Embeddings of the slots (B, R, width) and of the cluster (B, width)."""
        forecast = observation["forecast"].reshape(len(observation["forecast"]), -1, self.forecast_features)
        slots = forecast.shape[1] - 1
        common = torch.cat([observation["cluster"], forecast[:, -1]], dim=-1)
        each = torch.cat(
            [
                observation["slots"].reshape(len(forecast), slots, -1),
                forecast[:, :-1],
                common.unsqueeze(1).expand(-1, slots, -1),
            ],
            dim=-1,
        )
        embedded = self.slot(each)
        pooled = self.pool(torch.cat([embedded.mean(dim=1), embedded.amax(dim=1), common], dim=-1))
        return embedded, pooled


class Actor(nn.Module):
    """Logits of all heads, flat in the order of the action layout."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.spec = spec
        self.body = SlotBody(spec)
        self.slot_heads = nn.Linear(2 * spec.width, len(spec.slot_groups) * spec.levels)
        options = {"router": len(spec.routers), "place": 1}
        self.cluster_heads = nn.ModuleDict({h: nn.Linear(spec.width, options[h]) for h in spec.cluster_heads})
        self.place_score = nn.Linear(2 * spec.width, 1)
        self._start_at_prior()

    def _start_at_prior(self) -> None:
        """A fresh policy mostly leaves everything on and uncapped; with several models it leaves each where it is."""
        with torch.no_grad():
            self.slot_heads.weight.mul_(0.01)
            bias = self.slot_heads.bias.zero_().view(len(self.spec.slot_groups), self.spec.levels)
            for row, group in zip(bias, self.spec.slot_groups, strict=True):
                serve = SERVE if self.spec.models == 1 else KEEP
                row[serve if group == "lifecycle" else -1] = PRIOR
            heads = {name: head for name, head in self.cluster_heads.items() if isinstance(head, nn.Linear)}
            for name, head in {**heads, "place_score": self.place_score}.items():
                head.weight.mul_(0.01)
                head.bias.zero_()
                if name == "router" and PREFERRED_ROUTER in self.spec.routers:
                    head.bias[self.spec.routers.index(PREFERRED_ROUTER)] = PRIOR

    def forward(self, observation: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, sum of the heads' options)."""
        embedded, pooled = self.body(observation)
        each = torch.cat([embedded, pooled.unsqueeze(1).expand_as(embedded)], dim=-1)
        logits = self.slot_heads(each).view(*each.shape[:2], len(self.spec.slot_groups), self.spec.levels)
        parts = [logits.transpose(1, 2).flatten(1)]
        for name, head in self.cluster_heads.items():
            parts.append(head(pooled))
            if name == "place":
                parts.append(self.place_score(each).squeeze(-1))
        return torch.cat(parts, dim=-1)


class Critic(nn.Module):
    """Features from which the value is read, (B, width)."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.body = SlotBody(spec)

    def forward(self, observation: Mapping[str, Tensor]) -> Tensor:
        """Features (B, width)."""
        features: Tensor = self.body(observation)[1]
        return features
