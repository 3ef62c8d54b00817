"""Proximal policy optimisation (Schulman et al. 2017, clipped objective) with a Gaussian policy."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from jaxrobo import distributions
from jaxrobo.env import Env
from jaxrobo.learning.gae import generalised_advantages
from jaxrobo.learning.normaliser import (
    RunningStats,
    denormalise,
    init_stats,
    normalise,
    update_stats,
)
from jaxrobo.learning.trainer import Metrics, Trainer, jit_step
from jaxrobo.networks import ActorCritic, activation, flatten_observation
from jaxrobo.policy import Params, Policy, gaussian
from jaxrobo.rollout import RolloutState, Transition, rollout, start


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options of PPO.

    Attributes:
      num_envs: simulations side by side.
      horizon: control steps a simulation makes in an iteration.
      epochs: passes over the samples of an iteration.
      minibatches: gradient steps of a pass; they divide `num_envs * horizon`.
      discount: gamma.
      gae_decay: lambda of the advantages.
      clip: how far the probability ratio may move, and the value if `clip_values`.
      learning_rate: of Adam; where the schedule starts.
      schedule: "adaptive" holds the KL divergence of each epoch near `kl_target`, by factors of 1.5
        within [1e-6, 1e-2] (as rl_games; the divergence is from the policy that collected);
        "cosine" falls to zero over `cosine_iterations`.
      kl_target: nats.
      cosine_iterations: iterations until the learning rate is zero.
      value_coef: weight of the value's loss.
      entropy_coef: weight of the policy's entropy.
      bounds_coef: weight of the squared part of the mean action beyond +-1.1.
      max_grad_norm: to which the gradient is clipped.
      clip_values: whether the value's loss is clipped like the policy's.
      normalise_observations: whether observations are normalised by their running statistics.
      normalise_values: whether the value is learned in units of the running statistics of the
        returns.
      normalise_advantages: whether each iteration's advantages are normalised.
      truncation_as_done: whether the end of the time counts as a terminal state.
      reward_scale: factor on rewards.
      hidden: widths of the hidden layers.
      activation: of the hidden layers.
      shared_trunk: whether policy and value share the hidden layers.
      init_log_std: initial logarithm of the policy's standard deviation.
    """

    num_envs: int = 2048
    horizon: int = 32
    epochs: int = 5
    minibatches: int = 4
    discount: float = 0.99
    gae_decay: float = 0.95
    clip: float = 0.2
    learning_rate: float = 1e-3
    schedule: Literal["adaptive", "cosine", "constant"] = "adaptive"
    kl_target: float = 0.02
    cosine_iterations: int = 1000
    value_coef: float = 2.0
    entropy_coef: float = 0.0
    bounds_coef: float = 1e-4
    max_grad_norm: float = 1.0
    clip_values: bool = True
    normalise_observations: bool = True
    normalise_values: bool = True
    normalise_advantages: bool = True
    truncation_as_done: bool = False
    reward_scale: float = 1.0
    hidden: tuple[int, ...] = (64, 64)
    activation: str = "tanh"
    shared_trunk: bool = True
    init_log_std: float = 0.0

    def __post_init__(self) -> None:
        for name in ("num_envs", "horizon", "epochs", "minibatches", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.num_envs * self.horizon % self.minibatches:
            raise ValueError(
                f"minibatches must divide num_envs * horizon = {self.num_envs * self.horizon}, "
                f"got {self.minibatches}"
            )
        if self.schedule not in ("adaptive", "cosine", "constant"):
            raise ValueError(
                f"unknown schedule {self.schedule!r}; valid: adaptive, cosine, constant"
            )
        for name in ("discount", "gae_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        activation(self.activation)


@struct.dataclass
class TrainState:
    """Everything that changes. `iteration` counts calls of `update`."""

    iteration: jax.Array
    key: jax.Array
    params: Params
    opt_state: optax.OptState
    learning_rate: jax.Array
    observation_stats: RunningStats
    value_stats: RunningStats
    rollout: RolloutState


@struct.dataclass
class _Samples:
    """What the loss reads of each step; the observation is flat and normalised."""

    observation: jax.Array
    action: jax.Array
    log_prob: jax.Array
    mean: jax.Array
    log_std: jax.Array
    value: jax.Array
    advantage: jax.Array
    target: jax.Array


def make(env: Env, config: Config | None = None) -> Trainer:
    """Makes PPO for an environment.

    Args:
      env: without automatic resets.
      config: options.
    """
    config = config or Config()
    network = ActorCritic(
        env.action_size,
        config.hidden,
        config.activation,
        config.shared_trunk,
        config.init_log_std,
    )
    optimiser = optax.chain(optax.clip_by_global_norm(config.max_grad_norm), optax.scale_by_adam())
    observe = lambda obs: flatten_observation(env.observation_spec, obs)
    sampling, greedy = (_make_policy(network, observe, config, d) for d in (False, True))

    def init(key: jax.Array, inputs: Any) -> TrainState:
        del inputs
        key, net_key, env_key = jax.random.split(key, 3)
        keys = jax.random.split(env_key, config.num_envs)
        states = jax.vmap(lambda k: start(env, sampling, k))(keys)
        example = jax.vmap(observe)(states.env.obs)[0]
        params = network.init(net_key, example)
        return TrainState(
            iteration=jnp.zeros((), jnp.int32),
            key=key,
            params=params,
            opt_state=optimiser.init(params),
            learning_rate=jnp.asarray(config.learning_rate, jnp.result_type(float)),
            observation_stats=init_stats(example.shape),
            value_stats=init_stats(()),
            rollout=states,
        )

    def collect(state: TrainState, inputs: Any) -> tuple[TrainState, Transition]:
        del inputs
        params = _policy_params(state)
        run = lambda s: rollout(env, sampling, params, s, config.horizon)
        states, batch = jax.vmap(run, out_axes=(0, 1))(state.rollout)
        return state.replace(rollout=states), batch

    def update(state: TrainState, batch: Transition, inputs: Any) -> tuple[TrainState, Metrics]:
        del inputs
        key, sgd_key = jax.random.split(state.key)
        flat = jax.vmap(jax.vmap(observe))
        seen, seen_next = flat(batch.obs), flat(batch.next_obs)
        samples, value_stats = _targets(network, config, state, batch, seen, seen_next)
        state, metrics = _optimise(network, optimiser, config, state, samples, sgd_key)
        rows = seen.reshape(-1, seen.shape[-1])
        state = state.replace(
            iteration=state.iteration + 1,
            key=key,
            value_stats=value_stats,
            observation_stats=update_stats(state.observation_stats, rows),
        )
        return state, metrics | _episode_metrics(batch)

    def policy(state: TrainState, deterministic: bool = True) -> tuple[Policy, Params]:
        return (greedy if deterministic else sampling), _policy_params(state)

    return Trainer(
        init=jax.jit(init),
        collect=collect,
        update=update,
        step=jit_step(collect, update),
        policy=policy,
        inputs=(),
        env=env,
        config=config,
        steps_per_iteration=config.num_envs * config.horizon,
    )


def _make_policy(network: ActorCritic, observe: Any, config: Config, deterministic: bool) -> Policy:
    def apply(params: Params, obs: Any) -> tuple[jax.Array, jax.Array]:
        x = _normalised(config, params["observation_stats"], observe(obs))
        mean, log_std, _ = network.apply(params["network"], x)
        return mean, log_std

    return gaussian(apply, deterministic)


def _policy_params(state: TrainState) -> Params:
    return {"network": state.params, "observation_stats": state.observation_stats}


def _normalised(config: Config, stats: RunningStats, x: jax.Array) -> jax.Array:
    return normalise(stats, x) if config.normalise_observations else x


def _targets(
    network: ActorCritic,
    config: Config,
    state: TrainState,
    batch: Transition,
    seen: jax.Array,
    seen_next: jax.Array,
) -> tuple[_Samples, RunningStats]:
    """Advantages and value targets of a batch `[T, N]`, flattened to `[T * N]`."""
    x, x_next = (_normalised(config, state.observation_stats, s) for s in (seen, seen_next))
    values, next_values = (network.apply(state.params, s)[2] for s in (x, x_next))
    stats = state.value_stats
    if config.normalise_values:
        values, next_values = denormalise(stats, values), denormalise(stats, next_values)
    terminated = batch.terminated
    if config.truncation_as_done:
        terminated = terminated | batch.truncated
    advantages = jax.vmap(
        lambda *a: generalised_advantages(*a, config.discount, config.gae_decay), 1, 1
    )(config.reward_scale * batch.reward, values, next_values, terminated, batch.truncated)
    returns = advantages + values
    if config.normalise_values:
        stats = update_stats(stats, returns.reshape(-1))
        values, returns = normalise(stats, values), normalise(stats, returns)
    if config.normalise_advantages:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    aux = batch.aux
    samples = _Samples(
        x, batch.action, aux["log_prob"], aux["mean"], aux["log_std"], values, advantages, returns
    )
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), samples), stats


