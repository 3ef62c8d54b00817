"""Environments: the protocol of Brax and MuJoCo Playground, and the wrappers around it.

An environment is written for ONE simulation, as pure functions of a `State`; `jax.vmap` makes it a
batch, and `vectorise` adds automatic resets.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from flax import struct
from jax.custom_batching import custom_vmap

from jaxrobo.physics import Physics, make_physics

Observation = jax.Array | dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Spec:
    """What an observation is: shape, dtype, and kind. Only the kind "state" is ever normalised."""

    shape: tuple[int, ...]
    dtype: Any = np.float32
    kind: Literal["state", "points", "image"] = "state"


@struct.dataclass
class State:
    """The state of one environment.

    Attributes:
      data: the physics state (`PhysicsState`), or whatever the environment evolves.
      obs: observation, an array or a flat dict of arrays.
      reward: reward of the step that led here. []
      done: 1.0 if the episode is over, `terminated | truncated`. []
      terminated: the task itself ended (nothing follows: a value of zero), bool. []
      truncated: the episode was cut short (what follows has a value), bool. []
      metrics: what is measured at each step, floats; an episode's metric is the sum over its steps.
        "reward" and "length" are taken: an episode has these sums in any case.
      info: everything else; keys that an environment doesn't know are kept.
    """

    data: Any
    obs: Observation
    reward: jax.Array
    done: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    metrics: dict[str, jax.Array] = struct.field(default_factory=dict)
    info: dict[str, Any] = struct.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Metric:
    """The number that a task is judged by: a key of `State.metrics`, summed over an episode.

    Attributes:
      name: the key.
      kind: "rate" if an episode's sum is 0 or 1 (a success), "count" if it's any number.
      beside: other estimates of `jaxrobo.evaluation.summarise` that say how well it was done; drawn
        below it.
    """

    name: str
    kind: Literal["rate", "count"] = "rate"
    beside: tuple[str, ...] = ()


class Env(abc.ABC):
    """An environment of one simulation. `reset` and `step` are pure and jittable.

    Attributes:
      metric: the number that the task is judged by.
      time_limit: control steps after which an episode is truncated, or None.
      steps_per_action: control steps that one call of `step` makes: more than 1 in an
        `ActionRepeat`.
    """

    metric: Metric = Metric("success", beside=("length_of_success",))
    time_limit: int | None = None
    steps_per_action: int = 1

    @abc.abstractmethod
    def reset(self, key: jax.Array, model: Mapping[str, jax.Array] | None = None) -> State:
        """Starts an episode.

        Args:
          key: a PRNG key; the same key gives the same episode.
          model: model fields of this simulation's own, as `Physics.init` takes them.
        """

    @abc.abstractmethod
    def step(self, state: State, action: jax.Array) -> State:
        """Advances by one control step. `action`: in [-1, 1], `[action_size]`.

        What comes of a state that is `done` means nothing: simulations may stand still then.
        """

    @property
    @abc.abstractmethod
    def action_size(self) -> int:
        """The length of an action."""

    @property
    @abc.abstractmethod
    def observation_spec(self) -> Spec | dict[str, Spec]:
        """Shape, dtype and kind of the observation, or of each of its entries."""

    @property
    def observation_size(self) -> int | dict[str, tuple[int, ...]]:
        """The length of a flat observation, or the shape of each entry (as in Brax)."""
        spec = self.observation_spec
        return {k: s.shape for k, s in spec.items()} if isinstance(spec, dict) else spec.shape[-1]

    @property
    def unwrapped(self) -> "Env":
        """The environment without its wrappers."""
        return self


class PhysicsEnv(Env):
    """An environment on a MuJoCo model.

    Attributes:
      physics: the engine.
      substeps: physics steps a control step.
      visual_model: what pictures show: the same bodies and joints, with all their looks.
    """

    def __init__(
        self,
        mj_model: mujoco.MjModel,
        substeps: int,
        engine: str = "auto",
        threads: int | None = None,
        visual_model: mujoco.MjModel | None = None,
    ) -> None:
        self.physics: Physics = make_physics(mj_model, engine, threads)
        self.substeps = substeps
        self.visual_model = mj_model if visual_model is None else visual_model

    @property
    def mj_model(self) -> mujoco.MjModel:
        """The MuJoCo model."""
        return self.physics.mj_model

    @property
    def dt(self) -> float:
        """Seconds a control step lasts."""
        return float(self.mj_model.opt.timestep) * self.substeps

    @property
    def engine(self) -> str:
        """Which engine runs the physics."""
        return self.physics.engine


class Outcome(NamedTuple):
    """What a step of all simulations of a `HostEnv` led to; JAX arrays.

    Attributes:
      obs: what is acted on next, `[num_envs, ...]`.
      reward: `[num_envs]`, float.
      terminated: the task itself ended, bool `[num_envs]`.
      truncated: the episode was cut short, bool `[num_envs]`.
      metrics: `[num_envs]` each, float.
      final_obs: what the ended episodes showed last, `[num_envs, ...]`, where `obs` is the first of
        the next; None if the simulator doesn't tell, or `obs` is the last itself.
    """

    obs: Observation
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    metrics: dict[str, jax.Array]
    final_obs: Observation | None = None


class HostEnv(Env):
    """Simulations outside JAX, all stepped by one call from Python (see `jaxrobo.host`).

    Trainers take it as they take an `Env` and collect in a loop on the host; nothing that needs one
    pure simulation does.

    Attributes:
      num_envs: how many there are.
      autoreset: what follows an episode's end. "same_step": `Outcome.obs` is the first of the next;
        "next_step": it's the last, the next action is ignored, and what that step shows is the
        first.
      metric_names: what `Outcome.metrics` holds.
      ticket: of the rollout that has left the simulations where they are; None if anything else
        has, as an evaluation.
    """

    num_envs: int
    autoreset: Literal["same_step", "next_step"] = "same_step"
    metric_names: tuple[str, ...] = ()
    ticket: int | None = None

    @abc.abstractmethod
    def start(self, seed: int) -> Observation:
        """Starts an episode in all simulations, and returns what they show: `[num_envs, ...]`.

        Args:
          seed: in [0, 2^31), for the simulator.
        """

    @abc.abstractmethod
    def advance(self, action: jax.Array) -> Outcome:
        """Advances all by one control step. `action`: `[num_envs, action_size]`, to be clipped."""

    def reset(self, key: jax.Array, model: Mapping[str, jax.Array] | None = None) -> State:
        """Not there. Raises TypeError."""
        raise TypeError(f"{type(self).__name__} has no pure reset: use start, or jaxrobo.host")

    def step(self, state: State, action: jax.Array) -> State:
        """Not there. Raises TypeError."""
        raise TypeError(f"{type(self).__name__} has no pure step: use advance, or jaxrobo.host")


class Wrapper(Env):
    """Passes everything on to the environment inside."""

    def __init__(self, env: Env) -> None:
        self.env = env

    def reset(self, key: jax.Array, model: Mapping[str, jax.Array] | None = None) -> State:
        """See `Env.reset`."""
        return self.env.reset(key, model)

    def step(self, state: State, action: jax.Array) -> State:
        """See `Env.step`."""
        return self.env.step(state, action)

    @property
    def action_size(self) -> int:
        """See `Env.action_size`."""
        return self.env.action_size

    @property
    def observation_spec(self) -> Spec | dict[str, Spec]:
        """See `Env.observation_spec`."""
        return self.env.observation_spec

    @property
    def unwrapped(self) -> Env:
        """See `Env.unwrapped`."""
        return self.env.unwrapped

    @property
    def metric(self) -> Metric:  # type: ignore[override]
        """See `Env.metric`."""
        return self.env.metric

    @property
    def time_limit(self) -> int | None:  # type: ignore[override]
        """See `Env.time_limit`."""
        return self.env.time_limit

    @property
    def steps_per_action(self) -> int:  # type: ignore[override]
        """See `Env.steps_per_action`."""
        return self.env.steps_per_action

    def __getattr__(self, name: str) -> Any:
        if name == "env":  # not set yet, as while unpickling
            raise AttributeError(name)
        return getattr(self.env, name)


class TimeLimit(Wrapper):
    """Truncates an episode after `steps` control steps, counted in `info["steps"]`."""

    def __init__(self, env: Env, steps: int) -> None:
        """Raises ValueError if `steps` isn't a positive whole number."""
        if steps < 1 or steps != int(steps):
            raise ValueError(f"a time limit must be at least 1 step and whole, got {steps}")
        super().__init__(env)
        self._steps = int(steps)

    @property
    def time_limit(self) -> int:  # type: ignore[override]
        """See `Env.time_limit`."""
        return self._steps

    def reset(self, key: jax.Array, model: Mapping[str, jax.Array] | None = None) -> State:
        """See `Env.reset`."""
        state = self.env.reset(key, model)
        return state.replace(info={**state.info, "steps": jnp.zeros((), jnp.int32)})

    def step(self, state: State, action: jax.Array) -> State:
        """See `Env.step`."""
        before = state.info["steps"]
        state = self.env.step(state, action)
        repeats = self.env.steps_per_action > 1
        steps = before + (state.metrics["length"].astype(before.dtype) if repeats else 1)
        truncated = state.truncated | ((steps >= self._steps) & ~state.terminated)
        return state.replace(
            truncated=truncated,
            done=(state.terminated | truncated).astype(state.done.dtype),
            info={**state.info, "steps": steps},
        )


