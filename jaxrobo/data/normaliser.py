"""Scales data by what a data set looks like; frozen from then on.

For statistics of a stream that goes on see `jaxrobo.learning.normaliser`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxrobo.data.trajectories import DataError, Trajectories, named
from jaxrobo.env import Observation, Spec
from jaxrobo.networks import flatten_observation

ACTION = "action"
"""What the actions are called among the observations."""

MIN_SCALE = 0.01
"""A dimension that varies less is treated as if it varied so much. Without that, the tilt of a part
that lies flat in all demonstrations, some microradians, would be the loudest of all observations
once it doesn't."""

MAX_OBSERVED = 5.0
"""Normalised observations are clipped to +- this."""


@struct.dataclass
class Normaliser:
    """`(x - offset) / scale` of each dimension, by name: the observations' and "action".

    Attributes:
      offset: the shape of a row.
      scale: the shape of a row, positive.
    """

    offset: dict[str, jax.Array]
    scale: dict[str, jax.Array]


def fit(
    trajectories: Trajectories,
    kind: Literal["min_max", "standard"] = "min_max",
    keys: Sequence[str] | None = None,
) -> Normaliser:
    """Fits a normaliser of the actions and the observations on a training set.

    "min_max":   offset = (max + min) / 2, scale = (max - min) / 2, so the data is within [-1, 1]
    "standard":  offset = mean, scale = standard deviation (of the population)

    A constant dimension has scale 1 and becomes 0, as in robust-rearrangement's `LinearNormalizer`;
    one that varies has a scale of at least `MIN_SCALE`, unlike there.

    Args:
      trajectories: the training set.
      kind: which of the two.
      keys: the observations to normalise; those that are vectors of floating-point numbers if None,
        so neither points nor images.

    Raises:
      DataError: if there is no such observation.
      ValueError: on an unknown kind.
    """
    if kind not in _FITS:
        raise ValueError(f"unknown kind {kind!r}; valid: {', '.join(_FITS)}")
    obs = trajectories.obs
    if keys is None:
        keys = [k for k, v in obs.items() if v.ndim == 2 and np.issubdtype(v.dtype, np.floating)]
    if missing := [k for k in keys if k not in obs]:
        raise DataError(f"there is no observation {missing[0]!r}; found {', '.join(obs)}")
    data = {**{k: obs[k] for k in keys}, ACTION: trajectories.action}
    stats = {k: _FITS[kind](np.asarray(v, np.float64)) for k, v in data.items()}
    single = lambda x: np.asarray(x, np.float32)
    return Normaliser(
        {k: single(offset) for k, (offset, _) in stats.items()},
        {k: single(_usable(scale)) for k, (_, scale) in stats.items()},
    )


def normalise(normaliser: Normaliser, key: str, x: jax.Array) -> jax.Array:
    """Normalises data of one name; any leading axes."""
    return (x - jnp.asarray(normaliser.offset[key])) / jnp.asarray(normaliser.scale[key])


def denormalise(normaliser: Normaliser, key: str, x: jax.Array) -> jax.Array:
    """The inverse of `normalise`."""
    return x * jnp.asarray(normaliser.scale[key]) + jnp.asarray(normaliser.offset[key])


def normalise_observation(normaliser: Normaliser, observation: Observation) -> Observation:
    """Normalises an observation and clips it to +- `MAX_OBSERVED`.

    Entries that the normaliser wasn't fitted on stay as they are.
    """
    clipped = lambda x: jnp.clip(x, -MAX_OBSERVED, MAX_OBSERVED)
    entries = {
        k: clipped(normalise(normaliser, k, v)) if k in normaliser.offset else v
        for k, v in named(observation).items()
    }
    return entries if isinstance(observation, Mapping) else next(iter(entries.values()))


def network_input(
    normaliser: Normaliser, spec: Spec | dict[str, Spec], observation: Observation
) -> jax.Array:
    """A normalised observation as one vector `[n]`, its entries in the order of their names."""
    return flatten_observation(spec, normalise_observation(normaliser, observation))


def to_dict(normaliser: Normaliser, episodes: int) -> dict[str, Any]:
    """What JSON can hold, without loss.

    Args:
      normaliser: what to store.
      episodes: how many it was fitted on.
    """
    keys = {
        k: {"offset": np.asarray(v).tolist(), "scale": np.asarray(normaliser.scale[k]).tolist()}
        for k, v in normaliser.offset.items()
    }
    return {"episodes": episodes, "keys": keys}


def from_dict(values: Mapping[str, Any] | None, episodes: int, where: str) -> Normaliser:
    """The inverse of `to_dict`.

    Args:
      values: what was stored, or None if nothing was.
      episodes: how many there are now.
      where: what to call the file in an error.

    Raises:
      DataError: if there is no normaliser, or it was fitted on another number of episodes.
    """
    if values is None:
        raise DataError(f"{where}: there is no normaliser")
    if values["episodes"] != episodes:
        raise DataError(
            f"{where}: the normaliser was fitted on {values['episodes']} episodes, but there are "
            f"{episodes}"
        )
    read = lambda name: {k: np.asarray(v[name], np.float32) for k, v in values["keys"].items()}
    return Normaliser(read("offset"), read("scale"))


def _usable(scale: np.ndarray) -> np.ndarray:
    return np.where(scale == 0, 1.0, np.maximum(scale, MIN_SCALE))


def _min_max(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    low, high = x.min(axis=0), x.max(axis=0)
    return (high + low) / 2, (high - low) / 2


def _standard(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    constant = x.min(axis=0) == x.max(axis=0)  # rounding leaves it a deviation
    return np.where(constant, x[0], x.mean(axis=0)), np.where(constant, 0, x.std(axis=0))


_FITS = {"min_max": _min_max, "standard": _standard}
