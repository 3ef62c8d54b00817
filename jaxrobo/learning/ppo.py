"""Proximal policy optimisation (Schulman et al. 2017, clipped objective) with a Gaussian policy."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxrobo import distributions, simulations
from jaxrobo.env import ActionRepeat, Env, HostEnv, TimeLimit
from jaxrobo.learning.gae import generalised_advantages
from jaxrobo.learning.minibatches import pack
from jaxrobo.learning.normaliser import (
    RunningStats,
    denormalise,
    init_stats,
    normalise,
    update_stats,
)
from jaxrobo.learning.ppo_config import Config
from jaxrobo.learning.schedules import adapt, cosine
from jaxrobo.learning.trainer import (
    Metrics,
    Trainer,
    episode_metrics,
    jit_step,
    learned_alone,
)
from jaxrobo.networks import ActorCritic, flatten_observation, observation_size
from jaxrobo.policy import Params, Policy, gaussian
from jaxrobo.randomise import weakened
from jaxrobo.rollout import RolloutState, Transition


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
    """What the loss reads of each step.

    `observation` is the network's input. `weight` is 0 where the simulation idled, 1 elsewhere;
    None if none idles.
    """

    observation: jax.Array
    action: jax.Array
    log_prob: jax.Array
    mean: jax.Array
    log_std: jax.Array
    value: jax.Array
    advantage: jax.Array
    target: jax.Array
    weight: jax.Array | None = None


class Agent(NamedTuple):
    """What PPO trains.

    Attributes:
      network: `x [size] -> mean, log_std, value`.
      size: the length of `x`.
      act: `deterministic -> Policy`, whose `aux` has "log_prob", "mean" and "log_std".
      read: `(batch [T, N], inputs) -> (x [T, N, size], x after the step, action)`, where `x` isn't
        normalised yet, and `action` is what the network drew.
      complete: see `Trainer`. What is learned is `{"network": ..., "observation_stats": ...}`.
    """

    network: ActorCritic
    size: int
    act: Callable[[bool], Policy]
    read: Callable[[Transition, Any], tuple[jax.Array, jax.Array, jax.Array]]
    complete: Callable[[Params, Any], Params] = learned_alone


def make(env: Env, config: Config | None = None) -> Trainer:
    """Makes PPO for an environment.

    Args:
      env: without automatic resets.
      config: options.
    """
    config = config or Config()
    network = actor_critic(env, config)
    observe = lambda obs: flatten_observation(env.observation_spec, obs)

    def apply(params: Params, obs: Any) -> tuple[jax.Array, jax.Array]:
        return distribution(network, config, params, observe(obs))

    def read(batch: Transition, inputs: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        del inputs
        flat = jax.vmap(jax.vmap(observe))
        return flat(batch.obs), flat(batch.next_obs), batch.action

    agent = Agent(
        network,
        size=observation_size(env.observation_spec),
        act=functools.cache(lambda deterministic: gaussian(apply, deterministic)),
        read=read,
    )
    return train(env, config, agent)


def actor_critic(env: Env, config: Config, **options: Any) -> ActorCritic:
    """The network that a configuration asks for; `options` are more of its attributes."""
    return ActorCritic(
        env.action_size,
        config.hidden,
        config.activation,
        config.shared_trunk,
        config.init_log_std,
        config.learn_std,
        **options,
    )


def distribution(
    network: ActorCritic, config: Config, learned: Params, x: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mean and log_std of the action, from what is learned and an input that isn't normalised."""
    x = _normalised(config, learned["observation_stats"], x)
    mean, log_std, _ = network.apply(learned["network"], x)
    return mean, log_std


