"""One time step of MuJoCo XLA, made to agree with MuJoCo's C engine.

The stages are MJX's own. Added is what the C engine does and MJX leaves out:

- the term J' v of connect and weld constraints, where J' is the time derivative of their Jacobian;
- with the implicitfast integrator, no velocity derivative of an actuator at its force limit;
- with the implicitfast integrator, the gyroscopic derivative of free bodies.

Without them the engines part from each other as soon as a welded body turns, an actuator saturates
or a free body tumbles; with them they agree to rounding (the tests compare in float64).
"""

import functools

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from jaxrobo.physics._mjx import jacobian_rate, kinematics, mass_matrix, mjx
from jaxrobo.physics._mjx_collision import collision
from jaxrobo.physics._mjx_solver import solve
from jaxrobo.physics.rotations import quat_conjugate, quat_multiply

_NO_EQUALITY = mjx.DisableBit.EQUALITY | mjx.DisableBit.CONSTRAINT


def step(model: mjx.Model, data: mjx.Data) -> mjx.Data:
    """Advances positions, velocities, activations, time and warm start; the rest is stale."""
    data = accelerations(model, data)
    implicit = model.opt.integrator == mjx.IntegratorType.IMPLICITFAST
    return _implicitfast(model, data) if implicit else mjx.euler(model, data)


def accelerations(model: mjx.Model, data: mjx.Data) -> mjx.Data:
    """Poses, velocities, forces and accelerations of a state, its constraints solved."""
    data = _position(model, data)
    data = _add_constraint_drift(model, mjx.fwd_velocity(model, data))
    data = mjx.fwd_acceleration(model, mjx.fwd_actuation(model, data))
    data = data.replace(qacc=data.qacc_smooth)
    if data._impl.efc_J.size:
        data = solve(model, data)
    return data


def _position(model: mjx.Model, data: mjx.Data) -> mjx.Data:
    data = mjx.com_pos(model, kinematics(model, data))
    data = mjx.factor_m(model, mjx.crb(model, mjx.tendon(model, data)))
    data = mjx.make_constraint(model, collision(model, data))
    return mjx.transmission(model, data)


def _add_constraint_drift(model: mjx.Model, data: mjx.Data) -> mjx.Data:
    """Subtracts J' v from the reference acceleration of connect and weld rows, which come first."""
    connects = np.flatnonzero(model.eq_type == mjx.EqType.CONNECT)
    welds = np.flatnonzero(model.eq_type == mjx.EqType.WELD)
    if model.opt.disableflags & _NO_EQUALITY or not connects.size + welds.size:
        return data
    connect_rows = _drift(model, data, connects, 0, 3)[:, :3].ravel()
    weld_rows = _drift(model, data, welds, 3, 0).ravel()
    drift = jnp.concatenate([connect_rows, weld_rows])
    aref = data._impl.efc_aref.at[: drift.size].add(-drift)
    return data.tree_replace({"_impl.efc_aref": aref})


def _drift(
    model: mjx.Model, data: mjx.Data, ids: np.ndarray, anchor1: int, anchor2: int
) -> jax.Array:
    """J' v of constraints between two frames; zero where inactive.

    It is the second time derivative of the residual at zero joint acceleration. For the rotation,
    whose residual is the vector part of Q = q2* q1, with angular velocities w and accelerations a,

        Q'' = 1/2 q2* (a1 - a2 + 1/2 ((w1 - w2) w1 - w2 (w1 - w2))) q1.

    Args:
      model: the model.
      data: with positions and velocities.
      ids: the constraints. [n]
      anchor1: where the anchor in the first frame starts in `eq_data`.
      anchor2: the same for the second.

    Returns:
      Translation and rotation. [n, 6]
    """
    if not ids.size:
        return jnp.zeros((0, 6))
    sites = model.eq_objtype[ids] == mujoco.mjtObj.mjOBJ_SITE
    terms = model.eq_data[ids]
    first = _frame(model, data, sites, model.eq_obj1id[ids], terms[:, anchor1 : anchor1 + 3])
    second = _frame(model, data, sites, model.eq_obj2id[ids], terms[:, anchor2 : anchor2 + 3])
    (linear1, angular1, velocity1, quat1), (linear2, angular2, velocity2, quat2) = first, second
    quat1 = jnp.where(sites[:, None], quat1, quat_multiply(quat1, terms[:, 6:10]))
    velocity = velocity1 - velocity2
    product = quat_multiply(velocity, velocity1) - quat_multiply(velocity2, velocity)
    angular = angular1 - angular2 + 0.5 * product
    rotation = 0.5 * quat_multiply(quat_conjugate(quat2), quat_multiply(angular, quat1))[:, 1:]
    drift = jnp.concatenate([linear1 - linear2, rotation * terms[:, 10:11]], axis=1)
    return drift * data.eq_active[ids, None]


