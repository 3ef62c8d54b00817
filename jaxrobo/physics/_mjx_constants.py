"""The constants that MuJoCo derives from a model's parameters, in JAX."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from jaxrobo.physics._mjx import kinematics, mass_matrix, mjx

_FREE, _BALL = mjx.JointType.FREE, mjx.JointType.BALL
_SLIDES = 2
"""`body_simple` of a body that can only slide; its inverse weight is that of its mass alone."""


def set_const(model: mjx.Model, data: mjx.Data) -> dict[str, jax.Array]:
    """What `mj_setConst` derives and the dynamics read, at the configuration `qpos0`.

    With the inertia matrix M, an inverse weight is the mean over the axes of the diagonal of
    J M^-1 J^T. For a body, J is the Jacobian of its centre of mass, in translation and in rotation;
    for a degree of freedom a unit vector (those of one joint are averaged); for a tendon its own.

    Args:
      model: the model, with the parameters of one simulation in place.
      data: any data of this model.

    Returns:
      The constants by their names in `MjModel`.
    """
    data = mjx.com_pos(model, kinematics(model, data.replace(qpos=model.qpos0)))
    data = mjx.transmission(model, mjx.crb(model, mjx.tendon(model, data)))
    inertia = mass_matrix(model, data)
    inverse = jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(inertia), jnp.eye(model.nv))
    moment, tendon = data._impl.actuator_moment, data._impl.ten_J
    return {
        "body_subtreemass": _subtree_mass(model),
        "body_invweight0": _body_inverse_weight(model, data, inverse),
        "dof_invweight0": _dof_inverse_weight(model, inverse),
        "dof_M0": jnp.diag(inertia),
        "tendon_length0": data.ten_length,
        "tendon_invweight0": jnp.einsum("ti,ij,tj->t", tendon, inverse, tendon),
        "actuator_length0": data.actuator_length,
        "actuator_acc0": jnp.linalg.norm(moment @ inverse, axis=1),
    }


def _subtree_mass(model: mjx.Model) -> jax.Array:
    descends = np.eye(model.nbody)
    for body in range(model.nbody - 1, 0, -1):
        descends[model.body_parentid[body]] += descends[body]
    return jnp.asarray(descends, model.body_mass.dtype) @ model.body_mass


def _body_inverse_weight(model: mjx.Model, data: mjx.Data, inverse: jax.Array) -> jax.Array:
    """[nbody, 2]: in translation and in rotation; zero for bodies fixed to the world."""
    jacobian = jax.vmap(mjx.jac, in_axes=(None, None, 0, 0))
    weights = []
    for jac in jacobian(model, data, data.xipos, jnp.arange(model.nbody)):
        weights.append(jnp.einsum("bia,ij,bja->b", jac, inverse, jac) / 3)
    general = jnp.where(model.body_weldid[:, None] == 0, 0, jnp.stack(weights, axis=1))
    sliding = jnp.stack([1 / _mass(model), jnp.zeros(model.nbody)], axis=1)
    return jnp.where(model.body_simple[:, None] == _SLIDES, sliding, general)


def _dof_inverse_weight(model: mjx.Model, inverse: jax.Array) -> jax.Array:
    """[nv]: averaged over the axes of a ball joint, and over each half of a free joint."""
    mean = np.eye(model.nv)
    for kind, start in zip(model.jnt_type, model.jnt_dofadr, strict=True):
        for first in {_FREE: (start, start + 3), _BALL: (start,)}.get(kind, ()):
            mean[first : first + 3, first : first + 3] = 1 / 3
    general = jnp.asarray(mean, inverse.dtype) @ jnp.diag(inverse)
    body = model.dof_bodyid
    return jnp.where(model.body_simple[body] == _SLIDES, 1 / _mass(model)[body], general)


def _mass(model: mjx.Model) -> jax.Array:
    return jnp.maximum(model.body_mass, mujoco.mjMINVAL)
