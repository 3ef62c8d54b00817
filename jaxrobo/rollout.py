"""Any policy in any environment: collects, evaluates, records.

Written for ONE simulation; `jax.vmap` over states or keys makes it a batch. Planning and resetting
happen at the edges of blocks of `policy.period` steps, never behind a predicate that `vmap` would
turn into both branches: a simulation that ends within a block idles, masked, until the block ends.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxrobo.env import Env, Observation, State, reset_done
from jaxrobo.policy import Carry, Params, Policy

SPLITS = ("train", "validation", "test")
"""Disjoint sets of episodes: to learn from, to choose by, and for final tables only."""


@struct.dataclass
class RolloutState:
    """One simulation under a policy.

    Attributes:
      env: the environment's state.
      carry: the policy's carry.
      key: PRNG key of the policy's noise and of the resets.
      episode: sums over the running episode of "reward" and of every metric, and its "length".
    """

    env: State
    carry: Carry
    key: jax.Array
    episode: dict[str, jax.Array]


@struct.dataclass
class Transition:
    """One step of one simulation: a control step, or all of an action that an `ActionRepeat` holds.

    Attributes:
      obs: what the environment showed before the step.
      action: what the policy did, before any clipping. [action_size]
      reward: []
      next_obs: what the environment showed after the step, before any reset.
      terminated: []
      truncated: []
      live: False while a finished simulation idles; such a row is to be ignored. []
      episode: the episode's sums up to here; whole where `terminated | truncated`.
      aux: what the policy said.
    """

    obs: Observation
    action: jax.Array
    reward: jax.Array
    next_obs: Observation
    terminated: jax.Array
    truncated: jax.Array
    live: jax.Array
    episode: dict[str, jax.Array]
    aux: dict[str, Any]


def episode_key(split: str, seed: int | jax.Array, episode: int | jax.Array) -> jax.Array:
    """The key from which an episode of a split starts.

    Args:
      split: one of `SPLITS`.
      seed: which draw of the split.
      episode: the number of the episode.

    Raises:
      ValueError: on an unknown split.
    """
    return jax.random.fold_in(split_key(split, seed), episode)


def split_key(split: str, seed: int | jax.Array) -> jax.Array:
    """The key of a split and seed, from which each episode's key is folded.

    What learns starts from `split_key("train", seed)`: a plain `jax.random.key(seed)` may be the
    root of another split.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; valid: {', '.join(SPLITS)}")
    return jax.random.fold_in(jax.random.key(SPLITS.index(split)), seed)


def check_seed(seed: int, count: int = 1) -> None:
    """Raises ValueError unless `count` seeds from `seed` on are whole numbers that keys take."""
    most = 2**31 - count
    if not 0 <= seed <= most:
        raise ValueError(f"seed must be in 0 .. {most}, got {seed}")


def start(env: Env, policy: Policy, key: jax.Array) -> RolloutState:
    """Resets one simulation and the policy in it."""
    env_key, policy_key, key = jax.random.split(key, 3)
    state = env.reset(env_key)
    episode = dict.fromkeys(("reward", "length", *state.metrics), jnp.zeros(()))
    return RolloutState(state, policy.init(policy.observe(state), policy_key), key, episode)


