"""Collision detection of MuJoCo XLA, with planes and boxes as the C engine has them."""

import types

import jax
import jax.numpy as jnp
import numpy as np
from mujoco.mjx._src import collision_driver, collision_primitive, math

from jaxrobo.physics._mjx import mjx

_CORNERS = np.stack(np.meshgrid([-1, 1], [-1, 1], [-1, 1]), axis=-1).reshape(8, 3)


@collision_primitive.collider(ncon=4)
def _plane_box(
    plane: collision_primitive.GeomInfo, box: collision_primitive.GeomInfo
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The four lowest corners.

    MJX's own looks only at corners within 1 mm of the lowest. A tilted box that falls on soft
    ground then stands on one corner where the C engine lets it stand on all that are below the
    surface, and sinks in twice as deep.
    """
    normal = plane.mat[:, 2]
    corners = box.pos + (_CORNERS * box.size) @ box.mat.T
    heights = (corners - plane.pos) @ normal
    _, lowest = jax.lax.top_k(-heights, 4)
    dist = heights[lowest]
    pos = corners[lowest] - 0.5 * dist[:, None] * normal
    return dist, pos, jnp.tile(math.make_frame(normal), (4, 1, 1))


_FUNCTIONS = collision_driver._COLLISION_FUNC | {(mjx.GeomType.PLANE, mjx.GeomType.BOX): _plane_box}

collision = types.FunctionType(
    mjx.collision.__code__,
    {**mjx.collision.__globals__, "_COLLISION_FUNC": _FUNCTIONS},
    "collision",
)
"""`mjx.collision` with these functions in place; MJX itself stays as it is."""
