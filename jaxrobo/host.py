"""Simulations outside JAX under a policy: the loop runs in Python, acting in jitted programs.

What `jaxrobo.rollout` does inside of one program, for a `jaxrobo.env.HostEnv`: all its simulations
are stepped by one call. A step costs one program, which takes in what the last call led to and acts
on it; another writes it down while the simulator steps. Both remember on the device. Unlike there,
simulations that end within a plan of a chunked policy don't wait for its end: each plans when its
own plan is used up.
"""

import functools
import secrets
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

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
    return jax.vmap(functools.partial(_fresh, _Kind.of(env), policy))(obs, keys)


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
      env: the simulations. If they aren't where `state` has left them, because it's the first call
        or anything else has moved them, new episodes are started.
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
    expected, env.ticket = env.ticket, None  # an error from here on leaves it so
    if not auto_reset or expected is None or expected != int(state.env.info["ticket"][0]):
        state = programs.begin(env.start(_seed(state.key)), state.key)
    state, action, aux = programs.act(params, state)
    rows = programs.rows(steps, state, action, aux)
    for t in range(steps - 1):
        outcome = env.advance(action)
        state, action, aux, row = programs.go_on(params, state, action, aux, outcome)
        rows = programs.write(rows, row, t)  # while the simulator steps
    state, row = programs.absorb(state, action, aux, env.advance(action))
    rows = programs.write(rows, row, steps - 1)
    env.ticket = secrets.randbits(31)  # a state from another process must not have it too
    info = {**state.env.info, "ticket": jnp.full(env.num_envs, env.ticket, jnp.int32)}
    return state.replace(env=state.env.replace(info=info)), rows


def run_episodes(env: HostEnv, policy: Policy, params: Params, key: jax.Array) -> dict:
    """Runs an episode in every simulation, to its end.

    Returns:
      The sums of each, `[num_envs]`, as `jaxrobo.rollout.run_episode`.

    Raises:
      ValueError: if the environment has no time limit.
      RuntimeError: if an episode doesn't end by it.
    """
    if env.time_limit is None:
        raise ValueError(f"an episode needs an end: give {type(env).__name__} a time_limit")
    programs = _programs(env, policy, auto_reset=False)
    env.ticket = None  # whoever trains starts anew
    state = programs.begin(env.start(_seed(key)), jax.random.split(key, env.num_envs))
    for _ in range(env.time_limit):
        state, action, aux = programs.act(params, state)
        state = programs.watch(state, action, aux, env.advance(action))
        if np.all(state.env.done):
            return state.episode
    raise RuntimeError(
        f"{np.sum(state.env.done == 0)} of {env.num_envs} episodes of {type(env).__name__} didn't "
        f"end within its time limit of {env.time_limit} steps"
    )


class _Kind(NamedTuple):
    """What the programs of a loop need to know of simulations, without holding them."""

    name: str
    same_step: bool
    metric_names: tuple[str, ...]

    @classmethod
    def of(cls, env: HostEnv) -> "_Kind":
        return cls(type(env).__name__, env.autoreset == "same_step", tuple(env.metric_names))


class _Programs(NamedTuple):
    """The jitted functions of a loop, over all simulations.

    `rows [steps, num_envs, ...]` are the transitions so far; each step writes its own.
    """

    begin: Callable
    act: Callable
    absorb: Callable
    go_on: Callable
    watch: Callable
    rows: Callable
    write: Callable


def _programs(env: HostEnv, policy: Policy, auto_reset: bool) -> _Programs:
    """Compiled once for each policy; kept as long as the simulations are."""
    make = vars(env).setdefault("_programs", functools.lru_cache(8)(_make_programs))
    return make(_Kind.of(env), policy, auto_reset)


def _make_programs(kind: _Kind, policy: Policy, auto_reset: bool) -> _Programs:
    act = jax.vmap(functools.partial(_act, policy), (None, 0))
    take_in = jax.vmap(functools.partial(_take_in, kind, policy, auto_reset))

    def go_on(params: Params, state: RolloutState, *what: Any):
        state, row = take_in(state, *what)
        return *act(params, state), row

    def write(rows: Transition, row: Transition, t: Any) -> Transition:
        return jax.tree.map(lambda all_, one: all_.at[t].set(one), rows, row)

    def rows(steps: int, state: RolloutState, action: Any, aux: Any) -> Transition:
        one = _transition(state, state, action, aux, state.env.done == 0, state.env.reward)
        return jax.tree.map(lambda x: jnp.zeros((steps, *x.shape), x.dtype), one)

    return _Programs(
        begin=jax.jit(jax.vmap(functools.partial(_fresh, kind, policy))),
        act=jax.jit(act),
        absorb=jax.jit(take_in, donate_argnums=0),
        go_on=jax.jit(go_on, donate_argnums=1),
        watch=jax.jit(lambda *what: take_in(*what)[0], donate_argnums=0),
        rows=jax.jit(rows, static_argnums=0),
        write=jax.jit(write, donate_argnums=0),
    )


