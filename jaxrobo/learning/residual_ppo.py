"""Residual PPO: a small correction, learned by PPO, on top of a frozen policy.

Ankile et al., "From Imitation to Refinement" (arXiv 2407.16677). What differs from `ppo`: the base
policy is frozen and plans as it always did, in chunks; the network reads the observation and the
base's action at every step, and what it adds is small, and zero at first.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobo.data import Normaliser, named, network_input, normalise
from jaxrobo.env import Env
from jaxrobo.learning import ppo
from jaxrobo.learning.schedules import Schedule
from jaxrobo.learning.trainer import Trainer
from jaxrobo.networks import observation_size
from jaxrobo.policy import Params, Policy, gaussian, residual
from jaxrobo.rollout import Transition


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ppo.Config):
    """Options of residual PPO: those of PPO, with other defaults, and one more.

    Attributes:
      scale: how much of the correction is added, in units of the normalised action.
    """

    scale: float = 0.1
    num_envs: int = 256
    horizon: int = 64
    epochs: int = 10
    minibatches: int = 8
    discount: float = 0.99
    learning_rate: float = 3e-4
    critic_learning_rate: float | None = 1e-3
    schedule: Schedule = "constant"
    kl_stop: float | None = 0.1
    value_coef: float = 0.5
    clip_values: bool = False
    normalise_observations: bool = False
    normalise_values: bool = False
    hidden: tuple[int, ...] = (256, 256)
    activation: str = "relu"
    shared_trunk: bool = False
    init_log_std: float = -1.0
    learn_std: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shared_trunk:
            raise ValueError(
                "the value reads less than the policy does: shared_trunk must be False"
            )
        if self.action_repeat > 1:
            raise ValueError(
                f"the base acts in every step: action_repeat must be 1, got {self.action_repeat}"
            )
        if not self.scale > 0:
            raise ValueError(f"scale must be positive, got {self.scale}")


class Base(NamedTuple):
    """A policy to correct.

    Attributes:
      policy: diffusion, an MLP, a script.
      params: its parameters.
      normaliser: the units of observations and actions: those that the policy was trained in, or
        fitted on episodes of it (`jaxrobo.data.fit`).
    """

    policy: Policy
    params: Params
    normaliser: Normaliser


class Frozen(NamedTuple):
    """What `Trainer.inputs` holds of a `Base`."""

    params: Params
    normaliser: Normaliser


def make(env: Env, base: Base, config: Config | None = None) -> Trainer:
    """Makes residual PPO.

    The action is `a + scale * r` in normalised units, `a` the base's action and `r` Gaussian. Its
    mean is zero everywhere at first, so that the deterministic policy equals the base. The policy's
    network reads the observation and `a`; the value's reads the observation alone, so that it is
    known after the last step as well, where the base has not acted yet.

    Args:
      env: without automatic resets.
      base: what is corrected; frozen.
      config: options.

    Raises:
      ValueError: if the base doesn't fit the environment, or the horizon isn't a multiple of the
        base's period.
    """
    config = config or Config()
    _check(env, base)
    size = observation_size(env.observation_spec)
    network = ppo.actor_critic(env, config, mean_scale=0.0, value_inputs=size)

    def apply(params: Params, seen: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
        x = network_input(params["normaliser"], env.observation_spec, seen["obs"])
        base_action = normalise(params["normaliser"], "action", seen["base_action"])
        return ppo.distribution(network, config, params, jnp.append(x, base_action))

    def read(batch: Transition, inputs: Frozen) -> tuple[jax.Array, jax.Array, jax.Array]:
        one = lambda obs: network_input(inputs.normaliser, env.observation_spec, obs)
        flat = jax.vmap(jax.vmap(one))
        base_action = normalise(inputs.normaliser, "action", batch.aux["base_action"])
        beside = lambda x: jnp.concatenate([x, base_action], axis=-1)
        # After the step only the value is asked for, which doesn't read the base's action.
        return beside(flat(batch.obs)), beside(flat(batch.next_obs)), batch.aux["residual_action"]

    def complete(learned: Params, inputs: Frozen) -> Params:
        return {
            "base": inputs.params,
            "residual": {**learned, "normaliser": inputs.normaliser},
            "scale": config.scale * jnp.asarray(inputs.normaliser.scale["action"]),
        }

    @functools.cache
    def act(deterministic: bool) -> Policy:
        return residual(base.policy, gaussian(apply, deterministic))

    agent = ppo.Agent(network, size + env.action_size, act, read, complete)
    return ppo.train(env, config, agent, Frozen(base.params, base.normaliser))


def _check(env: Env, base: Base) -> None:
    """Refuses a base whose observations or actions aren't the environment's."""
    name = type(env.unwrapped).__name__
    spec = env.observation_spec
    wanted = {k: tuple(v.shape) for k, v in named(spec).items()} | {"action": (env.action_size,)}
    for key, offset in base.normaliser.offset.items():
        if key not in wanted:
            raise ValueError(f"the base policy reads {key!r}, which {name} doesn't show")
        if np.shape(offset) != wanted[key]:
            raise ValueError(
                f"the base policy's {key!r} has shape {np.shape(offset)}, expected {wanted[key]} "
                f"for {name}"
            )
    states = {k for k, v in named(spec).items() if v.kind == "state"} | {"action"}
    if lacking := states - base.normaliser.offset.keys():
        raise ValueError(f"the base policy has no units for {min(lacking)!r}, which {name} shows")
