"""Domain randomisation: model fields that differ from episode to episode."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp

from jaxrobo.env import Env, State, Wrapper

_COMPANIONS = {"body_mass": "body_inertia", "actuator_gainprm": "actuator_biasprm"}
"""Fields that mean nothing without another: the same factor is applied to both."""


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


class Randomise(Wrapper):
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
          ValueError: on an unknown field, one that isn't made of real numbers, a companion given
            beside its principal, or a principal that would be shifted.
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
        """See `Env.reset`; fields in `model` win over the draws."""
        key, draw_key = jax.random.split(key)
        return self.env.reset(key, {**self.draw(draw_key), **(model or {})})

    def draw(self, key: jax.Array) -> dict[str, jax.Array]:
        """The model fields of one episode."""
        fields = {}
        keys = jax.random.split(key, len(self._fields))
        for k, (name, distribution) in zip(keys, self._fields.items(), strict=True):
            value = self._nominal[name]
            bounds = {"minval": distribution.low, "maxval": distribution.high}
            if distribution.operation == "shift":
                fields[name] = value + jax.random.uniform(k, value.shape, **bounds)
                continue
            factor = jax.random.uniform(k, value.shape[:1], **bounds)
            for field in filter(None, (name, _COMPANIONS.get(name))):
                value = self._nominal[field]
                fields[field] = value * factor.reshape(factor.shape + (1,) * (value.ndim - 1))
        return fields


def _nominal(env: Env, field: str) -> jax.Array:
    value = env.unwrapped.physics.model_field(field)
    if value.dtype.kind != "f":
        raise ValueError(f"{field!r} isn't made of real numbers")
    return jnp.asarray(value, jnp.result_type(float))