def _optimise(
    network: ActorCritic,
    optimiser: optax.GradientTransformation,
    config: Config,
    state: TrainState,
    samples: _Samples,
    key: chex.PRNGKey,
) -> tuple[TrainState, Metrics]:
    """Several epochs of shuffled minibatches."""
    rows, unpack = _pack(samples)
    n = len(rows)

    def gradient_step(state: TrainState, minibatch: _Samples) -> tuple[TrainState, Metrics]:
        grads, metrics = jax.grad(_loss, has_aux=True)(state.params, network, config, minibatch)
        updates, opt_state = optimiser.update(grads, state.opt_state)
        updates = jax.tree.map(lambda u: -state.learning_rate * u, updates)
        params = optax.apply_updates(state.params, updates)
        metrics["grad_norm"] = optax.tree.norm(grads)
        return state.replace(params=params, opt_state=opt_state), metrics

    def epoch(state: TrainState, key: chex.PRNGKey) -> tuple[TrainState, Metrics]:
        # Half the price of jax.random.permutation on a CPU; a tie in 32 bits does no harm here.
        order = jnp.argsort(jax.random.bits(key, (n,)))
        minibatches = rows[order].reshape(config.minibatches, -1, rows.shape[1])
        learn = lambda state, rows: gradient_step(state, unpack(rows))
        state, metrics = jax.lax.scan(learn, state, minibatches)
        metrics = jax.tree.map(jnp.mean, metrics)
        if config.schedule == "adaptive":
            rate = _adapt(state.learning_rate, metrics["kl"], config.kl_target)
            state = state.replace(learning_rate=rate)
        return state, metrics

    if config.schedule == "cosine":
        share = jnp.minimum(state.iteration / config.cosine_iterations, 1.0)
        rate = 0.5 * config.learning_rate * (1 + jnp.cos(jnp.pi * share))
        state = state.replace(learning_rate=rate)
    state, metrics = jax.lax.scan(epoch, state, jax.random.split(key, config.epochs))
    metrics = jax.tree.map(lambda m: m[-1], metrics)
    return state, metrics | {"learning_rate": state.learning_rate}


