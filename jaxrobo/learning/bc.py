"""Behaviour cloning: a network learns to act as demonstrations do, a chunk of actions at a time."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxrobo.data import (
    Normaliser,
    Trajectories,
    check_env,
    denormalise,
    fit,
    make_windows,
    named,
    network_input,
    normalise,
)
from jaxrobo.env import Env, Observation
from jaxrobo.learning.trainer import Metrics, Trainer, jit_step
from jaxrobo.networks import MLP, check_layers, observation_size
from jaxrobo.policy import Params, Policy, Previous, receding


@dataclasses.dataclass(frozen=True, kw_only=True)
class CloningConfig:
    """What all algorithms that clone have in common.

    Attributes:
      horizon: actions that the network predicts at once.
      action_horizon: how many of them are carried out before it predicts anew.
      obs_horizon: observations that it sees, the current one the last.
      batch: windows a gradient step.
      gradient_steps: in an iteration; a run's budget counts gradient steps.
      learning_rate: of AdamW, after the warm-up.
      warmup_steps: gradient steps in which the learning rate rises from zero.
      decay_steps: gradient steps after which it has fallen to zero, as a cosine; must be given, and
        `experiments.train` gives all of the run.
      weight_decay: of AdamW.
      ema_decay: of the moving average of the parameters, with which the policy acts; 0 for none.
    """

    horizon: int
    action_horizon: int
    obs_horizon: int = 1
    batch: int = 256
    gradient_steps: int = 100
    learning_rate: float = 1e-3
    warmup_steps: int = 500
    decay_steps: int | None = None
    weight_decay: float = 1e-6
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        for name in ("horizon", "action_horizon", "obs_horizon", "batch", "gradient_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.action_horizon > self.horizon:
            raise ValueError(
                f"action_horizon must be at most horizon, {self.horizon}, got {self.action_horizon}"
            )
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps must not be negative, got {self.warmup_steps}")
        if self.decay_steps is not None and self.warmup_steps >= self.decay_steps:
            raise ValueError(
                f"warmup_steps must be in 0 .. decay_steps - 1 = {self.decay_steps - 1}, "
                f"got {self.warmup_steps}"
            )
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(CloningConfig):
    """Options of behaviour cloning with an MLP.

    Attributes:
      hidden: widths of the hidden layers.
      activation: of the hidden layers.
    """

    horizon: int = 8
    action_horizon: int = 8
    hidden: tuple[int, ...] = (256, 256, 256)
    activation: str = "relu"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_layers(self.hidden, self.activation)


@struct.dataclass
class Dataset:
    """Demonstrations as they are learned from: normalised, and where windows start.

    Attributes:
      observation: `[N, n]`, flat.
      action: `[N, action_size]`.
      obs_rows: rows of each window's observations, the last its own. `[W, obs_horizon]`
      action_rows: rows of each window's actions. `[W, horizon]`
      normaliser: what the data was normalised with.
    """

    observation: jax.Array
    action: jax.Array
    obs_rows: jax.Array
    action_rows: jax.Array
    normaliser: Normaliser


@struct.dataclass
class TrainState:
    """Everything that changes. `average` is None without `ema_decay`."""

    iteration: jax.Array
    key: jax.Array
    params: Params
    average: Params | None
    opt_state: optax.OptState
    normaliser: Normaliser


class Model(NamedTuple):
    """What demonstrations are cloned into, for one window; all of it is normalised.

    Attributes:
      init: `key -> params`.
      loss: `(params, condition [obs_horizon * n], actions [horizon, action_size], key) -> []`.
      predict: `(params, condition, previous, key) -> actions [horizon, action_size]`.
    """

    init: Callable[[jax.Array], Params]
    loss: Callable[[Params, jax.Array, jax.Array, jax.Array], jax.Array]
    predict: Callable[[Params, jax.Array, Previous, jax.Array], jax.Array]


def make(env: Env, demonstrations: Trajectories, config: Config) -> Trainer:
    """Makes behaviour cloning: an MLP predicts the chunk of actions, by the mean squared error.

    With `horizon` 1 it predicts one action a step.

    Args:
      env: where the policy is evaluated, without automatic resets.
      demonstrations: of this environment.
      config: options.

    Raises:
      DataError: if the demonstrations aren't of this environment.
      ValueError: if the configuration doesn't say when the learning rate is at zero.
    """
    shape = config.horizon, env.action_size
    network = MLP((*config.hidden, shape[0] * shape[1]), config.activation, final_scale=0.01)

    def predict(params: Params, condition: jax.Array, *_: Any) -> jax.Array:
        return network.apply(params, condition).reshape(shape)

    def loss(params: Params, condition: jax.Array, actions: jax.Array, key: jax.Array) -> jax.Array:
        del key
        return jnp.mean(jnp.square(predict(params, condition) - actions))

    size = config.obs_horizon * observation_size(env.observation_spec)
    init = lambda key: network.init(key, jnp.zeros(size))
    return clone(env, demonstrations, config, Model(init, loss, predict))


def clone(env: Env, demonstrations: Trajectories, config: CloningConfig, model: Model) -> Trainer:
    """The trainer of any model that predicts chunks; see `make`."""
    check_env(demonstrations, env)
    optimiser = _make_optimiser(config)
    policy = _make_policy(env, config, model)

    def init(key: jax.Array, inputs: Dataset) -> TrainState:
        key, params_key = jax.random.split(key)
        params = model.init(params_key)
        return TrainState(
            iteration=jnp.zeros((), jnp.int32),
            key=key,
            params=params,
            average=params if config.ema_decay else None,
            opt_state=optimiser.init(params),
            normaliser=jax.tree.map(jnp.asarray, inputs.normaliser),
        )

    def collect(state: TrainState, inputs: Dataset) -> tuple[TrainState, tuple]:
        key, index_key = jax.random.split(state.key)
        size = config.gradient_steps, config.batch
        index = jax.random.randint(index_key, size, 0, len(inputs.action_rows))
        return state.replace(key=key), index

    def update(state: TrainState, batch: Any, inputs: Dataset) -> tuple[TrainState, Metrics]:
        key, loss_key = jax.random.split(state.key)
        keys = jax.random.split(loss_key, config.gradient_steps)

        def gradient_step(state: TrainState, x: tuple) -> tuple[TrainState, jax.Array]:
            index, key = x
            condition = inputs.observation[inputs.obs_rows[index]].reshape(len(index), -1)
            actions = inputs.action[inputs.action_rows[index]]
            sample_keys = jax.random.split(key, len(index))

            def mean_loss(params: Params) -> jax.Array:
                each = jax.vmap(model.loss, (None, 0, 0, 0))
                return jnp.mean(each(params, condition, actions, sample_keys))

            loss, grads = jax.value_and_grad(mean_loss)(state.params)
            updates, opt_state = optimiser.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            follow = lambda old, new: config.ema_decay * old + (1 - config.ema_decay) * new
            average = jax.tree.map(follow, state.average, params) if config.ema_decay else None
            return state.replace(params=params, average=average, opt_state=opt_state), loss

        state, losses = jax.lax.scan(gradient_step, state, (batch, keys))
        state = state.replace(iteration=state.iteration + 1, key=key)
        return state, {"loss": jnp.mean(losses)}

    return Trainer(
        init=jax.jit(init),
        collect=collect,
        update=update,
        step=jit_step(collect, update, env),
        act=lambda deterministic: policy,
        learned=_learned,
        inputs=_dataset(env, demonstrations, config),
        env=env,
        config=config,
        steps_per_iteration=config.gradient_steps,
    )


def _make_optimiser(config: CloningConfig) -> optax.GradientTransformation:
    if config.decay_steps is None:
        raise ValueError("decay_steps is missing: when the learning rate is at zero")
    rate = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, config.warmup_steps, config.decay_steps
    )
    return optax.adamw(rate, weight_decay=config.weight_decay)


def _learned(state: TrainState) -> Params:
    params = state.params if state.average is None else state.average
    return {"network": params, "normaliser": state.normaliser}


def _dataset(env: Env, demonstrations: Trajectories, config: CloningConfig) -> Dataset:
    shown = {k: demonstrations.obs[k] for k in named(env.observation_spec)}
    demonstrations = demonstrations.replace(obs=shown)
    normaliser = fit(demonstrations)
    flat = lambda obs: network_input(normaliser, env.observation_spec, obs)
    windows = make_windows(
        demonstrations.episode_ends, config.horizon, config.action_horizon, config.obs_horizon
    )
    return Dataset(
        observation=jax.vmap(flat)(demonstrations.observation),
        action=normalise(normaliser, "action", jnp.asarray(demonstrations.action)),
        obs_rows=windows.obs,
        action_rows=windows.action,
        normaliser=normaliser,
    )


def _make_policy(env: Env, config: CloningConfig, model: Model) -> Policy:
    def predict(params: Params, seen: Observation, previous: Previous, key: jax.Array) -> jax.Array:
        read = lambda obs: network_input(params["normaliser"], env.observation_spec, obs)
        condition = jax.vmap(read)(seen).reshape(-1)
        return model.predict(params["network"], condition, previous, key)

    def decode(params: Params, action: jax.Array) -> jax.Array:
        action = jnp.clip(action, -1.0, 1.0)  # as all demonstrated actions are
        return denormalise(params["normaliser"], "action", action)

    return receding(
        predict,
        config.horizon,
        env.action_size,
        config.action_horizon,
        config.obs_horizon,
        decode,
    )
