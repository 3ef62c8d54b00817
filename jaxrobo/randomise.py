"""Domain randomisation: model fields, delays and noise that differ from episode to episode.

How much of it there is can grow while a policy is trained: see `weakened`.
"""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp

from jaxrobo.env import Env, Observation, State, Wrapper

_COMPANIONS = {"body_mass": "body_inertia", "actuator_gainprm": "actuator_biasprm"}
"""Fields that mean nothing without another: the same factor is applied to both."""

_OF_CONTACTS = {
    f"geom_{name}": f"pair_{name}" for name in ("friction", "solref", "solimp", "margin", "gap")
}
"""Fields of geoms that contacts take theirs from unless pairs are explicit, and those of pairs."""


@dataclasses.dataclass(frozen=True)
class Uniform:
    """A uniform draw for every row of a field (every body, joint, geom, ...).

    Attributes:
      low: lower bound.
      high: upper bound.
      operation: "scale" multiplies each row by one factor; "shift" adds a draw to each entry.
    """

    low: float
    high: float
    operation: Literal["scale", "shift"] = "scale"

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"low must not exceed high, got {self.low} and {self.high}")
        if self.operation not in ("scale", "shift"):
            raise ValueError(f"unknown operation {self.operation!r}; valid: scale, shift")


class Randomisation(Wrapper):
    """What all wrappers here are.

    Attributes:
      strength: the share of what is drawn that takes effect.
    """

    strength: float | jax.Array = 1.0


def weakened(env: Env, strength: float | jax.Array) -> Env:
    """An environment with less of its randomisation.

    Example, inside of a jitted function::

      rollout(weakened(env, jnp.minimum(1.0, steps / 1e6)), policy, params, state, 64)

    Args:
      env: with any wrappers.
      strength: 0 for none, 1 for all. A factor f becomes `1 + strength (f - 1)`; shifts, delays
        (rounded) and noise are multiplied by it. May be traced.
    """
    if not isinstance(env, Wrapper):
        return env
    env = copy.copy(env)
    env.env = weakened(env.env, strength)
    if isinstance(env, Randomisation):
        env.strength = strength
    return env


def _check_single(env: Env, kind: type) -> None:
    """What is under way is kept by a fixed name: a second wrapper would overwrite the first's."""
    while isinstance(env, Wrapper):
        if isinstance(env, kind):
            raise ValueError(f"{kind.__name__}: the environment has one already; only one is valid")
        env = env.env


class Randomise(Randomisation):
    """Draws model fields anew for every episode.

    A factor on `body_mass` applies to `body_inertia` too, one on `actuator_gainprm` to
    `actuator_biasprm`. The constants that MuJoCo derives are computed at reset and travel in the
    state.

    Example::

      env = Randomise(envs.make("DofbotReacher"), {"body_mass": Uniform(0.5, 2.0)})
    """

    def __init__(self, env: Env, fields: Mapping[str, Uniform]) -> None:
        """Prepares the draws.

        Args:
          env: an environment on a MuJoCo model.
          fields: a distribution for each field of `MjModel` that varies; one of `MjOption` is
            named `opt.<field>`.

        Raises:
          ValueError: on an unknown field, one that isn't made of real numbers or that no contact
            uses, a companion given beside its principal, or a principal that would be shifted.
        """
        super().__init__(env)
        self._fields = dict(fields)
        self._nominal = {}
        for name, distribution in self._fields.items():
            companion = _COMPANIONS.get(name)
            if companion in self._fields:
                raise ValueError(f"{companion!r} follows {name!r} and can't be given beside it")
            if companion and distribution.operation == "shift":
                raise ValueError(f"{name!r} and {companion!r} vary together: only 'scale' is valid")
            for field in filter(None, (name, companion)):
                self._nominal[field] = _nominal(env, field)

    def reset(self, key: jax.Array, model: Mapping[str, jax.Array] | None = None) -> State:
        """See `Env.reset`; fields in `model` win over the draws, and so over their companions'."""
        key, draw_key = jax.random.split(key)
        model = model or {}
        given = {*model, *(_COMPANIONS.get(name) for name in model)}
        drawn = {k: v for k, v in self.draw(draw_key).items() if k not in given}
        return self.env.reset(key, {**drawn, **model})

    def draw(self, key: jax.Array) -> dict[str, jax.Array]:
        """The model fields of one episode."""
        fields = {}
        keys = jax.random.split(key, len(self._fields))
        for k, (name, distribution) in zip(keys, self._fields.items(), strict=True):
            value = self._nominal[name]
            bounds = {"minval": distribution.low, "maxval": distribution.high}
            if distribution.operation == "shift":
                shift = jax.random.uniform(k, value.shape, **bounds)
                fields[name] = value + self.strength * shift
                continue
            factor = jax.random.uniform(k, value.shape[:1], **bounds)
            factor = 1 + self.strength * (factor - 1)
            for field in filter(None, (name, _COMPANIONS.get(name))):
                value = self._nominal[field]
                fields[field] = value * factor.reshape(factor.shape + (1,) * (value.ndim - 1))
        return fields


