"""Environments of brax and of MuJoCo Playground under our algorithms.

Both libraries have one protocol, and so one adapter serves both. All stays on the device, in the
program of whatever steps the environment:

    import jax
    from brax.envs import get_environment
    from jaxrobo.bridge.from_brax import FromBrax
    from jaxrobo.evaluation import evaluate
    from jaxrobo.learning import ppo

    env = FromBrax(get_environment("inverted_pendulum", backend="generalized"), time_limit=100)
    config = ppo.Config(num_envs=256, horizon=32, discount=0.97, schedule="constant")
    trainer = ppo.make(env, config)
    state = trainer.init(jax.random.key(0), trainer.inputs)
    for _ in range(20):
        state, metrics = trainer.step(state, trainer.inputs)
    policy, params = trainer.policy(state)
    print(evaluate(env, policy, params, episodes=64)["reward"])

MuJoCo Playground's environments use MuJoCo Warp, which is made for NVIDIA's GPUs, unless asked
otherwise: `registry.load(name, config_overrides={"impl": "jax"})`. Their time limit is
`registry.get_default_config(name).episode_length`; brax trains with 1000.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
from flax import struct

from jaxrobo.env import Env, Metric, NaNGuard, Spec, State, TimeLimit, Wrapper

_RETURN = Metric("reward", "count")

_TRAINERS = ("Vmap", "Episode", "AutoReset")
"""Parts of the names of the wrappers that both libraries train in."""


class FromBrax(Wrapper):
    """An environment of brax or of MuJoCo Playground, with a time limit and a guard against NaN.

    `done` is a termination, whatever `info` says of it; truncations are those of the time limit
    and of `NaNGuard`. Each episode is a new one: no part of the last, nor of its `info`, is left.
    Actions in [-1, 1] are theirs too: brax's and Playground's trainers give no others.

    `State.data` is a `BraxData`. Metrics are those of the environment, which are summed over an
    episode there as they are here.
    """

    def __init__(
        self,
        env: Any,
        time_limit: int,
        metric: Metric = _RETURN,
        observation: str | Sequence[str] | None = None,
    ) -> None:
        """Traces a reset and a step.

        Args:
          env: a `brax.envs.Env` or a `mujoco_playground.MjxEnv` of one simulation, without the
            wrappers of a trainer: from `brax.envs.get_environment`, not `brax.envs.create`.
          time_limit: control steps after which an episode is truncated.
          metric: what the task is judged by: "reward" (the return), "length", or one of the
            environment's own metrics.
          observation: which entries of an observation that is a dict are shown: one, as an array,
            or several, as a dict. "state" if None, as for the policies of brax and Playground; so
            what is privileged stays out.

        Raises:
          ValueError: if the environment is wrapped, there's no such metric or entry, or the states
            after a reset and after a step differ by more than entries of `info` and `metrics` and
            by dtypes.
        """
        env = NaNGuard(TimeLimit(BraxSimulation(env, metric, observation), time_limit))
        super().__init__(env)


@struct.dataclass
class BraxData:
    """The state of the environment inside, and what pictures show of it.

    Attributes:
      state: brax's or Playground's `State`, whole.
    """

    state: Any

    @property
    def qpos(self) -> jax.Array:
        """`[nq]`: joint positions, in MuJoCo's order."""
        return self._physics.qpos if hasattr(self._physics, "qpos") else self._physics.q

    @property
    def mocap_pos(self) -> jax.Array:
        """`[nmocap, 3]`: positions of the mocap bodies, m."""
        return getattr(self._physics, "mocap_pos", jnp.zeros((0, 3)))

    @property
    def mocap_quat(self) -> jax.Array:
        """`[nmocap, 4]`: orientations of the mocap bodies, wxyz."""
        return getattr(self._physics, "mocap_quat", jnp.zeros((0, 4)))

    @property
    def model(self) -> dict[str, jax.Array]:
        """No simulation has model fields of its own."""
        return {}

    @property
    def _physics(self) -> Any:
        return self.state.data if hasattr(self.state, "data") else self.state.pipeline_state


class BraxSimulation(Env):
    """The environment as it is: without a time limit.

    Every state has the entries and dtypes of every other one, so that loops compile once: what
    only some steps put into `info` or `metrics` is kept until they do so again, zeros at first.
    """

    def __init__(self, env: Any, metric: Metric, observation: str | Sequence[str] | None) -> None:
        _check_bare(env)
        self.brax_env, self.metric = env, metric
        self._template = _settled(env)
        self._shown = _shown(self._template.obs, observation)
        _check_metrics(self._template.metrics, metric)

    def reset(self, key: jax.Array, model: Mapping[str, jax.Array] | None = None) -> State:
        """See `Env.reset`. Raises ValueError on model fields."""
        if model:
            raise ValueError(f"brax's environments take no model fields, got {', '.join(model)}")
        typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        first = self.brax_env.reset(jax.random.key_data(key) if typed else key)
        first = _conform(first, _zeros(self._template), self._template)
        zero, no = jnp.zeros(()), jnp.zeros((), bool)
        return self._show(State((), (), zero, zero, no, no), first)

    def step(self, state: State, action: jax.Array) -> State:
        """See `Env.step`."""
        before = state.data.state
        copy = jax.tree.map(lambda x: x, before)  # many a step writes into its argument's dicts
        after = self.brax_env.step(copy, action)
        return self._show(state, _conform(after, before, self._template))

    def _show(self, state: State, inner: Any) -> State:
        number = lambda x: x.astype(jnp.result_type(float))
        return state.replace(
            data=BraxData(inner),
            obs=_select(inner.obs, self._shown),
            reward=number(inner.reward),
            done=number(inner.done > 0),
            terminated=inner.done > 0,
            truncated=jnp.zeros((), bool),
            metrics={**state.metrics, **{k: number(v) for k, v in inner.metrics.items()}},
        )

    @property
    def action_size(self) -> int:
        """See `Env.action_size`."""
        return self.brax_env.action_size

    @property
    def observation_spec(self) -> Spec | dict[str, Spec]:
        """See `Env.observation_spec`. Entries named "pixels/..." are images."""
        seen = _select(self._template.obs, self._shown)
        if isinstance(seen, Mapping):
            return {name: _spec(name, entry) for name, entry in seen.items()}
        return _spec(self._shown, seen)

    @property
    def dt(self) -> float:
        """Seconds a control step lasts."""
        return float(self.brax_env.dt)

    @property
    def mj_model(self) -> mujoco.MjModel:
        """The MuJoCo model; brax's own engines have one too."""
        env = self.brax_env.unwrapped
        return env.mj_model if hasattr(env, "mj_model") else env.sys.mj_model

    @property
    def visual_model(self) -> mujoco.MjModel:
        """What pictures show."""
        return self.mj_model


