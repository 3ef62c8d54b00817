"""When two parts are assembled, and where the parts of FurnitureBench's furniture go.

The poses and tolerances are those of FurnitureBench's simulation and of robust-rearrangement's fork
of it (`furniture_bench/furniture/*.py` and their `config.py`, commit 52e7c68). Of its mug rack,
whose 25 poses are recordings, there is none here.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobo.physics.rotations import (
    matrix_to_quat,
    quat_conjugate,
    quat_multiply,
    quat_rotate,
    quat_to_matrix,
    quat_to_rotvec,
)

POS_TOLERANCE = 0.005
"""m, along each axis of the first part (`pos_eps` in simulation)."""

COS_TOLERANCE = 0.94
"""Least cosine between each axis of the second part and where it should point: 20 degrees."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two parts that belong together.

    Attributes:
      a: index of the first part.
      b: index of the second.
      pos: where the origin of `b` may be in the frame of `a`, m. [K, 3]
      rot: the rotation of `b` in `a` that belongs to each; None if any will do. [K, 3, 3]
    """

    a: int
    b: int
    pos: np.ndarray
    rot: np.ndarray | None


def assembled(
    pair: Pair, pos_a: jax.Array, quat_a: jax.Array, pos_b: jax.Array, quat_b: jax.Array
) -> jax.Array:
    """Whether `b` is where one of the goal poses wants it in `a`.

    Args:
      pair: the goal poses; its indices aren't used.
      pos_a: position of the first part, m. [3]
      quat_a: its orientation, wxyz. [4]
      pos_b: position of the second. [3]
      quat_b: its orientation. [4]

    Returns:
      bool. []
    """
    inverse = quat_conjugate(quat_a)
    place = quat_rotate(inverse, pos_b - pos_a)
    good = jnp.all(jnp.abs(place - pair.pos) <= POS_TOLERANCE, axis=-1)
    if pair.rot is not None:
        rot = quat_to_matrix(quat_multiply(inverse, quat_b))
        cosines = jnp.sum(rot * pair.rot, axis=-2)
        good &= jnp.all(cosines >= COS_TOLERANCE, axis=-1)
    return jnp.any(good)


def error(
    pair: Pair, pos_a: jax.Array, quat_a: jax.Array, pos_b: jax.Array, quat_b: jax.Array
) -> jax.Array:
    """How `a` must move and turn to meet `b`, by the nearest of the goal poses, in world axes.

    It moves by the translation, then turns about the point of it where `b`'s origin belongs.

    Args:
      pair: see `assembled`.
      pos_a: see `assembled`.
      quat_a: see `assembled`.
      pos_b: see `assembled`.
      quat_b: see `assembled`.

    Returns:
      Translation, m, and rotation vector, rad, which is zero if any orientation will do. [6]
    """
    move = pos_b - pos_a - jax.vmap(lambda p: quat_rotate(quat_a, p))(jnp.asarray(pair.pos))
    nearest = jnp.argmin(jnp.sum(jnp.square(move), axis=-1))
    if pair.rot is None:
        return jnp.append(move[nearest], jnp.zeros(3))
    goals = jax.vmap(matrix_to_quat)(jnp.asarray(pair.rot))
    turn = quat_multiply(quat_b, quat_conjugate(quat_multiply(quat_a, goals[nearest])))
    return jnp.append(move[nearest], quat_to_rotvec(turn))


def _about(axis: str, degrees: float) -> np.ndarray:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return {
        "x": np.array([[1, 0, 0], [0, c, -s], [0, s, c]]),
        "y": np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]),
        "z": np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]),
    }[axis]


def _pair(a: int, b: int, pos: Sequence, rot: np.ndarray | Sequence | None = np.eye(3)) -> Pair:
    pos = np.atleast_2d(np.asarray(pos, float))
    if rot is not None:
        rot = np.broadcast_to(np.asarray(rot, float), (len(pos), 3, 3))
    return Pair(a, b, pos, rot)


_TABLE_HOLES = [(x, 0.046875, z) for x in (-0.05625, 0.05625) for z in (-0.05625, 0.05625)]
_DESK_HOLES = [(x, 0.065625, z) for x in (-0.080, 0.080) for z in (-0.05, 0.05)]
_STOOL_TURNS = [_about("y", degrees) for degrees in (0, 120, 240)]

GOALS: dict[str, tuple[Pair, ...]] = {
    "one_leg": (_pair(0, 4, _TABLE_HOLES),),
    "square_table": tuple(_pair(0, leg, _TABLE_HOLES) for leg in range(1, 5)),
    "lamp": (
        _pair(0, 1, (0, -0.0678, 0), np.diag([-1, -1, 1])),
        _pair(0, 2, (0, -0.088324, 0), None),
    ),
    "round_table": (
        _pair(0, 1, (0, 0, 0.044375), _about("z", 185) @ _about("x", 90)),
        _pair(1, 2, (0, 0.053125, 0), [[0, -1, 0], [0, 0, 1], [-1, 0, 0]]),
    ),
    "factory_peg_hole": (_pair(0, 1, (0, 0, 0)),),
    "factory_nut_bolt": (_pair(0, 1, (0, 0, 0)),),
    "desk": tuple(_pair(0, leg, _DESK_HOLES) for leg in range(1, 5)),
    "stool": tuple(
        _pair(
            0,
            leg,
            [turn @ (0, 0.045, 0.0405) for turn in _STOOL_TURNS],
            [turn @ _about("y", 90) for turn in _STOOL_TURNS],
        )
        for leg in range(1, 4)
    ),
    "chair": (
        *(
            _pair(0, leg, [(x, 0.045, -0.01875) for x in (-0.03375, 0.03375)], _about("y", 90))
            for leg in (1, 2)
        ),
        _pair(0, 3, (0, -0.0325, 0.05025)),
        *(
            _pair(0, nut, [(x, 0, 0.0795) for x in (-0.035, 0.035)], _about("x", -90))
            for nut in (4, 5)
        ),
    ),
    "drawer": (_pair(0, 1, (0, -0.0345, 0.008)), _pair(0, 2, (0, 0.0105, 0.008))),
    "cabinet": (
        _pair(0, 1, (-0.0275, -0.0375, -0.025), _about("y", 90)),
        _pair(0, 2, (-0.02275, -0.0375, 0.025), _about("y", 90)),
        _pair(0, 3, (0, -0.0775, 0), _about("y", -90)),
    ),
}
"""The pairs of each task, by its name upstream; any of several poses will do."""