def _frame(
    model: mjx.Model, data: mjx.Data, sites: np.ndarray, ids: np.ndarray, anchors: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Linear and angular acceleration, angular velocity and orientation of sites or bodies.

    Accelerations are those at zero joint acceleration; the linear one is that of the site, or of
    the anchor in the body's frame. Angular quantities are quaternions without scalar part.
    """
    body = np.where(sites, 0, ids)
    quat = data.xquat[body]
    point = data.xpos[body] + jnp.einsum("nij,nj->ni", data.xmat[body], anchors)
    if sites.any():
        site = np.where(sites, ids, 0)
        body = np.where(sites, model.site_bodyid[site], body)
        at_site = quat_multiply(data.xquat[body], model.site_quat[site])
        quat = jnp.where(sites[:, None], at_site, quat)
        point = jnp.where(sites[:, None], data.site_xpos[site], point)
    linear, angular = jacobian_rate(model, data, point, jnp.asarray(body))
    pure = lambda vector: jnp.pad(vector, ((0, 0), (1, 0)))
    return data.qvel @ linear, pure(data.qvel @ angular), pure(data.cvel[body, :3]), quat


def _implicitfast(model: mjx.Model, data: mjx.Data) -> mjx.Data:
    """(M - h dF/dv) a = F, then a semi-implicit Euler step with the acceleration a.

    dF/dv has the sparsity of the inertia matrix, as in the C engine.
    """
    force = data.qfrc_smooth + data.qfrc_constraint
    derivative = mjx.deriv_smooth_vel(_without_saturated(model, data), data)
    if derivative is None:  # actuation and dampers are both disabled
        derivative = jnp.zeros((model.nv, model.nv))
    derivative = jnp.where(_coupled(model), derivative, 0)
    inertia = mass_matrix(model, data) - model.opt.timestep * derivative
    qacc = jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(inertia), force)
    free = _free_bodies(model)
    if free.size:
        dofs = model.body_dofadr[free][:, None] + np.arange(6)
        gyroscopic = jax.vmap(functools.partial(_gyroscopic, data))(free, dofs[:, 3:])
        blocks = inertia[dofs[:, :, None], dofs[:, None, :]]
        blocks = blocks.at[:, :, 3:].add(model.opt.timestep * gyroscopic)
        qacc = qacc.at[dofs].set(jnp.linalg.solve(blocks, force[dofs][..., None])[..., 0])
    # Euler's step without its own implicit damping; the warm start is the solver's acceleration.
    flags = model.opt.disableflags | mjx.DisableBit.EULERDAMP
    explicit = model.tree_replace({"opt.disableflags": flags})
    return mjx.euler(explicit, data.replace(qacc=qacc)).replace(qacc_warmstart=data.qacc)


def _without_saturated(model: mjx.Model, data: mjx.Data) -> mjx.Model:
    """The model where actuators at a limit of their force don't react to velocity."""
    low, high = model.actuator_forcerange.T
    reacts = (data.actuator_force > low) & (data.actuator_force < high)
    reacts |= ~model.actuator_forcelimited.astype(bool)
    gain = model.actuator_gainprm.at[:, 2].mul(reacts)
    bias = model.actuator_biasprm.at[:, 2].mul(reacts)
    return model.tree_replace({"actuator_gainprm": gain, "actuator_biasprm": bias})


def _coupled(model: mjx.Model) -> np.ndarray:
    """Which pairs of degrees of freedom lie on one path to the root. [nv, nv]."""
    ancestors = np.eye(model.nv, dtype=bool)
    for dof, parent in enumerate(model.dof_parentid):
        if parent >= 0:
            ancestors[dof] |= ancestors[parent]
    return ancestors | ancestors.T


def _free_bodies(model: mjx.Model) -> np.ndarray:
    """Bodies whose free joint is the only joint of their tree."""
    free = model.jnt_bodyid[model.jnt_type == mjx.JointType.FREE]
    trees = model.dof_treeid[model.body_dofadr[free]]
    return free[np.bincount(model.dof_treeid, minlength=1)[trees] == 6]


def _gyroscopic(data: mjx.Data, body: jax.Array, dofs: jax.Array) -> jax.Array:
    """d(bias)/d(angular velocity) of a free body and what is fixed to it. [6, 3].

    With the mass m, the inertia I about the centre of mass and its offset s from the body's origin,
    the bias is m a in translation and R^T (s x m a + w x I w) in rotation, with a = w x (w x s) and
    w = R v.
    """
    xx, yy, zz, xy, xz, yz, _, _, _, mass = data._impl.crb[body]
    inertia = jnp.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    offset = data.subtree_com[body] - data.xpos[body]
    rotation = data.xmat[body]

    def bias(local: jax.Array) -> jax.Array:
        w = rotation @ local
        force = mass * jnp.cross(w, jnp.cross(w, offset))
        torque = jnp.cross(offset, force) + jnp.cross(w, inertia @ w)
        return jnp.concatenate([force, rotation.T @ torque])

    return jax.jacfwd(bias)(data.qvel[dofs])
