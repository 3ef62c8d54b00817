"""From a policy's action to the targets of an arm's drives, once a control step.

Everything is written for ONE simulation; `jax.vmap` makes it a batch. Lengths are in metres, angles
in radians, quaternions wxyz. A tip pose as an action is nine numbers: the position, then the
rotation as the first two rows of its matrix (`rotations.matrix_to_sixd`).

    tip = forward(chain, q)
    target = pose_target("delta", action[:9], tip)
    ctrl = differential_ik_target(chain, q, target)

The conventions are those of FurnitureBench's simulation, as its fork for robust-rearrangement has
them (Ankile et al., "From Imitation to Refinement", 2024, arXiv 2407.16677).
"""

import jax
import jax.numpy as jnp

from jaxrobo.physics.kinematics import Chain, Pose, differential_ik, forward, pose_error
from jaxrobo.physics.rotations import (
    matrix_to_quat,
    matrix_to_sixd,
    quat_multiply,
    quat_to_matrix,
    sixd_to_matrix,
)

POSE_MODES = ("pos", "delta")
"""How an action gives a pose: in the frame of the base, or as a change of the current one."""

GRASP_MARGIN = 0.019
"""A command to the gripper that is smaller than this can't turn it round at once."""


def pose_target(mode: str, action: jax.Array, current: Pose) -> Pose:
    """Where an action wants the tip to be.

    "pos":    p = p_a,        R = R_a
    "delta":  p = p_c + p_a,  R = R_c R_a

    So the translation of a change is along the axes of the base, and its rotation about those of
    the tip. Clip the action to its bounds before, not after.

    Args:
      mode: one of `POSE_MODES`.
      action: p_a, m, and the first two rows of R_a. [9]
      current: pose of the tip, p_c and R_c, in the frame of the base.

    Returns:
      The target in the frame of the base.

    Raises:
      ValueError: on an unknown mode or a wrong shape.
    """
    if mode not in POSE_MODES:
        raise ValueError(f"unknown mode {mode!r}; valid: {', '.join(POSE_MODES)}")
    _check_shape("action", action, (9,))
    given = Pose(action[:3], matrix_to_quat(sixd_to_matrix(action[3:])))
    if mode == "pos":
        return given
    return Pose(current.pos + given.pos, quat_multiply(current.quat, given.quat))


def pose_action(pose: Pose) -> jax.Array:
    """The action that asks for a pose in mode "pos": position, then rotation as 6D. [9]."""
    return jnp.concatenate([pose.pos, matrix_to_sixd(quat_to_matrix(pose.quat))])


def relative_to_pos(action: jax.Array, reference: Pose) -> jax.Array:
    """A "relative" action as an action of mode "pos".

    A policy that plans several steps may give each as a change, as "delta" defines it, of the pose
    that the tip had when it planned, instead of the one that it has when the step comes.

    Args:
      action: translation, m, and rotation. [9]
      reference: pose of the tip at planning, in the frame of the base.

    Returns:
      Position, m, and rotation in the frame of the base. [9]

    Raises:
      ValueError: on a wrong shape.
    """
    return pose_action(pose_target("delta", action, reference))


def differential_ik_target(
    chain: Chain, q: jax.Array, target: Pose, damping: float = 0.01
) -> jax.Array:
    """Joint targets for a tip pose, by one step of `kinematics.differential_ik` from where it is.

    The original solves the undamped least squares J dq = e of smallest |dq|, which is the limit of
    damping 0, without joint limits, and jumps next to a singular pose. The default changes a step
    by less than 1 % where the smallest singular value of J is above 0.1.

    Args:
      chain: the arm, from the base to the tip.
      q: joint positions, m or rad. [n]
      target: wanted pose of the tip in the frame of the base.
      damping: weight of the joint motion, positive.

    Returns:
      Joint positions within the limits, m or rad. [n]

    Raises:
      ValueError: on a wrong shape.
    """
    return q + differential_ik(chain, q, pose_error(forward(chain, q), target), damping)


def joint_target(chain: Chain, action: jax.Array) -> jax.Array:
    """Absolute joint targets: -1 is a joint's lower limit, 1 its upper limit.

    Args:
      chain: the arm, with limits on every joint.
      action: in [-1, 1]. [n]

    Returns:
      Joint positions, m or rad. [n]

    Raises:
      ValueError: on a wrong shape.
    """
    _check_shape("action", action, chain.lower.shape)
    share = 0.5 * (jnp.clip(action, -1.0, 1.0) + 1.0)
    return chain.lower + share * (chain.upper - chain.lower)


def joint_delta_target(
    chain: Chain, q: jax.Array, action: jax.Array, scale: float | jax.Array
) -> jax.Array:
    """Joint targets as a change: q + scale * action, within the limits.

    Args:
      chain: the arm.
      q: what is changed, m or rad: the joint positions, or the last targets. [n]
      action: in [-1, 1]. [n]
      scale: largest change in a control step, m or rad. [] or [n]

    Returns:
      Joint positions, m or rad. [n]

    Raises:
      ValueError: on a wrong shape.
    """
    _check_shape("q", q, chain.lower.shape)
    _check_shape("action", action, chain.lower.shape)
    return jnp.clip(q + scale * jnp.clip(action, -1.0, 1.0), chain.lower, chain.upper)


def grip(last: jax.Array, command: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Whether to close or to open, with a margin that keeps a small command from turning it round.

    A command takes effect unless it is within `GRASP_MARGIN` of zero and of another sign than the
    one before it, which then goes on for this step. The command itself is what the next one is
    compared with, so that a small one that persists takes effect a step late, as in the original.

    Args:
      last: what this function returned as `last` a step ago; -1 at first, with the hand open. []
      command: above zero closes, below opens. []

    Returns:
      1 to close or -1 to open (a zero that persists closes), and `last` for the next step. [], []
    """
    turns = (jnp.sign(command) != jnp.sign(last)) & (jnp.abs(command) > GRASP_MARGIN)
    effective = jnp.where(turns, command, last)
    return jnp.where(effective < 0, -1.0, 1.0), command


def _check_shape(name: str, value: jax.Array, expected: tuple[int, ...]) -> None:
    if value.shape != expected:
        raise ValueError(f"{name} has shape {value.shape}, expected {expected}")
