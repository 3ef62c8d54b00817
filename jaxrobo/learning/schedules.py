"""How PPO's learning rate changes while it learns."""

from typing import Literal

import jax
import jax.numpy as jnp

Schedule = Literal["adaptive", "adaptive_cosine", "cosine", "constant"]


def cosine(share: jax.Array) -> jax.Array:
    """What is left after a share of the time: from 1 at 0 to 0 at 1 and beyond."""
    return 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(share, 1.0)))


def adapt(rate: jax.Array, kl: jax.Array, target: jax.Array | float) -> jax.Array:
    """A learning rate: slower where the policy moved too far, faster where it hardly moved."""
    rate = jnp.where(kl > 2 * target, rate / 1.5, jnp.where(kl < target / 2, rate * 1.5, rate))
    return jnp.clip(rate, 1e-6, 1e-2)