def _seed(keys: jax.Array) -> int:
    """A seed for the simulator, in [0, 2^31)."""
    return int(jax.random.bits(keys.reshape(-1)[0]) >> 1)


def _fresh(kind: _Kind, policy: Policy, obs: Observation, key: jax.Array) -> RolloutState:
    """One simulation at the start of an episode.

    In `info` are "age", the control steps since then; "waits", whether the simulator starts the
    next episode in the next step, whatever the action; and the "ticket" of the last rollout.
    """
    policy_key, key = jax.random.split(key)
    obs = jax.tree.map(lambda x: jnp.where(jnp.isfinite(x), x, jnp.zeros_like(x)), obs)
    no, zero = jnp.zeros((), bool), jnp.zeros((), jnp.int32)
    state = State(
        data=NoPhysics(kind.name),
        obs=obs,
        reward=jnp.zeros(()),
        done=jnp.zeros(()),
        terminated=no,
        truncated=no,
        metrics=dict.fromkeys((*kind.metric_names, "diverged"), jnp.zeros(())),
        info={"age": zero, "waits": no, "ticket": zero - 1},
    )
    episode = dict.fromkeys(("reward", "length", *state.metrics), jnp.zeros(()))
    return RolloutState(state, policy.init(policy.observe(state), policy_key), key, episode)


def _act(policy: Policy, params: Params, state: RolloutState) -> tuple[RolloutState, Any, dict]:
    """Plans if the plan is used up, and acts."""
    plan_key, act_key, key = jax.random.split(state.key, 3)
    seen, info = policy.observe(state.env), state.env.info
    due = info["age"] % policy.period == 0

    def plan(carry: Any) -> Any:
        new = policy.plan(params, carry, seen, plan_key)
        return _pick(due, new, carry)

    carry = jax.lax.cond(batch_any(due), plan, lambda carry: carry, state.carry)
    action, carry, aux = policy.act(params, carry, seen, act_key)
    env = state.env.replace(info={**info, "age": info["age"] + 1})
    return state.replace(env=env, carry=carry, key=key), action, aux


def _take_in(
    kind: _Kind,
    policy: Policy,
    auto_reset: bool,
    state: RolloutState,
    action: jax.Array,
    aux: dict,
    outcome: Outcome,
) -> tuple[RolloutState, Transition]:
    """What a step of one simulation led to, and the next episode if that's where it starts.

    An episode whose numbers aren't finite is truncated before them, as by `jaxrobo.env.NaNGuard`;
    what the simulator then does until it starts the next is ignored.
    """
    old, live = state.env, state.env.done == 0
    ends = outcome.terminated | outcome.truncated
    last = outcome.obs
    if kind.same_step:
        last = _pick(ends, old.obs if outcome.final_obs is None else outcome.final_obs, last)
    good = _finite((last, outcome.reward, outcome.metrics))
    nothing = lambda x: jnp.where(good, x, jnp.zeros_like(x))
    stepped = old.replace(
        obs=_pick(good, last, old.obs),
        reward=nothing(outcome.reward),
        done=(ends | ~good).astype(old.done.dtype),
        terminated=outcome.terminated & good,
        truncated=outcome.truncated & ~outcome.terminated | ~good,
        metrics={**jax.tree.map(nothing, outcome.metrics), "diverged": 1.0 - good},
    )
    new = state.replace(env=stepped, episode=add_to_episode(state.episode, stepped))
    new = _pick(live, new, state)
    row = _transition(state, new, action, aux, live, jnp.where(live, stepped.reward, 0.0))
    if not auto_reset:
        return new, row
    waits = jnp.zeros_like(ends) if kind.same_step else ends
    begins = ends if kind.same_step else old.info["waits"]
    new = _pick(begins, _fresh(kind, policy, outcome.obs, new.key), new)
    # An episode may be over after a step that nobody has seen: the one that began it.
    done = jnp.where(begins & waits, 1.0, new.env.done)
    env = new.env.replace(done=done, info={**new.env.info, "waits": waits})
    return new.replace(env=env), row


def _transition(
    old: RolloutState, new: RolloutState, action: Any, aux: dict, live: Any, reward: Any
) -> Transition:
    return Transition(
        obs=old.env.obs,
        action=action,
        reward=reward,
        next_obs=new.env.obs,
        terminated=new.env.terminated,
        truncated=new.env.truncated,
        live=live,
        episode=new.episode,
        aux=aux,
    )


def _pick(where: jax.Array, a: Any, b: Any) -> Any:
    return jax.tree.map(lambda x, y: jnp.where(where, x, y), a, b)


def _finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]))
