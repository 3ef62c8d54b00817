"""The diagonal Gaussian, parametrised by its mean and the logarithm of its standard deviation."""

import math

import jax
import jax.numpy as jnp


def normal_log_prob(x: jax.Array, mean: jax.Array, log_std: jax.Array) -> jax.Array:
    """Log-density of `x`, summed over the last axis: `[..., n]` each -> `[...]`."""
    z = (x - mean) * jnp.exp(-log_std)
    return -jnp.sum(0.5 * jnp.square(z) + log_std + 0.5 * math.log(2 * math.pi), axis=-1)


def normal_entropy(log_std: jax.Array) -> jax.Array:
    """Entropy in nats, summed over the last axis: `[..., n]` -> `[...]`."""
    return jnp.sum(log_std + 0.5 * math.log(2 * math.pi * math.e), axis=-1)


def normal_kl(
    mean: jax.Array, log_std: jax.Array, other_mean: jax.Array, other_log_std: jax.Array
) -> jax.Array:
    """KL(N(mean, std) || N(other_mean, other_std)) in nats, summed over the last axis."""
    ratio = jnp.exp(2 * (log_std - other_log_std))
    distance = jnp.square((mean - other_mean) * jnp.exp(-other_log_std))
    return jnp.sum(0.5 * (ratio + distance - 1) + other_log_std - log_std, axis=-1)
