"""What every algorithm is: a few pure functions over one complete state, as in optax."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrobo.env import Env, HostEnv
from jaxrobo.policy import Params, Policy
from jaxrobo.rollout import Transition

TrainState = Any
Batch = Any
Metrics = dict[str, jax.Array]


def learned_alone(learned: Params, inputs: Any) -> Params:
    """`Trainer.complete` of a policy that acts with nothing but what is learned."""
    del inputs
    return learned


class Trainer(NamedTuple):
    """An algorithm on an environment.

    Attributes:
      init: `(key, inputs) -> state`. The state holds everything that changes, and `iteration`.
      collect: `(state, inputs) -> (state, batch)`. With a `HostEnv` it's a loop on the host; all
        other functions are pure and jittable, whatever the environment.
      update: `(state, batch, inputs) -> (state, metrics)`. `metrics` holds scalars; those of
        finished episodes are under `episode/`, NaN where none finished.
      step: `(state, inputs) -> (state, metrics)`: `collect` and `update`, jitted; donates the
        state.
      act: `deterministic -> policy`.
      learned: `state -> params`: what a checkpoint of the policy holds. They are leaves of `state`:
        the next call of `step` donates them, so act before it or copy them.
      inputs: what the functions read and never change (a dataset, a frozen policy); a pytree.
      env: the environment, without automatic resets.
      config: the algorithm's configuration, a dataclass.
      steps_per_iteration: environment steps (or gradient steps) of one call of `step`: budgets
        count these.
      complete: `(learned, inputs) -> params`: all that the policy acts with. By default what is
        learned; a residual policy adds its frozen base.
    """

    init: Callable[[jax.Array, Any], TrainState]
    collect: Callable[[TrainState, Any], tuple[TrainState, Batch]]
    update: Callable[[TrainState, Batch, Any], tuple[TrainState, Metrics]]
    step: Callable[[TrainState, Any], tuple[TrainState, Metrics]]
    act: Callable[[bool], Policy]
    learned: Callable[[TrainState], Params]
    inputs: Any
    env: Env
    config: Any
    steps_per_iteration: int
    complete: Callable[[Params, Any], Params] = learned_alone

    def policy(self, state: TrainState, deterministic: bool = True) -> tuple[Policy, Params]:
        """What has been learned, ready to act; see `learned` for how long the params last."""
        return self.act(deterministic), self.complete(self.learned(state), self.inputs)


def jit_step(collect: Callable, update: Callable, env: Env) -> Callable:
    """`Trainer.step` of these two; jitted one by one if the environment is a `HostEnv`."""
    if isinstance(env, HostEnv):
        update = jax.jit(update, donate_argnums=0)

    def step(state: TrainState, inputs: Any) -> tuple[TrainState, Metrics]:
        state, batch = collect(state, inputs)
        return update(state, batch, inputs)

    return step if isinstance(env, HostEnv) else jax.jit(step, donate_argnums=0)


def over_seeds(trainer: Trainer) -> Trainer:
    """The same trainer for several seeds in one program: each state has a leading axis `[seeds]`.

    `init` takes keys `[seeds]`. Simulations of all seeds step together. On a CPU the seeds then
    learn in turn, since the minibatches of several don't fit its caches; elsewhere together.

    Raises:
      ValueError: if the environment is a `HostEnv`, whose simulations are there once.
    """
    if isinstance(trainer.env, HostEnv):
        raise ValueError(f"{type(trainer.env).__name__} trains one seed at a time")
    collect = jax.vmap(trainer.collect, (0, None))
    update = _in_turn(trainer.update) if jax.default_backend() == "cpu" else None
    update = update or jax.vmap(trainer.update, (0, 0, None))

    return trainer._replace(
        init=jax.jit(jax.vmap(trainer.init, (0, None))),
        collect=collect,
        update=update,
        step=jit_step(collect, update, trainer.env),
    )


def episode_metrics(batch: Transition) -> Metrics:
    """Means over the episodes that ended within the batch, NaN if none did."""
    done = batch.live & (batch.terminated | batch.truncated)
    count = jnp.sum(done)
    mean = lambda x: jnp.sum(jnp.where(done, x, 0.0)) / count
    return {"episode/count": count} | {f"episode/{k}": mean(v) for k, v in batch.episode.items()}


def _in_turn(update: Callable) -> Callable:
    return lambda states, batches, inputs: jax.lax.map(
        lambda pair: update(*pair, inputs), (states, batches)
    )
