"""Samples as rows, to be shuffled at once."""

import math
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Samples = TypeVar("Samples")


def pack(samples: Samples) -> tuple[jax.Array, Callable[[jax.Array], Samples]]:
    """All that belongs to a sample in one row, and how to undo that.

    One array is shuffled in a fraction of the time that many take.

    Args:
      samples: a tree of arrays `[n, ...]` of one dtype.

    Returns:
      The rows, `[n, k]`, and a function of rows `[m, k]` that gives their samples.
    """
    leaves, structure = jax.tree.flatten(samples)
    shapes = [leaf.shape[1:] for leaf in leaves]
    ends = np.cumsum([math.prod(shape) for shape in shapes])

    def unpack(rows: jax.Array) -> Samples:
        columns = jnp.split(rows, ends[:-1], axis=1)
        parts = [c.reshape(-1, *shape) for c, shape in zip(columns, shapes, strict=True)]
        return structure.unflatten(parts)

    return jnp.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1), unpack