class ActionRepeat(Wrapper):
    """Holds each action for `times` control steps, of which it makes one step.

    Rewards and metrics add up, and `metrics["length"]` counts the control steps, which `time_limit`
    and `dt` are about as well. An episode that ends on the way stays as it ended.
    """

    def __init__(self, env: Env, times: int) -> None:
        """Raises ValueError if `times` isn't positive."""
        if times < 1:
            raise ValueError(f"an action must last at least 1 step, got {times}")
        super().__init__(env)
        self._times = times

    @property
    def steps_per_action(self) -> int:  # type: ignore[override]
        """See `Env.steps_per_action`."""
        return self._times * self.env.steps_per_action

    def reset(self, key: jax.Array, model: Mapping[str, jax.Array] | None = None) -> State:
        """See `Env.reset`."""
        state = self.env.reset(key, model)
        return state.replace(metrics={**state.metrics, "length": jnp.zeros(())})

    def step(self, state: State, action: jax.Array) -> State:
        """See `Env.step`."""

        def once(state: State) -> State:
            new = self.env.step(state, action)
            if self.env.steps_per_action > 1:  # it counts itself
                return new
            return new.replace(metrics={**new.metrics, "length": jnp.ones(())})

        def again(state: State, _: None) -> tuple[State, tuple]:
            live = state.done == 0
            new = once(state)
            gains = jax.tree.map(lambda x: jnp.where(live, x, 0), (new.reward, new.metrics))
            return jax.tree.map(lambda n, o: jnp.where(live, n, o), new, state), gains

        first = once(state)
        if self._times == 1:
            return first
        state, gains = jax.lax.scan(again, first, length=self._times - 1)
        add = lambda x, more: x + more.sum(0)
        reward, metrics = jax.tree.map(add, (first.reward, first.metrics), gains)
        return state.replace(reward=reward, metrics=metrics)


