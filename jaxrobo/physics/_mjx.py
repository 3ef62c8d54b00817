"""MuJoCo XLA as the engine uses it: imported quietly, its kinematics compiled well on CPUs.

The other modules of the engine take `mjx` from here.
"""

import contextlib
import types
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

with contextlib.redirect_stdout(None):  # it prints that the optional Warp isn't installed
    from mujoco import mjx
from mujoco.mjx._src import collision_driver, scan, support

from jaxrobo.physics.rotations import quat_normalise


def kinematics(model: mjx.Model, data: mjx.Data) -> mjx.Data:
    """Poses of bodies, geoms and sites: `mjx.kinematics`, but mocap bodies carry their children.

    `mjx.kinematics` itself moves a mocap body after its children have been placed.
    """
    mocap = np.flatnonzero(model.body_mocapid >= 0)
    if mocap.size:
        pos = model.body_pos.at[mocap].set(data.mocap_pos)
        quat = model.body_quat.at[mocap].set(quat_normalise(data.mocap_quat))
        model = model.tree_replace({"body_pos": pos, "body_quat": quat})
    return _staged_kinematics(model, data)


def _staged_body_tree(
    model: mjx.Model, fn: Callable, in_types: str, out_types: str, *args: Any
) -> Any:
    """`scan.body_tree`, where a CPU finishes one level of the tree before it starts the next.

    XLA on CPUs fuses the whole chain of bodies into one loop and computes every parent anew for
    each number of each descendant: a long arm takes many times as long, each further joint
    multiplies that, and compilation is slower too. A barrier between the levels prevents it,
    whichever `jit` compiles the program; no compiler option is needed.
    """

    def level(*carry_and_args: Any) -> Any:
        out = fn(*carry_and_args)
        return jax.lax.platform_dependent(
            out, cpu=jax.lax.optimization_barrier, default=lambda x: x
        )

    return scan.body_tree(model, level, in_types, out_types, *args)


_staged_kinematics = types.FunctionType(
    mjx.kinematics.__code__,
    {**mjx.kinematics.__globals__, "scan": types.SimpleNamespace(body_tree=_staged_body_tree)},
    "_staged_kinematics",
)
"""`mjx.kinematics` with its tree scan replaced; MJX itself stays as it is."""


jacobian_rate = jax.vmap(support.jac_dot, in_axes=(None, None, 0, 0))
"""`(model, data, points [n, 3], bodies [n])` -> the time derivatives of the Jacobians of points
fixed to bodies, in translation and in rotation; after `mjx.com_vel`. [n, nv, 3] each."""


def mass_matrix(model: mjx.Model, data: mjx.Data) -> jax.Array:
    """The joint-space inertia matrix, after `mjx.crb`. [nv, nv]."""
    return mjx.full_m(model, data) if mjx.is_sparse(model) else data._impl.M


def velocities(model: mjx.Model, data: mjx.Data) -> mjx.Data:
    """Velocities of bodies, tendons and actuators, after their Jacobians."""
    moment, ten_jacobian = data._impl.actuator_moment, data._impl.ten_J
    rates = {
        "_impl.actuator_velocity": moment @ data.qvel,
        "_impl.ten_velocity": ten_jacobian @ data.qvel,
    }
    return mjx.com_vel(model, data.tree_replace(rates))


contact_force_dim = support.contact_force_dim
"""`(model, data, dim)` -> the forces of the contacts of that dimension, each in its own frame
`[n, 6]`, and which contacts they are."""

geom_pairs = collision_driver.geom_pairs
"""`model` -> `(geom, geom, pair)` for every two geoms that may collide."""