# --- what every state has -------------------------------------------------------------------------


def _settled(env: Any) -> Any:
    """Shapes and dtypes of a state, whichever step it comes from; a tree of `ShapeDtypeStruct`."""
    action = jax.ShapeDtypeStruct((env.action_size,), jnp.result_type(float))
    first = jax.eval_shape(env.reset, jax.eval_shape(jax.random.PRNGKey, 0))
    state = _union(first, first)
    for _ in range(3):  # what one step adds may make the next one add more
        before, state = state, _union(state, jax.eval_shape(env.step, state, action))
        if jax.tree.flatten(before) == jax.tree.flatten(state):
            return state
    raise ValueError(f"{type(env.unwrapped).__name__} adds to its info or metrics in every step")


def _union(a: Any, b: Any) -> Any:
    """What both states fit into: the entries of both, the wider dtypes, none of them weak."""
    try:
        return jax.tree.map_with_path(_wider, _complete(a, b), _complete(b, a))
    except (TypeError, ValueError) as error:
        raise ValueError(f"the states after a reset and after a step don't fit: {error}") from error


def _wider(path: tuple, a: Any, b: Any) -> jax.ShapeDtypeStruct:
    if a.shape != getattr(b, "shape", None):
        raise ValueError(f"{jax.tree_util.keystr(path)} is {a} and {b}")
    # PRNG keys have a dtype that can't be promoted.
    dtype = a.dtype if a.dtype == b.dtype else jnp.result_type(a.dtype, b.dtype)
    return jax.ShapeDtypeStruct(a.shape, dtype)


def _conform(state: Any, before: Any, template: Any) -> Any:
    """A state with all entries that the template has, in its dtypes."""
    cast = lambda x, t: jnp.asarray(x, t.dtype)  # which drops weak types too
    return jax.tree.map(cast, _complete(state, before), template)


def _complete(state: Any, other: Any) -> Any:
    """The state, with the entries of `info` and `metrics` that only the other one has."""
    info, metrics = {**other.info, **state.info}, {**other.metrics, **state.metrics}
    return state.replace(info=info, metrics=metrics)


def _zeros(template: Any) -> Any:
    return jax.tree.map(lambda t: jnp.zeros(t.shape, t.dtype), template)


# --- what is seen ---------------------------------------------------------------------------------


def _shown(obs: Any, names: str | Sequence[str] | None) -> str | tuple[str, ...] | None:
    """Which entries of an observation are shown; None if it's an array."""
    if not isinstance(obs, Mapping):
        if names is not None:
            raise ValueError(f"the observation is one array: it has no entries like {names!r}")
        return None
    names = "state" if names is None else names if isinstance(names, str) else tuple(names)
    for name in (names,) if isinstance(names, str) else names:
        if name not in obs:
            raise ValueError(f"the observation has no {name!r}; valid: {', '.join(sorted(obs))}")
    return names


def _select(obs: Any, names: str | tuple[str, ...] | None) -> Any:
    if names is None:
        return obs
    return obs[names] if isinstance(names, str) else {name: obs[name] for name in names}


def _spec(name: str | None, entry: jax.ShapeDtypeStruct) -> Spec:
    kind = "image" if (name or "").startswith("pixels/") else "state"
    return Spec(entry.shape, entry.dtype, kind)


# --- what is refused ------------------------------------------------------------------------------


def _check_bare(env: Any) -> None:
    """Raises ValueError if a trainer's wrapper is around the environment."""
    while (inner := getattr(env, "env", None)) is not None:
        name = type(env).__name__
        if any(part in name for part in _TRAINERS):
            raise ValueError(
                f"the environment is wrapped in {name}: give it bare, as "
                "brax.envs.get_environment returns it; time limits and resets are added here"
            )
        env = inner


def _check_metrics(metrics: Mapping[str, Any], metric: Metric) -> None:
    for name, value in metrics.items():
        if getattr(value, "shape", None) != ():
            raise ValueError(f"the metric {name!r} isn't a number but {value}")
    valid = ("reward", "length", *metrics)
    if metric.name not in valid:
        raise ValueError(f"there's no metric {metric.name!r}; valid: {', '.join(valid)}")
