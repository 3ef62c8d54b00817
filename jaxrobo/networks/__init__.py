"""Flax (linen) modules."""

from jaxrobo.networks.mlp import (
    MLP,
    ActorCritic,
    activation,
    check_layers,
    flatten_observation,
    observation_size,
)
from jaxrobo.networks.unet1d import ConditionalUNet1D, step_embedding

__all__ = [
    "MLP",
    "ActorCritic",
    "ConditionalUNet1D",
    "activation",
    "check_layers",
    "flatten_observation",
    "observation_size",
    "step_embedding",
]