def _nominal(env: Env, field: str) -> jax.Array:
    physics = env.unwrapped.physics
    value = physics.model_field(field)
    if value.dtype.kind != "f":
        raise ValueError(f"{field!r} isn't made of real numbers")
    m = physics.mj_model
    if field in _OF_CONTACTS and not (m.geom_contype.any() and m.geom_conaffinity.any()):
        raise ValueError(
            f"{field!r} changes nothing: if this model has contacts, they are of explicit pairs, "
            f"whose field is {_OF_CONTACTS[field]!r}"
        )
    return jnp.asarray(value, jnp.result_type(float))


class Latency(Randomisation):
    """Actions act, and observations are seen, some control steps late.

    How many is drawn for every episode. Until the second action is due the first one acts, at once;
    until the second observation is, the first is seen. What is under way is in `info["latency"]`.
    """

    def __init__(
        self, env: Env, action: tuple[int, int] = (0, 0), observation: tuple[int, int] = (0, 0)
    ) -> None:
        """Prepares the delays.

        Args:
          env: the environment.
          action: the fewest and the most control steps by which actions are late.
          observation: the same of observations.

        Raises:
          ValueError: unless `0 <= fewest <= most`, whole numbers; on a second one.
        """
        _check_single(env, Latency)
        super().__init__(env)
        self._action = _whole("action", *action)
        self._observation = _whole("observation", *observation)

    def reset(self, key: jax.Array, model: Mapping[str, jax.Array] | None = None) -> State:
        """See `Env.reset`."""
        key, action_key, observation_key = jax.random.split(key, 3)
        state = self.env.reset(key, model)

        def draw(key: jax.Array, span: tuple[int, int]) -> jax.Array:
            steps = jax.random.randint(key, (), span[0], span[1] + 1)
            return jnp.round(self.strength * steps).astype(steps.dtype)

        latency = {
            "first": jnp.ones((), bool),
            "action_steps": draw(action_key, self._action),
            "actions": jnp.zeros((self._action[1] + 1, self.action_size)),
            "observation_steps": draw(observation_key, self._observation),
            "observations": _repeat(state.obs, self._observation[1] + 1),
        }
        return state.replace(info={**state.info, "latency": latency})

    def step(self, state: State, action: jax.Array) -> State:
        """See `Env.step`."""
        latency = state.info["latency"]
        actions = _repeat(action, self._action[1] + 1)
        actions = jnp.where(latency["first"], actions, _push(latency["actions"], action))
        state = self.env.step(state, actions[latency["action_steps"]])
        observations = jax.tree.map(_push, latency["observations"], state.obs)
        seen = jax.tree.map(lambda x: x[latency["observation_steps"]], observations)
        new = {"first": jnp.zeros((), bool), "actions": actions, "observations": observations}
        return state.replace(obs=seen, info={**state.info, "latency": {**latency, **new}})


def _whole(name: str, low: float, high: float) -> tuple[int, int]:
    if low != int(low) or high != int(high) or not 0 <= low <= high:
        raise ValueError(
            f"{name} latency must be whole numbers, 0 <= low <= high, got {(low, high)}"
        )
    return int(low), int(high)


class ObservationNoise(Randomisation):
    """Adds Gaussian noise to observations of the kind "state".

    Its standard deviation, in units of the observation, is drawn for every episode.
    """

    def __init__(self, env: Env, low: float, high: float) -> None:
        """Prepares the noise.

        Args:
          env: the environment.
          low: the least standard deviation.
          high: the greatest.

        Raises:
          ValueError: unless `0 <= low <= high`; on a second one.
        """
        _check_single(env, ObservationNoise)
        super().__init__(env)
        if not 0 <= low <= high:
            raise ValueError(f"observation noise must be 0 <= low <= high, got {(low, high)}")
        self._low, self._high = low, high

    def reset(self, key: jax.Array, model: Mapping[str, jax.Array] | None = None) -> State:
        """See `Env.reset`."""
        key, draw_key, noise_key = jax.random.split(key, 3)
        std = self.strength * jax.random.uniform(draw_key, minval=self._low, maxval=self._high)
        return self._disturb(self.env.reset(key, model), noise_key, std)

    def step(self, state: State, action: jax.Array) -> State:
        """See `Env.step`."""
        noise = state.info["observation_noise"]
        return self._disturb(self.env.step(state, action), noise["key"], noise["std"])

    def _disturb(self, state: State, key: jax.Array, std: jax.Array) -> State:
        next_key, key = jax.random.split(key)
        obs, tree = jax.tree.flatten(state.obs)
        kinds = [spec.kind for spec in jax.tree.leaves(self.observation_spec)]
        keys = jax.random.split(key, len(obs))
        obs = [
            x + std * jax.random.normal(k, x.shape) if kind == "state" else x
            for x, k, kind in zip(obs, keys, kinds, strict=True)
        ]
        info = {**state.info, "observation_noise": {"key": next_key, "std": std}}
        return state.replace(obs=jax.tree.unflatten(tree, obs), info=info)


def _repeat(tree: Observation, times: int) -> Observation:
    return jax.tree.map(lambda x: jnp.repeat(x[None], times, axis=0), tree)


def _push(queue: jax.Array, newest: jax.Array) -> jax.Array:
    """A queue `[k, ...]`, newest first, without its oldest."""
    return jnp.concatenate([newest[None], queue[:-1]])
