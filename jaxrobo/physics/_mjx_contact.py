"""Contact sensors of MuJoCo XLA that read as those of the C engine do.

MJX's own see one contact of a pair at a time, and only between geoms. What is sensed here is what
`found` and `force` of MuJoCo's "netforce" reduction are: the number of contacts and the sum of
their forces, in world axes, of the first object on the second. The number may differ from the C
engine's, which finds up to 8 contacts between two boxes where MJX finds 4.
"""

import copy

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from jaxrobo.physics._mjx import contact_force_dim, mjx

_FOUND = 1 << int(mujoco.mjtConDataField.mjCONDATA_FOUND)
_FORCE = 1 << int(mujoco.mjtConDataField.mjCONDATA_FORCE)
_NET_FORCE = 3
_ANY = int(mujoco.mjtObj.mjOBJ_UNKNOWN)
_GEOM = int(mujoco.mjtObj.mjOBJ_GEOM)
_BODY = int(mujoco.mjtObj.mjOBJ_BODY)
_SUBTREE = int(mujoco.mjtObj.mjOBJ_XBODY)


def is_supported(m: mujoco.MjModel, sensor: int) -> bool:
    """Whether a contact sensor is of the kind above: between geoms, bodies or subtrees."""
    data, reduction, slots = m.sensor_intprm[sensor, :3]
    kinds = {int(m.sensor_objtype[sensor]), int(m.sensor_reftype[sensor])}
    return (
        slots == 1
        and kinds <= {_GEOM, _BODY, _SUBTREE, _ANY}
        and (data == _FOUND or (data in (_FORCE, _FOUND | _FORCE) and reduction == _NET_FORCE))
    )


def put_model(m: mujoco.MjModel) -> mjx.Model:
    """`mjx.put_model`, which refuses these sensors although it never gets to read them."""
    plain = copy.copy(m)
    for i in np.flatnonzero(m.sensor_type == mujoco.mjtSensor.mjSENS_CONTACT):
        plain.sensor_objtype[i] = plain.sensor_reftype[i] = _ANY
        plain.sensor_intprm[i] = [_FOUND, 0, 1]
    own = {k: getattr(m, k).copy() for k in ("sensor_objtype", "sensor_reftype", "sensor_intprm")}
    return mjx.put_model(plain, impl="jax").replace(**own)


def needs_force(m: mujoco.MjModel | mjx.Model) -> bool:
    """Whether a contact sensor measures a force."""
    contact = m.sensor_type == mujoco.mjtSensor.mjSENS_CONTACT
    return bool(np.any(m.sensor_intprm[contact, 0] & _FORCE))


def sense(model: mjx.Model, data: mjx.Data) -> jax.Array:
    """The sensordata with every contact sensor in place.

    Args:
      model: the model.
      data: after `mjx.collision`, and after the constraint solver if a force is measured.
    """
    sensors = np.flatnonzero(model.sensor_type == mujoco.mjtSensor.mjSENS_CONTACT)
    contact, values = data._impl.contact, data.sensordata
    if not sensors.size or not data._impl.ncon:
        return values
    geoms = jnp.stack([contact.geom1, contact.geom2], axis=-1)
    active = contact.dist < contact.includemargin
    forces = _world_forces(model, data) if needs_force(model) else None
    for i in sensors:
        first = _is_part(model, model.sensor_objtype[i], model.sensor_objid[i])[geoms]
        second = _is_part(model, model.sensor_reftype[i], model.sensor_refid[i])[geoms]
        along = active & first[:, 0] & second[:, 1]
        against = active & first[:, 1] & second[:, 0] & ~along
        parts = []
        if model.sensor_intprm[i, 0] & _FOUND:
            parts.append(jnp.sum(along | against)[None].astype(values.dtype))
        if model.sensor_intprm[i, 0] & _FORCE:
            sign = along.astype(values.dtype) - against.astype(values.dtype)
            parts.append(jnp.sum(sign[:, None] * forces, axis=0))
        start = model.sensor_adr[i]
        values = values.at[start : start + model.sensor_dim[i]].set(jnp.concatenate(parts))
    return values


def _world_forces(model: mjx.Model, data: mjx.Data) -> jax.Array:
    """The force of the first geom of every contact on the second, in world axes. [ncon, 3]."""
    contact = data._impl.contact
    forces = jnp.zeros((data._impl.ncon, 3))
    for dim in np.unique(contact.dim):
        local, rows = contact_force_dim(model, data, dim)
        world = jnp.einsum("ni,nij->nj", local[:, :3], contact.frame[rows])
        forces = forces.at[rows].set(world)
    return forces


def _is_part(model: mjx.Model, kind: int, index: int) -> jax.Array:
    """Which geoms belong to an object: a geom, a body, a body with all below it, or anything."""
    if kind == _GEOM:
        belongs = np.arange(model.ngeom) == index
    elif kind == _BODY:
        belongs = model.geom_bodyid == index
    elif kind == _SUBTREE:
        below = np.arange(model.nbody) == index
        for body in range(index + 1, model.nbody):
            below[body] |= below[model.body_parentid[body]]
        belongs = below[model.geom_bodyid]
    else:
        belongs = np.ones(model.ngeom, bool)
    return jnp.asarray(belongs)
