"""Generalised advantage estimation (Schulman et al. 2016, equation 16)."""

import jax
import jax.numpy as jnp


def generalised_advantages(
    rewards: jax.Array,
    values: jax.Array,
    next_values: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    discount: float,
    decay: float,
) -> jax.Array:
    """Advantages of the steps of one simulation.

    `delta_t = r_t + discount * (1 - terminated_t) * V(next_obs_t) - V(obs_t)`, and
    `A_t = delta_t + discount * decay * (1 - done_t) * A_{t+1}`: nothing follows a terminal state, a
    truncated one is worth its value, and neither passes advantages from the next episode back.

    Args:
      rewards: `[T]`.
      values: value of the observation before each step. `[T]`
      next_values: value of the observation after each step, before any reset. `[T]`
      terminated: bool `[T]`.
      truncated: bool `[T]`.
      discount: gamma.
      decay: lambda.

    Returns:
      `[T]`; the returns to regress the value on are `advantages + values`.

    Raises:
      ValueError: if the shapes differ, or have other than one axis.
    """
    shapes = [x.shape for x in (rewards, values, next_values, terminated, truncated)]
    if len(shapes[0]) != 1 or len(set(shapes)) != 1:
        raise ValueError(f"all arguments have one shape, [T], of a single simulation; got {shapes}")
    deltas = rewards + discount * jnp.where(terminated, 0.0, next_values) - values
    carries_on = discount * decay * (1.0 - (terminated | truncated))

    def step(following: jax.Array, x: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        delta, carry_on = x
        advantage = delta + carry_on * following
        return advantage, advantage

    return jax.lax.scan(step, jnp.zeros_like(values[0]), (deltas, carries_on), reverse=True)[1]
