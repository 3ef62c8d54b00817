"""Flax (linen) modules."""

from jaxrobo.networks.mlp import MLP, ActorCritic, activation, flatten_observation

__all__ = ["MLP", "ActorCritic", "activation", "flatten_observation"]