def rollout(
    env: Env,
    policy: Policy,
    params: Params,
    state: RolloutState,
    steps: int,
    auto_reset: bool = True,
) -> tuple[RolloutState, Transition]:
    """Acts for `steps` control steps in one simulation.

    Args:
      env: the environment, without `AutoReset`.
      policy: what acts.
      params: its parameters.
      state: where to go on, from `start` or an earlier call.
      steps: control steps, a multiple of `policy.period`.
      auto_reset: whether a finished simulation starts anew (at the end of its block), or idles on.

    Returns:
      The state to go on from, and the transitions, `[steps, ...]`.

    Raises:
      ValueError: if `steps` isn't a positive multiple of `policy.period`.
    """
    if steps < 1 or steps % policy.period:
        raise ValueError(f"steps must be a positive multiple of {policy.period}, got {steps}")

    def block(state: RolloutState, _: None) -> tuple[RolloutState, Transition]:
        state, transitions = _block(env, policy, params, state, idle=not auto_reset)
        if auto_reset:
            state = restart(env, policy, state)
        return state, transitions

    state, transitions = jax.lax.scan(block, state, length=steps // policy.period)
    flat = lambda x: x.reshape(steps, *x.shape[2:])
    return state, jax.tree.map(flat, transitions)


def run_episode(env: Env, policy: Policy, params: Params, key: jax.Array) -> dict[str, jax.Array]:
    """Runs one simulation from `key` to the end of its episode.

    Returns:
      The episode's sums: "reward", "length", and every metric.

    Raises:
      ValueError: if the environment has no time limit.
    """
    if env.time_limit is None:
        raise ValueError("an episode needs an end: wrap the environment in TimeLimit")

    def running(state: RolloutState) -> jax.Array:
        return state.env.done == 0

    def body(state: RolloutState) -> RolloutState:
        return _block(env, policy, params, state)[0]

    return jax.lax.while_loop(running, body, start(env, policy, key)).episode


def _block(
    env: Env, policy: Policy, params: Params, state: RolloutState, idle: bool = False
) -> tuple[RolloutState, Transition]:
    """Plans once, then acts `policy.period` times; `idle`: the simulation may be over already."""
    idle = idle or policy.period > 1
    plan_key, key = jax.random.split(state.key)
    carry = policy.plan(params, state.carry, policy.observe(state.env), plan_key)

    def step(state: RolloutState, _: None) -> tuple[RolloutState, Transition]:
        return _step(env, policy, params, state, idle)

    return jax.lax.scan(step, state.replace(carry=carry, key=key), length=policy.period)


def _step(
    env: Env, policy: Policy, params: Params, state: RolloutState, idle: bool
) -> tuple[RolloutState, Transition]:
    """Acts once; with `idle`, a simulation that is over stays as it is."""
    live = state.env.done == 0
    key, act_key = jax.random.split(state.key)
    action, carry, aux = policy.act(params, state.carry, policy.observe(state.env), act_key)
    stepped = env.step(state.env, jnp.clip(action, -1.0, 1.0))
    new = RolloutState(stepped, carry, key, add_to_episode(state.episode, stepped))
    if idle:
        new = jax.tree.map(lambda n, o: jnp.where(live, n, o), new, state)
    transition = Transition(
        obs=state.env.obs,
        action=action,
        reward=jnp.where(live, stepped.reward, 0.0),
        next_obs=new.env.obs,
        terminated=new.env.terminated,
        truncated=new.env.truncated,
        live=live,
        episode=new.episode,
        aux=aux,
    )
    return new, transition


def add_to_episode(episode: dict[str, jax.Array], state: State) -> dict[str, jax.Array]:
    """The sums of an episode, `RolloutState.episode`, after one more step.

    A step counts 1 in "length", unless the environment's metrics say how many it's made of
    (`jaxrobo.env.ActionRepeat`).
    """
    step = {"reward": state.reward, "length": jnp.ones(()), **state.metrics}
    return {k: v + step[k] for k, v in episode.items()}


def restart(env: Env, policy: Policy, state: RolloutState) -> RolloutState:
    """Starts a finished simulation anew, and the policy in it; leaves one that runs as it is."""
    done = state.env.done > 0
    key, env_key, policy_key = jax.random.split(state.key, 3)
    new = reset_done(env, state.env, env_key)
    carry = policy.init(policy.observe(new), policy_key)
    pick = lambda n, o: jnp.where(done, n, o)
    zero = lambda x: jnp.where(done, 0, x)
    new = new.replace(
        done=zero(new.done), terminated=new.terminated & ~done, truncated=new.truncated & ~done
    )
    return RolloutState(
        new,
        jax.tree.map(pick, carry, state.carry),
        pick(key, state.key),
        jax.tree.map(zero, state.episode),
    )
