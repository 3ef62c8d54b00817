"""Diffusion and flow matching: losses and samplers, for one sample of any shape.

A network is a function `predict(noisy, step)` that returns the shape of `noisy`; parameters and
condition are in its closure. `vmap` makes batches.

    schedule = squared_cosine(100)
    predict = lambda noisy, step: unet.apply(params, noisy, step, condition)
    loss = epsilon_loss(schedule, predict, clean, key)
    noise = jax.random.normal(sample_key, clean.shape)
    clean = ddim_sample(schedule, predict, noise, ddim_steps(schedule, 16))
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

Predict = Callable[[jax.Array, jax.Array], jax.Array]
"""`(noisy [...], step []) -> [...]`: the noise in a sample, or the velocity of a flow."""

FLOW_STEPS = 100.0
"""What a flow shows its network is time times this: the range that step embeddings are made for."""

_MAX_BETA = 0.999


@struct.dataclass
class Schedule:
    """How much noise each step adds: `q(x_t | x_{t-1}) = N(sqrt(1 - β_t) x_{t-1}, β_t)`.

    Steps count from 0, the least noise.

    Attributes:
      betas: `[T]`, the variance that a step adds.
      alphas_cumprod: `[T]`, `ᾱ_t`, the product of `1 - β` up to and with a step.
    """

    betas: jax.Array
    alphas_cumprod: jax.Array

    @property
    def steps(self) -> int:
        """The number of steps, `T`."""
        return self.betas.shape[0]


def squared_cosine(steps: int = 100) -> Schedule:
    """`β_t = min(1 - f(t + 1) / f(t), 0.999)`, with `f(t) = cos²((t / T + 0.008) / 1.008 · π/2)`.

    Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models" (arXiv 2102.09672),
    equation 17; called squaredcos_cap_v2 in diffusers.

    Raises:
      ValueError: on `steps` below 1.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    level = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
    betas = np.minimum(1 - level[1:] / level[:-1], _MAX_BETA)
    return Schedule(
        betas=jnp.asarray(betas, jnp.float32),
        alphas_cumprod=jnp.asarray(np.cumprod(1 - betas), jnp.float32),
    )


def epsilon_loss(
    schedule: Schedule, predict: Predict, clean: jax.Array, key: jax.Array
) -> jax.Array:
    """Mean squared error of the noise predicted at a random step, `[...] -> []`.

    Ho et al., "Denoising Diffusion Probabilistic Models" (arXiv 2006.11239), equation 14.

    Args:
      schedule: the noise levels.
      predict: the network, which predicts noise.
      clean: `[...]`, a sample of the data.
      key: draws the step and the noise.
    """
    step_key, noise_key = jax.random.split(key)
    step = jax.random.randint(step_key, (), 0, schedule.steps)
    noise = jax.random.normal(noise_key, clean.shape, clean.dtype)
    predicted = predict(add_noise(schedule, clean, noise, step), step)
    return jnp.mean(jnp.square(predicted - noise))


def add_noise(
    schedule: Schedule, clean: jax.Array, noise: jax.Array, step: jax.Array | int
) -> jax.Array:
    """A sample of `q(x_t | x_0)`: `sqrt(ᾱ_t) clean + sqrt(1 - ᾱ_t) noise`; `[...]` each."""
    alpha = schedule.alphas_cumprod[step]
    return jnp.sqrt(alpha) * clean + jnp.sqrt(1 - alpha) * noise


def remove_noise(
    schedule: Schedule, noisy: jax.Array, noise: jax.Array, step: jax.Array | int
) -> jax.Array:
    """The inverse of `add_noise`: `(noisy - sqrt(1 - ᾱ_t) noise) / sqrt(ᾱ_t)`; `[...]` each."""
    alpha = schedule.alphas_cumprod[step]
    return (noisy - jnp.sqrt(1 - alpha) * noise) / jnp.sqrt(alpha)


def ddpm_sample(
    schedule: Schedule, predict: Predict, noise: jax.Array, key: jax.Array, *, clip: bool = True
) -> jax.Array:
    """Draws a sample by all steps of the reversed process.

    Ho et al. (arXiv 2006.11239), algorithm 2, with the variance of the posterior.

    Args:
      schedule: the noise levels.
      predict: the network, which predicts noise.
      noise: `[...]`, where to start: standard normal.
      key: draws the noise of the steps.
      clip: whether the data is within [-1, 1], and so is every estimate of it.

    Returns:
      `[...]`, a clean sample.
    """

    def denoise(noisy, inputs):
        step, key = inputs
        clean = remove_noise(schedule, noisy, predict(noisy, step), step)
        clean = jnp.clip(clean, -1, 1) if clip else clean
        mean, variance = posterior(schedule, clean, noisy, step)
        return mean + jnp.sqrt(variance) * jax.random.normal(key, noisy.shape, noisy.dtype), None

    steps = jnp.arange(schedule.steps)[::-1]
    clean, _ = jax.lax.scan(denoise, noise, (steps, jax.random.split(key, schedule.steps)))
    return clean