def _pack(samples: _Samples) -> tuple[jax.Array, Callable[[jax.Array], _Samples]]:
    """All that belongs to a sample in one row, to be shuffled at once; and how to undo that."""
    leaves, structure = jax.tree.flatten(samples)
    shapes = [leaf.shape[1:] for leaf in leaves]
    ends = np.cumsum([math.prod(shape) for shape in shapes])

    def unpack(rows: jax.Array) -> _Samples:
        columns = jnp.split(rows, ends[:-1], axis=1)
        parts = [c.reshape(-1, *shape) for c, shape in zip(columns, shapes, strict=True)]
        return structure.unflatten(parts)

    return jnp.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1), unpack


def _loss(
    params: Params, network: ActorCritic, config: Config, s: _Samples
) -> tuple[jax.Array, Metrics]:
    mean, log_std, value = network.apply(params, s.observation)
    ratio = jnp.exp(distributions.normal_log_prob(s.action, mean, log_std) - s.log_prob)
    clipped = jnp.clip(ratio, 1 - config.clip, 1 + config.clip)
    policy_loss = -jnp.mean(jnp.minimum(ratio * s.advantage, clipped * s.advantage))
    value_error = jnp.square(value - s.target)
    if config.clip_values:
        near = s.value + jnp.clip(value - s.value, -config.clip, config.clip)
        value_error = jnp.maximum(value_error, jnp.square(near - s.target))
    value_loss = jnp.mean(value_error)
    entropy = jnp.mean(distributions.normal_entropy(log_std))
    bounds = jnp.mean(jnp.sum(jnp.square(jnp.maximum(jnp.abs(mean) - 1.1, 0.0)), axis=-1))
    kl = jnp.mean(distributions.normal_kl(s.mean, s.log_std, mean, log_std))
    loss = (
        policy_loss
        + config.value_coef * value_loss
        - config.entropy_coef * entropy
        + config.bounds_coef * bounds
    )
    return loss, {
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "entropy": entropy,
        "bounds_loss": bounds,
        "kl": kl,
        "clip_fraction": jnp.mean(jnp.abs(ratio - 1) > config.clip),
    }


def _adapt(rate: jax.Array, kl: jax.Array, target: float) -> jax.Array:
    """Slower where the policy moved too far, faster where it hardly moved."""
    rate = jnp.where(kl > 2 * target, rate / 1.5, jnp.where(kl < target / 2, rate * 1.5, rate))
    return jnp.clip(rate, 1e-6, 1e-2)


def _episode_metrics(batch: Transition) -> Metrics:
    """Means over the episodes that ended within the batch, NaN if none did."""
    done = batch.live & (batch.terminated | batch.truncated)
    count = jnp.sum(done)
    mean = lambda x: jnp.sum(jnp.where(done, x, 0.0)) / count
    return {"episode/count": count} | {f"episode/{k}": mean(v) for k, v in batch.episode.items()}