def train(env: Env, config: Config, agent: Agent, inputs: Any = ()) -> Trainer:
    """The trainer of any agent; see `make` for the one that acts alone.

    Args:
      env: without automatic resets.
      config: options.
      agent: what is trained.
      inputs: see `Trainer`.

    Raises:
      ValueError: if the horizon isn't a multiple of the policy's period, a simulator outside JAX is
        to be cut short or its actions held, or a schedule isn't told its end.
    """
    sampling = agent.act(False)
    _check(env, config, sampling.period)
    idles = config.whole_episodes or sampling.period > 1 or isinstance(env, HostEnv)
    optimiser = optax.chain(optax.clip_by_global_norm(config.max_grad_norm), optax.scale_by_adam())

    def init(key: jax.Array, _: Any) -> TrainState:
        key, net_key, env_key = jax.random.split(key, 3)
        params = agent.network.init(net_key, jnp.zeros(agent.size))
        return TrainState(
            iteration=jnp.zeros((), jnp.int32),
            key=key,
            params=params,
            opt_state=optimiser.init(params),
            learning_rate=jnp.asarray(config.learning_rate, jnp.result_type(float)),
            observation_stats=init_stats((agent.size,)),
            value_stats=init_stats(()),
            rollout=simulations.start(
                _practice(env, config, jnp.zeros(())), sampling, env_key, config.num_envs
            ),
        )

    def collect(state: TrainState, inputs: Any) -> tuple[TrainState, Transition]:
        params = agent.complete(_learned(state), inputs)
        now = _practice(env, config, state.iteration)
        if config.whole_episodes:
            key, env_key = jax.random.split(state.key)
            begun = simulations.start(now, sampling, env_key, config.num_envs)
            state = state.replace(key=key, rollout=begun)
        states, batch = simulations.rollout(
            now, sampling, params, state.rollout, config.decisions, not config.whole_episodes
        )
        return state.replace(rollout=states), batch

    def update(state: TrainState, batch: Transition, inputs: Any) -> tuple[TrainState, Metrics]:
        key, sgd_key = jax.random.split(state.key)
        x, x_next, action = agent.read(batch, inputs)
        weight = batch.live.astype(jnp.promote_types(x.dtype, jnp.float32)) if idles else None
        samples, stats = _targets(agent.network, config, state, batch, x, x_next, action, weight)
        state, metrics = _optimise(agent.network, optimiser, config, state, samples, sgd_key)
        seen = update_stats(state.observation_stats, x.reshape(-1, agent.size), samples.weight)
        state = state.replace(
            iteration=state.iteration + 1,
            key=key,
            value_stats=stats,
            observation_stats=seen,
        )
        return state, metrics | episode_metrics(batch)

    return Trainer(
        init=jax.jit(init),
        collect=collect,
        update=update,
        step=jit_step(collect, update, env),
        act=agent.act,
        learned=_learned,
        inputs=inputs,
        env=env,
        config=config,
        steps_per_iteration=config.steps_per_iteration,
        complete=agent.complete,
    )


def _check(env: Env, config: Config, period: int) -> None:
    if config.decay_steps is None and config.schedule.endswith("cosine"):
        raise ValueError(f"the schedule {config.schedule!r} needs decay_steps: when it's at zero")
    if config.horizon % period:
        raise ValueError(
            f"horizon must be a multiple of the {period} steps that a plan of the policy lasts, "
            f"got {config.horizon}"
        )
    if isinstance(env, HostEnv):
        name = type(env).__name__
        simulations.check_num_envs(env, config.num_envs)
        if config.training_episode_steps is not None:
            raise ValueError(
                f"{name} ends its episodes itself: training_episode_steps must be None"
            )
        if config.action_repeat > 1:
            raise ValueError(f"{name} steps itself: action_repeat must be 1")


def _practice(env: Env, config: Config, iteration: jax.Array) -> Env:
    """The environment as an iteration trains in it.

    Cut short, each action held, and randomised as far as then.
    """
    if config.training_episode_steps is not None:
        env = TimeLimit(env, config.training_episode_steps)
    if config.action_repeat > 1:
        env = ActionRepeat(env, config.action_repeat)
    if not config.randomisation_steps:
        return env
    share = iteration * (config.steps_per_iteration / config.randomisation_steps)
    return weakened(env, jnp.minimum(share, 1.0))


def _learned(state: TrainState) -> Params:
    return {"network": state.params, "observation_stats": state.observation_stats}


def _normalised(config: Config, stats: RunningStats, x: jax.Array) -> jax.Array:
    return normalise(stats, x) if config.normalise_observations else x


def _targets(
    network: ActorCritic,
    config: Config,
    state: TrainState,
    batch: Transition,
    x: jax.Array,
    x_next: jax.Array,
    action: jax.Array,
    weight: jax.Array | None,
) -> tuple[_Samples, RunningStats]:
    """Advantages and value targets of a batch `[T, N]`, flattened to `[T * N]`."""
    x, x_next = (_normalised(config, state.observation_stats, s) for s in (x, x_next))
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
        flat_weight = None if weight is None else weight.reshape(-1)
        stats = update_stats(stats, returns.reshape(-1), flat_weight)
        values, returns = normalise(stats, values), normalise(stats, returns)
    if config.normalise_advantages:
        error = advantages - _mean(advantages, weight)
        advantages = error / (jnp.sqrt(_mean(jnp.square(error), weight)) + 1e-8)
    aux = batch.aux
    samples = _Samples(
        x, action, aux["log_prob"], aux["mean"], aux["log_std"], values, advantages, returns, weight
    )
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), samples), stats


