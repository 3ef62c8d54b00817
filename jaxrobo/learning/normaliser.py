"""Running mean and variance of a stream of samples."""

import jax
import jax.numpy as jnp
from flax import struct

MAX_NORMALISED = 10.0
"""To which what is normalised is clipped."""


@struct.dataclass
class RunningStats:
    """Mean and variance of everything seen so far.

    Attributes:
      count: samples seen. []
      mean: the shape of a sample.
      var: population variance; the shape of a sample.
    """

    count: jax.Array
    mean: jax.Array
    var: jax.Array


def init_stats(shape: tuple[int, ...]) -> RunningStats:
    """Nothing seen yet: mean 0, variance 1."""
    return RunningStats(jnp.zeros(()), jnp.zeros(shape), jnp.ones(shape))


def update_stats(
    stats: RunningStats, batch: jax.Array, weight: jax.Array | None = None
) -> RunningStats:
    """Adds a batch (Chan et al. 1983, the parallel form of Welford's algorithm).

    Args:
      stats: of what was seen before.
      batch: `[n, *shape]`, of any type: sums are in single precision at least.
      weight: 1 for the samples to add, 0 for the others, `[n]`; all are added if None.
    """
    batch = batch.astype(jnp.promote_types(batch.dtype, jnp.float32))
    if weight is None:
        n = batch.shape[0]
        mean, var = jnp.mean(batch, axis=0), jnp.var(batch, axis=0)
    else:
        weight = weight.astype(batch.dtype)
        n = jnp.sum(weight)
        average = lambda x: jnp.tensordot(weight, x, 1) / jnp.maximum(n, 1.0)
        mean = average(batch)
        var = average(jnp.square(batch - mean))
    count = stats.count + n
    share = n / jnp.maximum(count, 1.0)
    delta = mean - stats.mean
    return RunningStats(
        count,
        stats.mean + delta * share,
        stats.var * (1 - share) + var * share + jnp.square(delta) * share * (1 - share),
    )


def normalise(stats: RunningStats, x: jax.Array, clip: float = MAX_NORMALISED) -> jax.Array:
    """Zero mean and unit variance, clipped to +-`clip`."""
    return jnp.clip((x - stats.mean) / deviation(stats), -clip, clip)


def denormalise(stats: RunningStats, x: jax.Array) -> jax.Array:
    """The inverse of `normalise`, where that doesn't clip."""
    return x * deviation(stats) + stats.mean


def deviation(stats: RunningStats) -> jax.Array:
    """By what is divided: the standard deviation, or a little more."""
    return jnp.sqrt(stats.var + 1e-5)
