"""Diffusion Policy (Chi et al., arXiv 2303.04137): chunks of actions by a conditional UNet.

It differs from `jaxrobo.learning.bc` in what is cloned into: a network that denoises a chunk, by
diffusion or by flow matching.
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp

from jaxrobo import diffusion
from jaxrobo.data import Trajectories
from jaxrobo.env import Env
from jaxrobo.learning.bc import CloningConfig, Model, clone
from jaxrobo.learning.trainer import Trainer
from jaxrobo.networks import ConditionalUNet1D, observation_size
from jaxrobo.policy import Params, Previous


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(CloningConfig):
    """Options of Diffusion Policy.

    Attributes:
      widths: channels of each level of the UNet; the horizon is halved between two levels.
      objective: "epsilon": diffusion, the network predicts noise; "flow": flow matching, it
        predicts a velocity.
      noise_levels: of the diffusion's schedule.
      sampler: "ddim": in `sampling_steps`; "ddpm": at every noise level. A flow has neither.
      sampling_steps: network evaluations a plan, but for "ddpm"; one more with a `warm_start` that
        isn't among the noise levels of these steps.
      warm_start: the noise level to which what is left of the last plan is noised, to be denoised
        into the next one; the first plan of an episode starts from noise. None for all plans from
        noise. Needs "ddim".
      temperature: factor on the noise that plans start from. Below 1 they keep to what is usual in
        the demonstrations, and leave out what only some of them do; with 0 an observation has one
        plan, which may lie between two that were demonstrated. "ddpm" takes 1 alone.
    """

    horizon: int = 16
    action_horizon: int = 8
    learning_rate: float = 1e-3
    widths: tuple[int, ...] = (64, 128, 256)
    objective: Literal["epsilon", "flow"] = "epsilon"
    noise_levels: int = 100
    sampler: Literal["ddim", "ddpm"] = "ddim"
    sampling_steps: int = 4
    warm_start: int | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, valid in (("objective", ("epsilon", "flow")), ("sampler", ("ddim", "ddpm"))):
            if getattr(self, name) not in valid:
                raise ValueError(
                    f"unknown {name} {getattr(self, name)!r}; valid: {', '.join(valid)}"
                )
        schedule = diffusion.squared_cosine(self.noise_levels)
        if self.sampling_steps < 1:
            raise ValueError(f"sampling_steps must be at least 1, got {self.sampling_steps}")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must not be negative, got {self.temperature}")
        if self.temperature != 1 and (self.objective, self.sampler) == ("epsilon", "ddpm"):
            raise ValueError("a temperature other than 1 needs the sampler 'ddim', or a flow")
        in_steps = (self.objective, self.sampler) == ("epsilon", "ddim")
        first = diffusion.ddim_steps(schedule, self.sampling_steps)[0] if in_steps else 0
        if self.warm_start is None:
            return
        if not in_steps:
            raise ValueError("warm_start needs the objective 'epsilon' and the sampler 'ddim'")
        if not first:
            raise ValueError("warm_start needs at least 2 sampling_steps, got 1")
        if not 0 <= self.warm_start < first:
            raise ValueError(
                f"warm_start must be in 0 .. {first - 1}, below the first of the sampling steps, "
                f"got {self.warm_start}"
            )


def make(env: Env, demonstrations: Trajectories, config: Config) -> Trainer:
    """Makes Diffusion Policy.

    Args:
      env: where the policy is evaluated, without automatic resets.
      demonstrations: of this environment.
      config: options.

    Raises:
      DataError: if the demonstrations aren't of this environment.
      ValueError: if the configuration doesn't say when the learning rate is at zero, or the horizon
        can't be halved between the levels of the UNet.
    """
    network = ConditionalUNet1D(config.widths)
    schedule = diffusion.squared_cosine(config.noise_levels)
    shape = config.horizon, env.action_size
    size = config.obs_horizon * observation_size(env.observation_spec)

    def init(key: jax.Array) -> Params:
        return network.init(key, jnp.zeros(shape), jnp.zeros(()), jnp.zeros(size))

    def denoiser(params: Params, condition: jax.Array) -> diffusion.Predict:
        return lambda noisy, step: network.apply(params, noisy, step, condition)

    def loss(params: Params, condition: jax.Array, actions: jax.Array, key: jax.Array) -> jax.Array:
        predict = denoiser(params, condition)
        if config.objective == "flow":
            return diffusion.flow_loss(predict, actions, key)
        return diffusion.epsilon_loss(schedule, predict, actions, key)

    def sample(
        params: Params, condition: jax.Array, previous: Previous, key: jax.Array
    ) -> jax.Array:
        predict, (noise_key, key) = denoiser(params, condition), jax.random.split(key)
        noise = config.temperature * jax.random.normal(noise_key, shape)
        if config.objective == "flow":
            return diffusion.flow_sample(predict, noise, config.sampling_steps)
        if config.sampler == "ddpm":
            return diffusion.ddpm_sample(schedule, predict, noise, key)
        steps = diffusion.ddim_steps(schedule, config.sampling_steps)
        if config.warm_start is None:
            return diffusion.ddim_sample(schedule, predict, noise, steps)
        again = config.temperature * jax.random.normal(key, shape)
        return _warm_sample(config.warm_start, schedule, predict, noise, again, steps, previous)

    jax.eval_shape(init, jax.random.key(0))  # refuses a horizon that the UNet can't halve
    return clone(env, demonstrations, config, Model(init, loss, sample))


def _warm_sample(
    level: int,
    schedule: diffusion.Schedule,
    predict: diffusion.Predict,
    noise: jax.Array,
    again: jax.Array,
    steps: tuple[int, ...],
    previous: Previous,
) -> jax.Array:
    """Comes down to a noise level, or starts there from what is left of the last plan."""
    above = tuple(s for s in steps if s > level)
    below = (level, *(s for s in steps if s < level))
    cold = diffusion.ddim_sample(schedule, predict, noise, above, end=level)
    warm = diffusion.add_noise(schedule, previous.actions, again, level)
    start = jnp.where(previous.exists, warm, cold)
    return diffusion.ddim_sample(schedule, predict, start, below)