def _mean(x: jax.Array, weight: jax.Array | None) -> jax.Array:
    """The mean of all, or of those with a weight; 0 if there are none."""
    return jnp.mean(x) if weight is None else jnp.sum(x * weight) / jnp.maximum(weight.sum(), 1.0)


def _optimise(
    network: ActorCritic,
    optimiser: optax.GradientTransformation,
    config: Config,
    state: TrainState,
    samples: _Samples,
    key: chex.PRNGKey,
) -> tuple[TrainState, Metrics]:
    """Several epochs of shuffled minibatches, until the policy has moved far enough."""
    rows, unpack = pack(samples)
    n = len(rows)
    left = 1.0
    if config.decay_steps is not None:
        left = cosine(state.iteration / math.ceil(config.decay_steps / config.steps_per_iteration))
    target = config.kl_target * (left if config.schedule == "adaptive_cosine" else 1.0)
    if config.schedule == "cosine":
        state = state.replace(learning_rate=config.learning_rate * left)

    def gradient_step(state: TrainState, minibatch: _Samples) -> tuple[TrainState, Metrics]:
        grads, metrics = jax.grad(_loss, has_aux=True)(state.params, network, config, minibatch)
        updates, opt_state = optimiser.update(grads, state.opt_state)
        updates = _scaled(config, state.learning_rate, updates)
        params = optax.apply_updates(state.params, updates)
        metrics["grad_norm"] = optax.tree.norm(grads)
        return state.replace(params=params, opt_state=opt_state), metrics

    def epoch(state: TrainState, key: chex.PRNGKey) -> tuple[TrainState, Metrics]:
        """Each sample once; what the last minibatches of the iteration said."""
        # Cheaper than jax.random.permutation on a CPU; a tie in 32 bits does no harm here.
        order = jnp.argsort(jax.random.bits(key, (n,)))
        minibatches = rows[order].reshape(config.minibatches, -1, rows.shape[1])
        learn = lambda state, rows: gradient_step(state, unpack(rows))
        state, metrics = jax.lax.scan(learn, state, minibatches)
        metrics = jax.tree.map(jnp.mean, metrics)
        if config.schedule.startswith("adaptive"):
            rate = adapt(state.learning_rate, metrics["kl"], target)
            state = state.replace(learning_rate=rate)
        return state, metrics

    keys = jax.random.split(key, config.epochs)
    nothing = jax.tree.map(jnp.zeros_like, jax.eval_shape(epoch, state, key)[1])

    def unfinished(loop: tuple[jax.Array, TrainState, Metrics]) -> jax.Array:
        done, _, metrics = loop
        more = done < config.epochs
        return more if config.kl_stop is None else more & (metrics["kl"] <= config.kl_stop)

    def advance(loop: tuple[jax.Array, TrainState, Metrics]) -> tuple:
        done, state, _ = loop
        return done + 1, *epoch(state, keys[done])

    done, state, metrics = jax.lax.while_loop(unfinished, advance, (0, state, nothing))
    return state, metrics | {"learning_rate": state.learning_rate, "epochs": done}


def _scaled(config: Config, rate: jax.Array, updates: Params) -> Params:
    """Down the gradient, at the learning rate of each parameter."""
    factor = (config.critic_learning_rate or config.learning_rate) / config.learning_rate

    def scaled(path: tuple, update: jax.Array) -> jax.Array:
        critics = {"critic", "value"} & {entry.key for entry in path}
        return -(rate * factor if critics else rate) * update

    return jax.tree.map_with_path(scaled, updates)


def _loss(
    params: Params, network: ActorCritic, config: Config, s: _Samples
) -> tuple[jax.Array, Metrics]:
    mean, log_std, value = network.apply(params, s.observation)
    average = lambda x: _mean(x, s.weight)
    ratio = jnp.exp(distributions.normal_log_prob(s.action, mean, log_std) - s.log_prob)
    clipped = jnp.clip(ratio, 1 - config.clip, 1 + config.clip)
    policy_loss = -average(jnp.minimum(ratio * s.advantage, clipped * s.advantage))
    value_error = jnp.square(value - s.target)
    if config.clip_values:
        near = s.value + jnp.clip(value - s.value, -config.clip, config.clip)
        value_error = jnp.maximum(value_error, jnp.square(near - s.target))
    value_loss = average(value_error)
    entropy = average(distributions.normal_entropy(log_std))
    bounds = average(jnp.sum(jnp.square(jnp.maximum(jnp.abs(mean) - 1.1, 0.0)), axis=-1))
    kl = average(distributions.normal_kl(s.mean, s.log_std, mean, log_std))
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
        "clip_fraction": average(jnp.abs(ratio - 1) > config.clip),
    }
