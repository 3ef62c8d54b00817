"""Simulations outside JAX under a policy: the loop runs in Python, acting in jitted programs.

What `jaxrobo.rollout` does inside of one program, for a `jaxrobo.env.HostEnv`: all its simulations
are stepped by one call. A step costs one program, which takes in what the last call led to and acts
on it; what it remembers stays on the device. Unlike there, simulations that end within a plan of a
chunked policy don't wait for its end: each plans when its own plan is used up.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxrobo.env import HostEnv, Observation, Outcome, State, batch_any
from jaxrobo.policy import Params, Policy
from jaxrobo.rollout import RolloutState, Transition, add_to_episode


@jax.tree_util.register_static
class NoPhysics:
    """Stands where a `State` has its physics: reading it is an error that says why."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        raise TypeError(
            f"the policy reads the physics state ({attribute}), which {self._name} keeps to "
            "itself: there only policies of observations can act"
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NoPhysics) and other._name == self._name

    def __hash__(self) -> int:
        return hash(self._name)


def start(env: HostEnv, policy: Policy, key: jax.Array) -> RolloutState:
    """What `rollout` begins with: shapes without an episode, `[num_envs, ...]`. Pure.

    Raises:
      TypeError: if the policy reads the physics state.
    """
    spec = env.observation_spec
    make = lambda s: jnp.zeros((env.num_envs, *s.shape), s.dtype)
    obs = {k: make(s) for k, s in spec.items()} if isinstance(spec, dict) else make(spec)
    keys = jax.random.split(key, env.num_envs)
    return jax.vmap(functools.partial(_fresh, env, policy))(obs, keys)


def rollout(
    env: HostEnv,
    policy: Policy,
    params: Params,
    state: RolloutState,
    steps: int,
    auto_reset: bool = True,
) -> tuple[RolloutState, Transition]:
    """Acts for `steps` control steps in all simulations.

    Args:
      env: the simulations. If anybody else has used them since the last call, or it's the first,
        new episodes are started.
      policy: what acts.
      params: its parameters.
      state: where to go on, `[num_envs, ...]`; from `start` or an earlier call.
      steps: control steps.
      auto_reset: whether to go on after an episode's end; if not, every call starts new episodes,
        and a simulation idles after its end.

    Returns:
      The state to go on from, and the transitions, `[steps, num_envs, ...]`.
    """
    programs = _programs(env, policy, auto_reset)
    if not auto_reset or not env.running:
        state = programs.begin(env.start(_seed(state.key)), state.key)
        env.running = True
    state, action, aux = programs.act(params, state)
    transitions = []
    for _ in range(steps - 1):
        outcome = env.advance(action)
        state, action, aux, transition = programs.go_on(params, state, action, aux, outcome)
        transitions.append(transition)
    state, transition = programs.absorb(state, action, aux, env.advance(action))
    transitions.append(transition)
    return state, programs.stack(transitions)


def run_episodes(env: HostEnv, policy: Policy, params: Params, key: jax.Array) -> dict:
    """Runs an episode in every simulation, to its end.

    Returns:
      The sums of each, `[num_envs]`, as `jaxrobo.rollout.run_episode`.

    Raises:
      ValueError: if the environment has no time limit.
      RuntimeError: if an episode doesn't end by it.
    """
    if env.time_limit is None:
        raise ValueError("an episode needs an end: give the environment a time_limit")
    programs = _programs(env, policy, auto_reset=False)
    state = programs.begin(env.start(_seed(key)), jax.random.split(key, env.num_envs))
    env.running = False  # whoever trains starts anew
    for _ in range(env.time_limit):
        state, action, aux = programs.act(params, state)
        state, _ = programs.absorb(state, action, aux, env.advance(action))
        if np.all(state.env.done):
            return state.episode
    raise RuntimeError(
        f"{np.sum(state.env.done == 0)} of {env.num_envs} episodes of {type(env).__name__} didn't "
        f"end within its time limit of {env.time_limit} steps"
    )


@struct.dataclass
class _Programs:
    """The jitted functions of a loop, over all simulations."""

    begin: Callable = struct.field(pytree_node=False)
    act: Callable = struct.field(pytree_node=False)
    absorb: Callable = struct.field(pytree_node=False)
    go_on: Callable = struct.field(pytree_node=False)
    stack: Callable = struct.field(pytree_node=False)


