"""Kinematics of a serial chain: forward, Jacobian, inverse.

Everything is written for ONE configuration; `jax.vmap` makes it a batch. Lengths are in metres,
angles in radians, quaternions wxyz; poses, Jacobians and twists are in the frame of the base.

    chain = Chain.from_model(mj_model, tip="tool")
    pose = forward(chain, data.qpos[chain.qpos_adr])
    solutions = jax.vmap(inverse, (None, 0))(chain, positions)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from flax import struct

from jaxrobo.physics.rotations import (
    axis_angle_to_quat,
    quat_conjugate,
    quat_multiply,
    quat_rotate,
    quat_to_rotvec,
)

_IDENTITY = np.array([1.0, 0.0, 0.0, 0.0])

_BIAS = 1e-5
"""Squared damping at the solution, relative to the mean squared row of the Jacobian: low enough to
converge in a few steps, high enough for single precision at a singular configuration."""


class Pose(NamedTuple):
    """A position and an orientation.

    Attributes:
      pos: position, m. [3]
      quat: orientation, wxyz. [4]
    """

    pos: jax.Array
    quat: jax.Array


class Solution(NamedTuple):
    """Where `inverse` ended.

    Attributes:
      q: joint positions, within the limits. [n]
      pos_error: distance of the tip from the target position, m. []
      rot_error: angle between the tip and the target orientation, rad; 0 without such a target. []
      converged: whether both errors are within tolerance, bool. []
    """

    q: jax.Array
    pos_error: jax.Array
    rot_error: jax.Array
    converged: jax.Array


@struct.dataclass
class Chain:
    """The joints between a base and a tip, n of them, each of one degree of freedom.

    With M_i(q_i) the translation along or rotation about `axis[i]`, and F_i the constant transform
    between joint i - 1 and joint i, the pose of the tip is F_0 M_0(q_0) F_1 M_1(q_1) ... F_n.

    Attributes:
      link_pos: translations of F_0 ... F_n, m. [n + 1, 3]
      link_quat: rotations of F_0 ... F_n, wxyz. [n + 1, 4]
      axis: unit axes, each in the frame that its joint moves. [n, 3]
      sliding: whether each joint slides (else it turns), bool. [n]
      reference: where M_i is the identity (`qpos0`), m or rad. [n]
      lower: lower limits, m or rad; -inf where there is none. [n]
      upper: upper limits, m or rad; inf where there is none. [n]
      qpos_adr: places of the joints in `qpos`. [n]
      dof_adr: places of the joints in `qvel`. [n]
      joint_names: names of the joints, from the base to the tip; "" for one without a name.
    """

    link_pos: jax.Array
    link_quat: jax.Array
    axis: jax.Array
    sliding: jax.Array
    reference: jax.Array
    lower: jax.Array
    upper: jax.Array
    qpos_adr: jax.Array
    dof_adr: jax.Array
    joint_names: tuple[str, ...] = struct.field(pytree_node=False)

    @classmethod
    def from_model(cls, mj_model: mujoco.MjModel, tip: str, base: str | None = None) -> "Chain":
        """Reads the chain that ends at a site or a body.

        Args:
          mj_model: the model.
          tip: name of the site, or where there is no such site of the body, whose pose is meant.
          base: name of the body that poses are relative to; the world if None.

        Raises:
          ValueError: on an unknown name, a tip that isn't below the base, a chain without joints,
            or one with a free or a ball joint.
        """
        body, tip_pos, tip_quat = _find_tip(mj_model, tip)
        path = _path(mj_model, 0 if base is None else _find_base(mj_model, base), body)
        joints = [j for b in path for j in _joints_of(mj_model, b)]
        _check_joints(mj_model, joints, tip, base)
        link_pos, link_quat = _links(mj_model, path, tip_pos, tip_quat)
        qpos_adr = mj_model.jnt_qposadr[joints]
        lower, upper = _limits(mj_model, joints)
        real = jnp.result_type(float)
        return cls(
            link_pos=jnp.asarray(link_pos, real),
            link_quat=jnp.asarray(link_quat, real),
            axis=jnp.asarray(mj_model.jnt_axis[joints], real),
            sliding=jnp.asarray(mj_model.jnt_type[joints] == mujoco.mjtJoint.mjJNT_SLIDE),
            reference=jnp.asarray(mj_model.qpos0[qpos_adr], real),
            lower=lower,
            upper=upper,
            qpos_adr=jnp.asarray(qpos_adr),
            dof_adr=jnp.asarray(mj_model.jnt_dofadr[joints]),
            joint_names=tuple(mj_model.joint(j).name for j in joints),
        )

    @property
    def middle(self) -> jax.Array:
        """The middle of each range; without both limits, the allowed value nearest 0. [n]."""
        limited = jnp.isfinite(self.lower) & jnp.isfinite(self.upper)
        lower, upper = (jnp.where(limited, x, 0.0) for x in (self.lower, self.upper))
        return jnp.clip(0.5 * (lower + upper), self.lower, self.upper)


def forward(chain: Chain, q: jax.Array) -> Pose:
    """The pose of the tip.

    Args:
      chain: the chain.
      q: joint positions, m or rad. [n]

    Returns:
      Pose of the tip in the frame of the base.

    Raises:
      ValueError: if `q` isn't of shape [n].
    """
    return _tip_pose(chain, joint_poses(chain, q))


def joint_poses(chain: Chain, q: jax.Array) -> Pose:
    """The poses of the frames that the joints move, each with its origin at the joint's anchor.

    Args:
      chain: the chain.
      q: joint positions, m or rad. [n]

    Returns:
      Poses in the frame of the base: pos [n, 3], quat [n, 4].

    Raises:
      ValueError: if `q` isn't of shape [n].
    """
    _check_shape("q", q, (len(chain.joint_names),))
    motion = q - chain.reference
    slide = jnp.where(chain.sliding, motion, 0.0)[:, None] * chain.axis
    turn = axis_angle_to_quat(chain.axis, jnp.where(chain.sliding, 0.0, motion))
    relative = _compose(Pose(chain.link_pos[:-1], chain.link_quat[:-1]), Pose(slide, turn))

    base = Pose(jnp.zeros(3, slide.dtype), jnp.asarray(_IDENTITY, slide.dtype))

    def body(parent: Pose, child: Pose):
        pose = _compose(parent, child)
        return pose, pose

    return jax.lax.scan(body, base, relative)[1]


def jacobian(chain: Chain, q: jax.Array) -> jax.Array:
    """The geometric Jacobian: twist of the tip = J dq/dt.

    The column of a turning joint with axis a and anchor p is (a x (tip - p), a); that of a sliding
    joint is (a, 0).

    Args:
      chain: the chain.
      q: joint positions, m or rad. [n]

    Returns:
      Linear velocity of the tip in rows 0-2, angular velocity in rows 3-5. [6, n]

    Raises:
      ValueError: if `q` isn't of shape [n].
    """
    return _tip_and_jacobian(chain, q)[1]


def differential_ik(
    chain: Chain, q: jax.Array, error_twist: jax.Array, damping: float | jax.Array
) -> jax.Array:
    """One damped least-squares step towards a target, within the joint limits.

    dq minimises |J dq - e|^2 + damping^2 |dq|^2 over the joints that are free to move: one that is
    at a limit, and would reduce the error only beyond it, stays where it is and leaves the rest to
    the others. The step is then cut off at the limits.

    Sources: Nakamura and Hanafusa, "Inverse Kinematic Solutions with Singularity Robustness for
    Robot Manipulator Control", 1986; for the joints held, Bertsekas, "Projected Newton Methods for
    Optimization Problems with Simple Constraints", 1982.

    Args:
      chain: the chain.
      q: joint positions, m or rad. [n]
      error_twist: wanted motion of the tip: translation, m, then a rotation vector, rad, or the
        translation alone. [6] or [3]
      damping: weight of the joint motion; positive. In the units of J: m/rad, and 1. []

    Returns:
      Change of the joint positions, m or rad. [n]

    Raises:
      ValueError: on a wrong shape.
    """
    if error_twist.shape not in ((3,), (6,)):
        raise ValueError(f"error_twist has shape {error_twist.shape}, expected (3,) or (6,)")
    rows = _tip_and_jacobian(chain, q)[1][: error_twist.shape[0]]
    return _damped_step(chain, q, rows, error_twist, damping**2)


def pose_error(current: Pose, target: Pose) -> jax.Array:
    """The motion from one pose to another: translation, m, then the rotation vector, rad. [6]."""
    turn = quat_multiply(target.quat, quat_conjugate(current.quat))
    return jnp.concatenate([target.pos - current.pos, quat_to_rotvec(turn)])


def inverse(
    chain: Chain,
    pos: jax.Array,
    quat: jax.Array | None = None,
    q0: jax.Array | None = None,
    *,
    iterations: int = 50,
    rotation_weight: float = 0.1,
    pos_tolerance: float = 1e-4,
    rot_tolerance: float = 1e-3,
) -> Solution:
    """Joint positions that bring the tip to a position, or to a pose, from a given start.

    Takes `iterations` steps of `differential_ik`, the squared damping at each being the squared
    error plus a little: steps are short and safe far from the target, and Newton's close to it
    (Sugihara, "Solvability-Unconcerned Inverse Kinematics by the Levenberg-Marquardt Method",
    2011).

    The result is where descent from `q0` leads: a `q0` nearby gives a solution nearby. It may also
    be a configuration, folded against the limits, that no small motion improves; where every
    reachable target counts, solve from several starts with `jax.vmap` and keep the best.

    Args:
      chain: the chain.
      pos: target position of the tip, m. [3]
      quat: target orientation of the tip, wxyz; any orientation will do if None. [4]
      q0: where to start, m or rad; `chain.middle` if None. [n]
      iterations: number of steps, always all taken. Following a moving target from the previous
        solution needs one or two; 50 are for a distant one.
      rotation_weight: metres of position error that count as much as a radian of rotation error;
        decides between the two where the target can't be reached.
      pos_tolerance: largest position error that counts as converged, m.
      rot_tolerance: largest rotation error that counts as converged, rad.

    Returns:
      The joint positions, exactly within the limits whether converged or not, and the errors there.

    Raises:
      ValueError: on a wrong shape.
    """
    _check_shape("pos", pos, (3,))
    if quat is not None:
        _check_shape("quat", quat, (4,))
    q0 = chain.middle if q0 is None else q0
    _check_shape("q0", q0, chain.lower.shape)
    weight = jnp.repeat(jnp.array([1.0, rotation_weight], chain.link_pos.dtype), 3)

    def body(_, q: jax.Array):
        tip, jac = _tip_and_jacobian(chain, q)
        error = _error(tip, pos, quat)
        scale = weight[: error.size]
        error, jac = scale * error, scale[:, None] * jac[: error.size]
        damping = jnp.sum(error**2) + _BIAS * jnp.sum(jac**2) / error.size
        step = _damped_step(chain, q, jac, error, damping)
        return jnp.clip(q + step, chain.lower, chain.upper)

    start = jnp.clip(q0, chain.lower, chain.upper)
    q = jax.lax.fori_loop(0, iterations, body, start)
    error = _error(forward(chain, q), pos, quat)
    pos_error, rot_error = jnp.linalg.norm(error[:3]), jnp.linalg.norm(error[3:])
    converged = (pos_error <= pos_tolerance) & (rot_error <= rot_tolerance)
    return Solution(q, pos_error, rot_error, converged)


def _compose(a: Pose, b: Pose) -> Pose:
    """The pose `b`, given in the frame of `a`, in the frame that `a` is given in."""
    return Pose(a.pos + quat_rotate(a.quat, b.pos), quat_multiply(a.quat, b.quat))


def _tip_pose(chain: Chain, poses: Pose) -> Pose:
    last = jax.tree.map(lambda x: x[-1], poses)
    return _compose(last, Pose(chain.link_pos[-1], chain.link_quat[-1]))


def _tip_and_jacobian(chain: Chain, q: jax.Array) -> tuple[Pose, jax.Array]:
    poses = joint_poses(chain, q)
    tip = _tip_pose(chain, poses)
    axes = quat_rotate(poses.quat, chain.axis)
    levers = tip.pos[None] - poses.pos
    sliding = chain.sliding[:, None]
    linear = jnp.where(sliding, axes, jnp.cross(axes, levers))
    angular = jnp.where(sliding, 0.0, axes)
    return tip, jnp.concatenate([linear, angular], axis=-1).T


def _error(tip: Pose, pos: jax.Array, quat: jax.Array | None) -> jax.Array:
    """Translation, and rotation vector if asked, from the tip to the target. [3] or [6]."""
    if quat is None:
        return pos - tip.pos
    return pose_error(tip, Pose(pos, quat))


def _damped_step(
    chain: Chain, q: jax.Array, jac: jax.Array, error: jax.Array, damping: jax.Array
) -> jax.Array:
    """`differential_ik`, given the rows [m, n] of the Jacobian, and the damping squared."""
    descent = error @ jac
    held = ((q <= chain.lower) & (descent < 0)) | ((q >= chain.upper) & (descent > 0))
    jac = jnp.where(held[None], 0.0, jac)
    # The dual form, J^T (J J^T + d)^-1 e: m is 3 or 6, whatever the number of joints. The default
    # precision of an accelerator has three digits.
    normal = jnp.matmul(jac, jac.T, precision="highest")
    dual = _solve(normal + damping * jnp.eye(error.size, dtype=jac.dtype), error)
    step = jnp.matmul(dual, jac, precision="highest")
    return jnp.clip(step, chain.lower - q, chain.upper - q)


def _solve(matrix: jax.Array, vector: jax.Array) -> jax.Array:
    """Solves a small positive definite system by Gauss-Jordan elimination, which needs no pivoting.

    A batch of these costs a third of what `jnp.linalg.solve`, one LAPACK call a system, does.
    """
    size = vector.size
    unit = jnp.eye(size, dtype=matrix.dtype)

    def eliminate(k, rows):
        pivot_row = rows[k] / rows[k, k]
        return rows - (rows[:, k] - unit[k])[:, None] * pivot_row[None]

    augmented = jnp.concatenate([matrix, vector[:, None]], axis=1)
    return jax.lax.fori_loop(0, size, eliminate, augmented)[:, -1]


def _check_shape(name: str, value: jax.Array, expected: tuple[int, ...]) -> None:
    if value.shape != expected:
        raise ValueError(f"{name} has shape {value.shape}, expected {expected}")


def _find_tip(mj_model: mujoco.MjModel, name: str) -> tuple[int, np.ndarray, np.ndarray]:
    """The body that the tip is part of, and the pose of the tip in its frame."""
    site = mujoco.mj_name2id(mj_model, mujoco.mjtObj.mjOBJ_SITE, name)
    if site >= 0:
        return mj_model.site_bodyid[site], mj_model.site_pos[site], mj_model.site_quat[site]
    body = mujoco.mj_name2id(mj_model, mujoco.mjtObj.mjOBJ_BODY, name)
    if body >= 0:
        return body, np.zeros(3), _IDENTITY
    sites = [mj_model.site(i).name for i in range(mj_model.nsite)]
    raise ValueError(
        f"unknown tip {name!r}; sites: {_listed(sites)}; bodies: {_listed(_body_names(mj_model))}"
    )


def _find_base(mj_model: mujoco.MjModel, name: str) -> int:
    body = mujoco.mj_name2id(mj_model, mujoco.mjtObj.mjOBJ_BODY, name)
    if body < 0:
        raise ValueError(f"unknown base {name!r}; bodies: {_listed(_body_names(mj_model))}")
    return body


def _path(mj_model: mujoco.MjModel, base: int, body: int) -> list[int]:
    """The bodies below the base, down to the body."""
    path: list[int] = []
    parent = body
    while parent not in (base, 0):
        path.insert(0, parent)
        parent = int(mj_model.body_parentid[parent])
    if parent != base:
        above = [mj_model.body(b).name for b in (0, *path)]
        raise ValueError(
            f"base {mj_model.body(base).name!r} isn't above body {mj_model.body(body).name!r}; "
            f"valid: {_listed(above)}"
        )
    return path


def _joints_of(mj_model: mujoco.MjModel, body: int) -> range:
    first = int(mj_model.body_jntadr[body])
    return range(first, first + int(mj_model.body_jntnum[body]))


def _check_joints(mj_model: mujoco.MjModel, joints: list[int], tip: str, base: str | None) -> None:
    between = f"between {base or 'world'!r} and {tip!r}"
    if not joints:
        raise ValueError(f"no joint {between}")
    for kind, joint_type in (
        ("free", mujoco.mjtJoint.mjJNT_FREE),
        ("ball", mujoco.mjtJoint.mjJNT_BALL),
    ):
        found = [mj_model.joint(j).name for j in joints if mj_model.jnt_type[j] == joint_type]
        if found:
            raise ValueError(
                f"{kind} joint {found[0]!r} {between}; a chain has only hinge and slide joints"
            )


def _links(
    mj_model: mujoco.MjModel, path: list[int], tip_pos: np.ndarray, tip_quat: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The constant transforms before the first, between, and after the last joint."""
    links = []
    pos, quat = np.zeros(3), _IDENTITY
    for body in path:
        pos, quat = _then(pos, quat, mj_model.body_pos[body], mj_model.body_quat[body])
        for joint in _joints_of(mj_model, body):
            # A joint turns about its anchor: move there, let it turn, move back.
            links.append(_then(pos, quat, mj_model.jnt_pos[joint], _IDENTITY))
            pos, quat = -mj_model.jnt_pos[joint], _IDENTITY
    links.append(_then(pos, quat, tip_pos, tip_quat))
    positions, quats = zip(*links, strict=True)
    return np.stack(positions), np.stack(quats)


def _then(pos, quat, next_pos, next_quat) -> tuple[np.ndarray, np.ndarray]:
    """`_compose` in numpy and double precision."""
    new_pos, new_quat = np.zeros(3), np.zeros(4)
    mujoco.mju_mulPose(new_pos, new_quat, pos, quat, next_pos, next_quat)
    return new_pos, new_quat


def _limits(mj_model: mujoco.MjModel, joints: list[int]) -> tuple[jax.Array, jax.Array]:
    """Lower and upper limits, rounded inwards: single precision never exceeds the model's."""
    limited = mj_model.jnt_limited[joints].astype(bool)[:, None]
    exact = np.where(limited, mj_model.jnt_range[joints], [-np.inf, np.inf]).T
    lower, upper = exact.astype(jnp.result_type(float))
    lower = np.where(lower < exact[0], np.nextafter(lower, np.inf), lower)
    upper = np.where(upper > exact[1], np.nextafter(upper, -np.inf), upper)
    return jnp.asarray(lower), jnp.asarray(upper)


def _body_names(mj_model: mujoco.MjModel) -> list[str]:
    return [mj_model.body(i).name for i in range(mj_model.nbody)]


def _listed(names: list[str]) -> str:
    return ", ".join(name for name in names if name) or "none"