def posterior(
    schedule: Schedule, clean: jax.Array, noisy: jax.Array, step: jax.Array | int
) -> tuple[jax.Array, jax.Array]:
    """Mean `[...]` and variance `[]` of `q(x_{t-1} | x_t, x_0)`; at step 0, `clean` and 0.

    Ho et al. (arXiv 2006.11239), equations 6 and 7.

    Args:
      schedule: the noise levels.
      clean: `x_0`, `[...]`.
      noisy: `x_t`, `[...]`.
      step: `t`.
    """
    beta, alpha = schedule.betas[step], schedule.alphas_cumprod[step]
    before = _alpha(schedule, step - 1)
    from_clean = jnp.sqrt(before) * beta / (1 - alpha)
    from_noisy = jnp.sqrt(1 - beta) * (1 - before) / (1 - alpha)
    return from_clean * clean + from_noisy * noisy, beta * (1 - before) / (1 - alpha)


def ddim_steps(schedule: Schedule, count: int) -> tuple[int, ...]:
    """`count` steps at equal distances down to 0: 4 of 100 are 75, 50, 25, 0.

    The "leading" spacing of diffusers, which Diffusion Policy and robust-rearrangement sample with.

    Raises:
      ValueError: unless `count` is in 1 .. T.
    """
    if not 1 <= count <= schedule.steps:
        raise ValueError(f"the number of steps must be in 1 .. {schedule.steps}, got {count}")
    stride = schedule.steps // count
    return tuple(range((count - 1) * stride, -1, -stride))


def ddim_sample(
    schedule: Schedule,
    predict: Predict,
    start: jax.Array,
    steps: Sequence[int],
    *,
    end: int = -1,
    clip: bool = True,
) -> jax.Array:
    """Denoises deterministically, in any number of steps.

    Song et al., "Denoising Diffusion Implicit Models" (arXiv 2010.02502), equation 12, with η = 0.
    To start warm, add noise to an earlier sample and leave the steps before that level out:

        steps = (50, 25, 0)
        ddim_sample(schedule, predict, add_noise(schedule, earlier, noise, 50), steps)

    Args:
      schedule: the noise levels.
      predict: the network, which predicts noise.
      start: `[...]`, noisy as at the first of the steps: standard normal, or a warm start.
      steps: the noise levels to visit, falling.
      end: the noise level after the last of them; -1 for a clean sample.
      clip: whether the data is within [-1, 1], and so is every estimate of it.

    Returns:
      `[...]`, a sample at the noise level `end`.

    Raises:
      ValueError: if there are no steps, they don't fall to `end`, or aren't in 0 .. T - 1.
    """
    steps = np.asarray(steps, np.int32)
    _check_steps(schedule, steps, end)

    def denoise(noisy, inputs):
        step, following = inputs
        noise = predict(noisy, step)
        clean = remove_noise(schedule, noisy, noise, step)
        clean = jnp.clip(clean, -1, 1) if clip else clean
        alpha = _alpha(schedule, following)
        # As in diffusers: the noise stays what the network says where the estimate is clipped.
        return jnp.sqrt(alpha) * clean + jnp.sqrt(1 - alpha) * noise, None

    clean, _ = jax.lax.scan(denoise, start, (steps, np.append(steps[1:], np.int32(end))))
    return clean


def _alpha(schedule: Schedule, step: jax.Array | int) -> jax.Array:
    """`ᾱ` of a step, and 1 for the clean sample, step -1."""
    return jnp.where(step < 0, 1.0, schedule.alphas_cumprod[jnp.maximum(step, 0)])


def _check_steps(schedule: Schedule, steps: np.ndarray, end: int) -> None:
    in_range = steps.ndim == 1 and steps.size and steps[-1] >= 0 and steps[0] < schedule.steps
    if not in_range or np.any(np.diff(steps) >= 0):
        raise ValueError(f"steps must fall, in 0 .. {schedule.steps - 1}, got {steps.tolist()}")
    if not -1 <= end < steps[-1]:
        raise ValueError(f"end must be in -1 .. {steps[-1] - 1}, below the last step, got {end}")


def flow_loss(predict: Predict, clean: jax.Array, key: jax.Array) -> jax.Array:
    """Mean squared error of the velocity predicted at a random time, `[...] -> []`.

    On the straight path `x_τ = (1 - τ) noise + τ clean` the velocity is `clean - noise`: Lipman et
    al., "Flow Matching for Generative Modeling" (arXiv 2210.02747), equation 23 with σ_min = 0.

    Args:
      predict: the network, which predicts velocity; its step is `100 τ`.
      clean: `[...]`, a sample of the data.
      key: draws the time and the noise.
    """
    time_key, noise_key = jax.random.split(key)
    time = jax.random.uniform(time_key, (), clean.dtype)
    noise = jax.random.normal(noise_key, clean.shape, clean.dtype)
    velocity = predict((1 - time) * noise + time * clean, FLOW_STEPS * time)
    return jnp.mean(jnp.square(velocity - (clean - noise)))


def flow_sample(predict: Predict, noise: jax.Array, count: int) -> jax.Array:
    """Follows the flow from noise to data in Euler steps of equal length.

    Args:
      predict: the network, which predicts velocity; its step is `100 τ`.
      noise: `[...]`, standard normal.
      count: the number of steps.

    Returns:
      `[...]`, a clean sample.

    Raises:
      ValueError: on `count` below 1.
    """
    if count < 1:
        raise ValueError(f"the number of steps must be at least 1, got {count}")

    def follow(x, time):
        return x + predict(x, FLOW_STEPS * time) / count, None

    clean, _ = jax.lax.scan(follow, noise, jnp.arange(count, dtype=noise.dtype) / count)
    return clean
