"""What acts: a `Policy` is a few pure functions over one observation.

One `rollout` (see `jaxrobo.rollout`) serves all of them: a Gaussian policy has an empty carry, a
chunked policy carries its chunk, a scripted expert its stage, a residual policy its base's carry.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from jaxrobo import distributions
from jaxrobo.env import State

Params = Any
Carry = Any


def _keep(params: Params, carry: Carry, observation: Any, key: jax.Array) -> Carry:
    del params, observation, key
    return carry


def _no_carry(observation: Any, key: jax.Array) -> tuple:
    del observation, key
    return ()


def _observation(state: State) -> Any:
    return state.obs


class Policy(NamedTuple):
    """The functions that act in one simulation.

    Attributes:
      act: `(params, carry, observation, key) -> (action [action_size], carry, aux)`, every control
        step. `aux` is a dict (log_prob, base_action, stage, ...).
      init: `(observation, key) -> carry`, at the start of an episode; cheap.
      plan: `(params, carry, observation, key) -> carry`, every `period` steps.
      observe: `State -> observation`; scripted experts read the physics state.
      period: control steps that a plan lasts.
    """

    act: Callable[[Params, Carry, Any, jax.Array], tuple[jax.Array, Carry, dict]]
    init: Callable[[Any, jax.Array], Carry] = _no_carry
    plan: Callable[[Params, Carry, Any, jax.Array], Carry] = _keep
    observe: Callable[[State], Any] = _observation
    period: int = 1


def gaussian(
    apply: Callable[[Params, Any], tuple[jax.Array, jax.Array]], deterministic: bool = False
) -> Policy:
    """A policy that samples `mean + std * noise`, or acts by the mean.

    Args:
      apply: `(params, observation) -> (mean [action_size], log_std [action_size])`.
      deterministic: whether to act by the mean.

    Returns:
      A policy whose `aux` has `log_prob` (of the sampled, unclipped action), `mean` and `log_std`.
    """

    def act(params: Params, carry: Carry, observation: Any, key: jax.Array) -> tuple:
        mean, log_std = apply(params, observation)
        noise = 0.0 if deterministic else jnp.exp(log_std) * jax.random.normal(key, mean.shape)
        action = mean + noise
        log_prob = distributions.normal_log_prob(action, mean, log_std)
        return action, carry, {"log_prob": log_prob, "mean": mean, "log_std": log_std}

    return Policy(act)


def scripted(
    act: Callable[[Carry, State, jax.Array], tuple[jax.Array, Carry]],
    init: Callable[[State, jax.Array], Carry] = _no_carry,
) -> Policy:
    """A policy without parameters that reads the whole `State`.

    Args:
      act: `(carry, state, key) -> (action, carry)`.
      init: `(state, key) -> carry`.
    """

    def step(params: Params, carry: Carry, state: State, key: jax.Array) -> tuple:
        del params
        action, carry = act(carry, state, key)
        return action, carry, {}

    return Policy(step, init=init, observe=lambda state: state)


def watched(policy: Policy, look: Callable[[State], Any]) -> Policy:
    """The same policy, with what `look` sees before each step as `aux["seen"]`."""

    def act(params: Params, carry: Carry, seen: tuple, key: jax.Array) -> tuple:
        action, carry, aux = policy.act(params, carry, seen[0], key)
        return action, carry, {**aux, "seen": seen[1]}

    return Policy(
        act,
        init=lambda seen, key: policy.init(seen[0], key),
        plan=lambda params, carry, seen, key: policy.plan(params, carry, seen[0], key),
        observe=lambda state: (policy.observe(state), look(state)),
        period=policy.period,
    )


def constant(action: jax.Array) -> Policy:
    """Always the same action, `[action_size]`."""
    return scripted(lambda carry, state, key: (jnp.asarray(action), carry))


def uniform(action_size: int) -> Policy:
    """Actions drawn uniformly from [-1, 1]."""
    return scripted(
        lambda carry, state, key: (
            jax.random.uniform(key, (action_size,), minval=-1.0, maxval=1.0),
            carry,
        )
    )


class Previous(NamedTuple):
    """What was planned before, as it stands when the next plan is made.

    Attributes:
      actions: those that weren't carried out, then the last again and again.
        `[horizon, action_size]`
      exists: False at the start of an episode. []
    """

    actions: jax.Array
    exists: jax.Array


@struct.dataclass
class PlanCarry:
    """What a policy that acts in chunks remembers.

    Attributes:
      plan: `[horizon, action_size]`.
      index: the next action of it. []
      planned: whether there is a plan. []
      history: the observations before the current one. `[obs_horizon - 1, ...]`
    """

    plan: jax.Array
    index: jax.Array
    planned: jax.Array
    history: Any


def receding(
    predict: Callable[[Params, Any, Previous, jax.Array], jax.Array],
    horizon: int,
    action_size: int,
    period: int,
    obs_horizon: int = 1,
    decode: Callable[[Params, jax.Array], jax.Array] = lambda params, action: action,
) -> Policy:
    """A policy that plans `horizon` actions, carries out the first `period`, and plans anew.

    Args:
      predict: `(params, observations [obs_horizon, ...], previous, key) -> [horizon, action_size]`;
        before an episode's start, its first observation is repeated.
      horizon: actions a plan.
      action_size: the length of an action.
      period: how many of them are carried out.
      obs_horizon: observations that a plan reads, the current one the last.
      decode: `(params, action of the plan) -> action`.

    Raises:
      ValueError: unless 1 <= period <= horizon and 1 <= obs_horizon.
    """
    if horizon < 1:
        raise ValueError(f"horizon must be at least 1, got {horizon}")
    if not 1 <= period <= horizon:
        raise ValueError(f"period must be in 1 .. horizon = {horizon}, got {period}")
    if obs_horizon < 1:
        raise ValueError(f"obs_horizon must be at least 1, got {obs_horizon}")
    past = obs_horizon - 1
    append = lambda old, new: jnp.concatenate([old, new[None]])

    def init(observation: Any, key: jax.Array) -> PlanCarry:
        del key
        return PlanCarry(
            plan=jnp.zeros((horizon, action_size)),
            index=jnp.zeros((), jnp.int32),
            planned=jnp.zeros((), bool),
            history=jax.tree.map(lambda x: jnp.repeat(x[None], past, axis=0), observation),
        )

    def plan(params: Params, carry: PlanCarry, observation: Any, key: jax.Array) -> PlanCarry:
        seen = jax.tree.map(append, carry.history, observation)
        left = jnp.minimum(carry.index + jnp.arange(horizon), horizon - 1)
        actions = predict(params, seen, Previous(carry.plan[left], carry.planned), key)
        return carry.replace(
            plan=actions, index=jnp.zeros_like(carry.index), planned=jnp.ones_like(carry.planned)
        )

    def act(params: Params, carry: PlanCarry, observation: Any, key: jax.Array) -> tuple:
        del key
        action = decode(params, carry.plan[carry.index])
        history = carry.history
        if past:
            history = jax.tree.map(lambda old, new: append(old, new)[1:], history, observation)
        return action, carry.replace(index=carry.index + 1, history=history), {}

    return Policy(act, init, plan, period=period)


def chunked(
    predict: Callable[[Params, Any, jax.Array], jax.Array], horizon: int, action_size: int
) -> Policy:
    """A policy that plans `horizon` actions at once and applies them one by one; see `receding`.

    Args:
      predict: `(params, observation, key) -> actions [horizon, action_size]`.
      horizon: actions a plan.
      action_size: the length of an action.

    Raises:
      ValueError: if `horizon` isn't positive.
    """

    def latest(params: Params, seen: Any, previous: Previous, key: jax.Array) -> jax.Array:
        del previous
        return predict(params, jax.tree.map(lambda x: x[-1], seen), key)

    return receding(latest, horizon, action_size, horizon)


def residual(base: Policy, correction: Policy) -> Policy:
    """A base policy plus a small correction at every step: `base + scale * correction`.

    Args:
      base: the policy to correct; it observes, plans and keeps its carry as it does alone.
      correction: acts on `{"obs": State.obs, "base_action": base's action}`; it has no plan of its
        own.

    Returns:
      A policy whose parameters are those of both, `params["base"]` and `params["residual"]`, and
      `params["scale"]`, a number or `[action_size]`. Its `aux` has `base_action`, `residual_action`
      (the correction before it's scaled) and the `aux` of `correction`.
    """

    def init(seen: tuple, key: jax.Array) -> Carry:
        return base.init(seen[0], key)

    def plan(params: Params, carry: Carry, seen: tuple, key: jax.Array) -> Carry:
        return base.plan(params["base"], carry, seen[0], key)

    def act(params: Params, carry: Carry, seen: tuple, key: jax.Array) -> tuple:
        base_key, key = jax.random.split(key)
        base_action, carry, _ = base.act(params["base"], carry, seen[0], base_key)
        read = {"obs": seen[1], "base_action": base_action}
        delta, _, aux = correction.act(params["residual"], (), read, key)
        aux = {**aux, "base_action": base_action, "residual_action": delta}
        return base_action + params["scale"] * delta, carry, aux

    observe = lambda state: (base.observe(state), state.obs)
    return Policy(act, init, plan, observe, base.period)