class NaNGuard(Wrapper):
    """Refuses actions of a wrong shape; ends an episode whose numbers are no longer finite.

    Such an episode is truncated with the last finite observation and no reward, and counted in
    `metrics["diverged"]`; if its very first numbers aren't finite, they are shown as zeros. In
    eager calls a non-finite action is an error.
    """

    def reset(self, key: jax.Array, model: Mapping[str, jax.Array] | None = None) -> State:
        """See `Env.reset`."""
        state = self.env.reset(key, model)
        obs = jax.tree.map(lambda x: jnp.where(jnp.isfinite(x), x, jnp.zeros_like(x)), state.obs)
        return state.replace(obs=obs, metrics={**state.metrics, "diverged": jnp.zeros(())})

    def step(self, state: State, action: jax.Array) -> State:
        """See `Env.step`.

        Raises:
          ValueError: if the action has a wrong shape or, outside jit, is not finite.
        """
        action = check_action(action, self.action_size)
        new = self.env.step(state, action)
        seen = jax.tree.leaves((new.obs, new.reward, new.metrics, action))
        finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in seen]))
        bad = ~finite | getattr(new.data, "diverged", jnp.zeros((), bool))
        keep = lambda good, old: jax.tree.map(lambda g, o: jnp.where(bad, o, g), good, old)
        # Steps that were made stay counted, also those of an action that is held.
        none = {k: v if k == "length" else jnp.zeros_like(v) for k, v in new.metrics.items()}
        metrics = keep(new.metrics, none)
        return new.replace(
            obs=keep(new.obs, state.obs),
            reward=keep(new.reward, jnp.zeros_like(new.reward)),
            terminated=new.terminated & ~bad,
            truncated=new.truncated | bad,
            done=jnp.maximum(new.done, bad.astype(new.done.dtype)),
            metrics={**metrics, "diverged": bad.astype(jnp.result_type(float))},
        )