@functools.lru_cache(maxsize=16)
def _programs(env: HostEnv, policy: Policy, auto_reset: bool) -> _Programs:
    act = jax.vmap(functools.partial(_act, policy), (None, 0))
    absorb = jax.vmap(functools.partial(_absorb, env, policy, auto_reset))

    def go_on(params: Params, state: RolloutState, action: Any, aux: Any, outcome: Outcome):
        state, transition = absorb(state, action, aux, outcome)
        return *act(params, state), transition

    return _Programs(
        begin=jax.jit(jax.vmap(functools.partial(_fresh, env, policy))),
        act=jax.jit(act),
        absorb=jax.jit(absorb, donate_argnums=0),
        go_on=jax.jit(go_on, donate_argnums=1),
        stack=jax.jit(lambda transitions: jax.tree.map(lambda *x: jnp.stack(x), *transitions)),
    )


def _seed(keys: jax.Array) -> int:
    """A seed for the simulator, in [0, 2^31)."""
    return int(jax.random.bits(keys.reshape(-1)[0]) >> 1)


def _fresh(env: HostEnv, policy: Policy, obs: Observation, key: jax.Array) -> RolloutState:
    """One simulation at the start of an episode."""
    policy_key, key = jax.random.split(key)
    no = jnp.zeros((), bool)
    state = State(
        data=NoPhysics(type(env).__name__),
        obs=obs,
        reward=jnp.zeros(()),
        done=jnp.zeros(()),
        terminated=no,
        truncated=no,
        metrics=dict.fromkeys((*env.metric_names, "diverged"), jnp.zeros(())),
        info={"age": jnp.zeros((), jnp.int32)},
    )
    episode = dict.fromkeys(("reward", "length", *state.metrics), jnp.zeros(()))
    return RolloutState(state, policy.init(policy.observe(state), policy_key), key, episode)


def _act(policy: Policy, params: Params, state: RolloutState) -> tuple[RolloutState, Any, dict]:
    """Plans if the plan is used up, and acts; the state's `info["age"]` counts steps."""
    plan_key, act_key, key = jax.random.split(state.key, 3)
    seen, age = policy.observe(state.env), state.env.info["age"]
    due = age % policy.period == 0

    def plan(carry: Any) -> Any:
        new = policy.plan(params, carry, seen, plan_key)
        return jax.tree.map(lambda n, o: jnp.where(due, n, o), new, carry)

    carry = jax.lax.cond(batch_any(due), plan, lambda carry: carry, state.carry)
    action, carry, aux = policy.act(params, carry, seen, act_key)
    env = state.env.replace(info={"age": age + 1})
    return state.replace(env=env, carry=carry, key=key), action, aux


def _absorb(
    env: HostEnv,
    policy: Policy,
    auto_reset: bool,
    state: RolloutState,
    action: jax.Array,
    aux: dict,
    outcome: Outcome,
) -> tuple[RolloutState, Transition]:
    """Takes in what a step of one simulation led to, and starts the next episode if it's over.

    A simulation that was over before the step, or whose numbers aren't finite, isn't `live`.
    """
    old, live = state.env, state.env.done == 0
    shown = jax.tree.leaves((outcome.obs, outcome.reward))
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in shown]))
    pick = lambda where, a, b: jax.tree.map(lambda x, y: jnp.where(where, x, y), a, b)
    latest = pick(finite, outcome.obs, old.obs)
    ends = outcome.terminated | outcome.truncated
    last = latest
    if env.autoreset == "same_step":
        last = pick(ends, old.obs if outcome.final_obs is None else outcome.final_obs, latest)
    metrics = {k: jnp.where(finite, v, 0.0) for k, v in outcome.metrics.items()}
    stepped = old.replace(
        obs=last,
        reward=jnp.where(finite, outcome.reward, 0.0),
        done=ends.astype(old.done.dtype),
        terminated=outcome.terminated,
        truncated=outcome.truncated & ~outcome.terminated,
        metrics={**metrics, "diverged": 1.0 - finite},
    )
    new = state.replace(env=stepped, episode=add_to_episode(state.episode, stepped))
    new = pick(live, new, state)
    transition = Transition(
        obs=old.obs,
        action=action,
        reward=jnp.where(live, stepped.reward, 0.0),
        next_obs=new.env.obs,
        terminated=new.env.terminated,
        truncated=new.env.truncated | (live & ~finite),
        live=live & finite,
        episode=new.episode,
        aux=aux,
    )
    if not auto_reset:
        return new, transition
    # Where the simulator starts anew: in the step that ends an episode, or in the one after it.
    begins = ends if env.autoreset == "same_step" else ~live
    return pick(begins, _fresh(env, policy, latest, new.key), new), transition
