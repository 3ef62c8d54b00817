"""The spaces of gymnasium that an environment has."""

import numpy as np
from gymnasium import spaces

from jaxrobo.env import Env, Spec


def observation_space(spec: Spec | dict[str, Spec]) -> spaces.Space:
    """The gymnasium space of one simulation's observations.

    Integers span the values of their dtype, real numbers are unbounded.
    """
    if isinstance(spec, dict):
        return spaces.Dict({k: observation_space(s) for k, s in spec.items()})
    dtype = np.dtype(spec.dtype)
    limits = np.iinfo(dtype) if dtype.kind in "iu" else None
    low, high = (limits.min, limits.max) if limits else (-np.inf, np.inf)
    return spaces.Box(low, high, spec.shape, dtype.type)


def action_space(env: Env) -> spaces.Box:
    """The gymnasium space of one simulation's actions, [-1, 1]."""
    return spaces.Box(-1.0, 1.0, (env.action_size,), np.float32)
