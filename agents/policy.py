"""Stable-Baselines3 policies around the slot network."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn

from .heads import HeadsDistribution
from .network import Actor, Critic, NetworkSpec

Features = dict[str, Tensor]


class PassThrough(BaseFeaturesExtractor):
    """Hands the dict of observations on as it is; the slot network knows what to do with it."""

    def __init__(self, observation_space: gym.Space[Any]) -> None:
        super().__init__(observation_space, features_dim=1)

    def forward(self, observations: Features) -> Features:
        """The observations."""
        return observations


class SlotNetwork(nn.Module):
    """Actor and critic in the form in which Stable-Baselines3 wants its ``mlp_extractor``."""

    def __init__(self, spec: NetworkSpec, actions: int) -> None:
        super().__init__()
        self.actor, self.critic = Actor(spec), Critic(spec)
        self.latent_dim_pi, self.latent_dim_vf = actions, spec.width

    def forward(self, features: Features) -> tuple[Tensor, Tensor]:
        """Logits and value features."""
        return self.actor(features), self.critic(features)

    def forward_actor(self, features: Features) -> Tensor:
        """Logits."""
        logits: Tensor = self.actor(features)
        return logits

    def forward_critic(self, features: Features) -> Tensor:
        """Value features."""
        values: Tensor = self.critic(features)
        return values


class _SlotPolicy:
    """What the two policies below share; mixed in before Stable-Baselines3's class."""

    def __init__(
        self,
        observation_space: gym.spaces.Dict,
        action_space: gym.spaces.MultiDiscrete,
        lr_schedule: Schedule,
        network: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if network is None:
            raise ValueError("the slot policy needs policy_kwargs={'network': …}; see agents.learned.network_spec")
        self.network_spec = NetworkSpec(**network)
        self.heads = [int(n) for n in action_space.nvec]
        kwargs |= {"ortho_init": False, "features_extractor_class": PassThrough}
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)  # type: ignore[call-arg]

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = SlotNetwork(self.network_spec, sum(self.heads))

    def _build(self, lr_schedule: Schedule) -> None:
        self.action_dist = HeadsDistribution(self.heads)
        super()._build(lr_schedule)  # type: ignore[misc]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data: dict[str, Any] = super()._get_constructor_parameters()  # type: ignore[misc]
        return {**data, "network": self.network_spec.as_dict()}


class SlotPolicy(_SlotPolicy, ActorCriticPolicy):  # type: ignore[misc]
    """For PPO."""


class MaskableSlotPolicy(_SlotPolicy, MaskableActorCriticPolicy):  # type: ignore[misc]
    """For MaskablePPO."""