class AutoReset(Wrapper):
    """Starts the next episode in the step that ends one.

    `obs` is then the first of the new episode; the last of the old one is `info["final_obs"]`.
    `reward`, `done`, `terminated`, `truncated` and `metrics` are those of the step. Resets are
    computed only in steps in which some simulation of the whole batch ends.
    """

    def reset(self, key: jax.Array, model: Mapping[str, jax.Array] | None = None) -> State:
        """See `Env.reset`."""
        next_key, key = jax.random.split(key)
        state = self.env.reset(key, model)
        info = {"reset_key": next_key, "reset_model": model, "final_obs": state.obs}
        return state.replace(info={**state.info, **info})

    def step(self, state: State, action: jax.Array) -> State:
        """See `Env.step`."""
        key = state.info["reset_key"]
        no = jnp.zeros_like(state.terminated)
        begun = state.replace(done=jnp.zeros_like(state.done), terminated=no, truncated=no)
        state = self.env.step(begun, action)
        final_obs = state.obs
        next_key, key = jax.random.split(key)
        next_key = jnp.where(state.done > 0, next_key, state.info["reset_key"])
        state = reset_done(self.env, state, key, state.info["reset_model"])
        return state.replace(info={**state.info, "reset_key": next_key, "final_obs": final_obs})


class Vectorised(Wrapper):
    """`num_envs` simulations side by side."""

    def __init__(self, env: Env, num_envs: int) -> None:
        """Raises ValueError if `num_envs` isn't positive."""
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        super().__init__(env)
        self.num_envs = num_envs

    def reset(self, key: jax.Array, model: Mapping[str, jax.Array] | None = None) -> State:
        """Starts `num_envs` episodes from one key; `model` fields are `[num_envs, ...]`."""
        return jax.vmap(self.env.reset)(jax.random.split(key, self.num_envs), model)

    def step(self, state: State, action: jax.Array) -> State:
        """Advances all. `action`: `[num_envs, action_size]`."""
        if jnp.shape(action) != (self.num_envs, self.action_size):
            expected = (self.num_envs, self.action_size)
            raise ValueError(f"actions have shape {jnp.shape(action)}, expected {expected}")
        return jax.vmap(self.env.step)(state, action)


def vectorise(env: Env, num_envs: int) -> Vectorised:
    """`num_envs` simulations of `env` side by side, each starting anew when its episode ends."""
    return Vectorised(AutoReset(env), num_envs)


def reset_done(
    env: Env, state: State, key: jax.Array, model: Mapping[str, jax.Array] | None = None
) -> State:
    """Replaces a finished simulation by a fresh one; written for one, batched by `vmap`.

    `key` and `model` are as `Env.reset` takes them. The reset is computed only if some simulation
    of the whole batch is done, whatever the nesting of `vmap`. What the step returned (reward,
    done, metrics) is kept.
    """
    done = state.done > 0

    def fresh(state: State) -> State:
        new = env.reset(key, model)
        pick = lambda old, new: jax.tree.map(lambda o, n: jnp.where(done, n, o), old, new)
        info = {k: pick(v, new.info[k]) if k in new.info else v for k, v in state.info.items()}
        return state.replace(
            data=pick(state.data, new.data), obs=pick(state.obs, new.obs), info=info
        )

    return jax.lax.cond(batch_any(done), fresh, lambda s: s, state)


@custom_vmap
def batch_any(x: jax.Array) -> jax.Array:
    """Whether `x` is true anywhere in the whole batch, however many `vmap`s enclose it.

    The result is never batched: a `cond` on it stays a `cond`; with a batched predicate both
    branches would always run.
    """
    return jnp.any(x)


@batch_any.def_vmap
def _batch_any_vmap(axis_size: int, in_batched: list[bool], x: jax.Array) -> tuple[jax.Array, bool]:
    del axis_size, in_batched
    return batch_any(jnp.any(x, axis=0)), False


def check_action(action: jax.Array, size: int) -> jax.Array:
    """Raises ValueError on an action of a wrong shape or, outside jit, one that isn't finite."""
    if jnp.shape(action) != (size,):
        raise ValueError(f"an action has shape {jnp.shape(action)}, expected {(size,)}")
    if not isinstance(action, jax.core.Tracer) and not np.all(np.isfinite(action)):
        raise ValueError(f"an action must be finite, got {np.asarray(action)}")
    return jnp.asarray(action, jnp.result_type(float))
