"""Our environments under brax's trainers: its PPO runs on any of them.

A brax environment doesn't tell a terminal state from a truncated one, and brax's own wrapper sends
every episode back to the first state of its simulation. `wrap` does what a brax trainer asks of its
environments with our semantics instead: truncations are told, and each episode is a new one.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from brax.envs import base
from brax.envs.wrappers.training import VmapWrapper
from brax.training.agents.ppo import train as brax_ppo

from jaxrobo.env import ActionRepeat, Env, reset_done


def train(env: Env, num_timesteps: int, **options: Any) -> tuple[Callable, Any, dict]:
    """Trains with brax's PPO.

    While it runs, `jax.device_put_replicated` exists again: brax 0.14.2 calls it, and jax 0.10
    removed it.

    Args:
      env: an environment without automatic resets.
      num_timesteps: control steps to train for, at least.
      **options: of `brax.training.agents.ppo.train.train`. `episode_length` is `env.time_limit`
        unless given.

    Returns:
      What brax returns: `make_policy`, the parameters for it, and the last metrics.

    Raises:
      ValueError: if the environment has no time limit and `episode_length` isn't given, or brax is
        asked to randomise.
    """
    options = {"episode_length": env.time_limit, "wrap_env_fn": wrap} | options
    if options["episode_length"] is None:
        raise ValueError("brax's episodes need an end: give episode_length, or a TimeLimit")
    with device_put_replicated():
        return brax_ppo.train(BraxEnv(env), num_timesteps, **options)


class BraxEnv(base.Env):
    """One simulation as brax's protocol has it.

    The whole `State` of our environment is brax's `pipeline_state`, so no key of its `info` meets
    one of brax's.
    """

    def __init__(self, env: Env) -> None:
        """`env`: an environment without automatic resets."""
        self.env = env

    def reset(self, rng: jax.Array) -> base.State:
        """Starts an episode."""
        state = self.env.reset(rng)
        return base.State(state, state.obs, state.reward, state.done, dict(state.metrics), {})

    def step(self, state: base.State, action: jax.Array) -> base.State:
        """Advances by one control step. Metrics that brax added are kept."""
        new = self.env.step(state.pipeline_state, action)
        metrics = {**state.metrics, **new.metrics}
        return state.replace(
            pipeline_state=new, obs=new.obs, reward=new.reward, done=new.done, metrics=metrics
        )

    @property
    def observation_size(self) -> int | dict[str, tuple[int, ...]]:
        """The length of a flat observation, or the shape of each entry."""
        return self.env.observation_size

    @property
    def action_size(self) -> int:
        """The length of an action."""
        return self.env.action_size

    @property
    def backend(self) -> str:
        """What runs the physics: our engine, not one of brax's."""
        return getattr(self.env, "engine", "jax")


def wrap(
    env: BraxEnv, episode_length: int, action_repeat: int = 1, randomization_fn: None = None
) -> base.Env:
    """Makes a batch for a brax trainer; what its option `wrap_env_fn` takes.

    Args:
      env: one simulation.
      episode_length: control steps after which an episode is truncated, if it isn't before; looked
        at when an action has been held to its end.
      action_repeat: control steps that an action lasts.
      randomization_fn: must be None.

    Returns:
      An environment that resets from keys `[n, ...]`. Each finished simulation starts a new
      episode in the step that ends the old one; resets are computed only when needed.

    Raises:
      ValueError: on `randomization_fn`, which `jaxrobo.randomise` does; if an action is to last no
        step.
    """
    if randomization_fn is not None:
        raise ValueError(
            "randomization_fn swaps the models of brax; wrap the environment in "
            "jaxrobo.randomise.Randomise instead"
        )
    return VmapWrapper(_Episodes(BraxEnv(ActionRepeat(env.env, action_repeat)), episode_length))


class _Episodes(base.Wrapper):
    """Counts, truncates and restarts the episodes of one simulation.

    `info` has what brax's trainers read: `steps` and `episode_metrics` (sums) of the running
    episode, whole where `episode_done`; `truncation`: it was cut short.
    """

    def __init__(self, env: BraxEnv, episode_length: int) -> None:
        super().__init__(env)
        self._inner = env.env
        self._episode_length = episode_length

    def reset(self, rng: jax.Array) -> base.State:
        next_key, key = jax.random.split(rng)
        state = self.env.reset(key)
        zero = jnp.zeros_like(state.reward)
        sums = dict.fromkeys(("sum_reward", *state.metrics), zero)
        info = {"steps": zero, "truncation": zero, "episode_done": zero, "episode_metrics": sums}
        return state.replace(info={**info, "reset_key": next_key})

    def step(self, state: base.State, action: jax.Array) -> base.State:
        info, over = state.info, state.info["episode_done"] > 0
        add = lambda total, x: jnp.where(over, 0, total) + x
        new = state.pipeline_state
        no = jnp.zeros_like(new.terminated)
        new = new.replace(done=jnp.zeros_like(new.done), terminated=no, truncated=no)
        new = self._inner.step(new, action)
        reward, metrics = new.reward, new.metrics
        gains = {"sum_reward": reward, **metrics}
        steps = add(info["steps"], metrics["length"])
        truncated = (new.truncated | (steps >= self._episode_length)) & ~new.terminated
        done = (new.terminated | truncated).astype(state.done.dtype)
        next_key, key = jax.random.split(info["reset_key"])
        new = reset_done(self._inner, new.replace(done=done), key)
        info = {
            **info,
            "steps": steps,
            "truncation": truncated.astype(state.done.dtype),
            "episode_done": done,
            "episode_metrics": {k: add(v, gains[k]) for k, v in info["episode_metrics"].items()},
            "reset_key": jnp.where(done > 0, next_key, info["reset_key"]),
        }
        return state.replace(
            pipeline_state=new,
            obs=new.obs,
            reward=reward,
            done=done,
            metrics={**state.metrics, **metrics},
            info=info,
        )


@contextlib.contextmanager
def device_put_replicated() -> Iterator[None]:
    """Gives jax its removed function back for a while: brax's trainers call it."""
    jax.device_put_replicated = _replicate
    try:
        yield
    finally:
        del jax.device_put_replicated


def _replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """A copy for each device, under a new leading axis."""
    axis = "i"  # what brax calls it: under another name its second epoch would compile anew
    mesh = jax.sharding.Mesh(np.array(devices), (axis,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(axis))
    n = len(devices)
    copies = jax.tree.map(lambda x: jnp.broadcast_to(x, (n, *jnp.shape(x))), tree)
    return jax.device_put(copies, sharding)
