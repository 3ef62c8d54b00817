"""The scripted expert of PegHole: a law of feedback that grasps, lifts, carries and inserts.

It reads the poses of hand, peg and hole, and commands poses of the hand a few centimetres ahead, so
that the arm's lag keeps it slow. It doesn't know the future or the physics: it looks where the peg
is in the hand, and corrects. What it does follows from what it sees, not from a stage that it
remembers: so it does the right thing after any disturbance that leaves peg and plate standing, and
what it does can be learned by a policy that sees the same.
"""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from envs.assembly import parts
from envs.robots import panda
from jaxrobo.control import pose_action
from jaxrobo.env import State
from jaxrobo.physics.kinematics import Pose, forward
from jaxrobo.physics.rotations import (
    axis_angle_to_quat,
    quat_conjugate,
    quat_multiply,
    quat_rotate,
    quat_to_rotvec,
    rotvec_to_quat,
)
from jaxrobo.policy import Policy, scripted

if TYPE_CHECKING:
    from envs.assembly.peg_hole import PegHole

_DOWN = np.array([0.0, 1.0, 0.0, 0.0])
"""The hand points down, its fingers along y."""

_REACH, _TURN = 0.06, 0.6
"""How far ahead a pose is commanded at most, m and rad."""

_AT_PEG, _FACING, _LEVEL = 0.003, 0.06, 0.004
"""How far the hand may be from where it takes the peg to close: aside, m, turned, rad, and above,
m."""

_MISSED, _CLOSED, _OPEN = 0.006, 0.012, 0.06
"""Opening of a hand, m: below, it has closed on nothing; below, it holds the peg, which is 10 mm
wide there; below, it is closing."""

_PEG_HEIGHT, _HEIGHT = parts.PEG_SIZE[2], parts.HOLE_SIZE[2]

_PRESS = 0.003
"""How far below where it is the peg is commanded, m: presses with 12 N, below what slips."""

_FIT, _TWIST = 1.5e-4, 0.01
"""How far aside, m, and how much turned, rad, a peg may be to be pressed: little more than what
fits."""

_CLEAR, _RISE, _MAX_CLEAR = 0.0005, 0.001, 0.004
"""How far above the plate a peg is kept that isn't aligned, m: at least, for each `_FIT` that it is
aside beyond the first, and at most."""

_NEAR, _NEARLY_FACING = 0.007, 0.08
"""Farther aside, m, or more turned, rad, the peg is kept higher still."""


@struct.dataclass
class Carry:
    """What the expert remembers: how it does things in this episode.

    Attributes:
      turn: 0 or pi: which of the two ways round the hand takes the peg. []
      grasp: height on the peg at which it is taken, m. []
      hover: height of the hand above that on the way to the peg, m. []
      lift: height of the peg's bottom above the plate on the way to the hole, m. []
      pace: how far ahead it commands, as a share. []
    """

    turn: jax.Array
    grasp: jax.Array
    hover: jax.Array
    lift: jax.Array
    pace: jax.Array


def make(env: "PegHole", noise: float) -> Policy:
    """The expert as a policy; `noise` scales how much its ways vary."""
    middle = _yaw_of_hand(forward(env.chain, jnp.asarray(panda.HOME)).quat)

    def init(state: State, key: jax.Array) -> Carry:
        draw = noise * jax.random.uniform(key, (4,), minval=-1.0, maxval=1.0)
        return Carry(
            turn=_better_turn(env, state, middle),
            grasp=0.035 + 0.003 * draw[0],
            hover=0.085 + 0.02 * draw[1],
            lift=0.03 + 0.01 * draw[2],
            pace=1.0 + 0.25 * draw[3],
        )

    def act(carry: Carry, state: State, key: jax.Array) -> tuple[jax.Array, Carry]:
        hand, peg, hole = _poses(env, state)
        above = quat_rotate(quat_conjugate(peg.quat), hand.pos - peg.pos)
        around = (jnp.linalg.norm(above[:2]) < 2 * _AT_PEG) & (jnp.abs(above[2]) < _PEG_HEIGHT)
        opening = env.opening(state.data)
        closing = around & (opening > _MISSED) & (opening < _OPEN)
        reach, may_close = _to_peg(carry, hand, peg)
        goal = _where(closing & (opening < _CLOSED), _to_hole(carry, hand, peg, hole), reach)
        done = state.info["success"]
        target = _where(done, hand, _ahead(carry, hand, goal, middle))
        grip = jnp.where((closing | may_close) & ~done, 1.0, -1.0)
        given = target if env.config.action == "pos" else _change(hand, target)
        return jnp.append(pose_action(given), grip), carry

    return scripted(act, init)


def _change(current: Pose, target: Pose) -> Pose:
    """A target as the change that `control.pose_target` wants in mode "delta"."""
    turn = quat_multiply(quat_conjugate(current.quat), target.quat)
    return Pose(target.pos - current.pos, turn)


def _poses(env: "PegHole", state: State) -> tuple[Pose, Pose, Pose]:
    data = state.data
    return env.hand_pose(data), env.part_pose(data, 0), env.part_pose(data, 1)


def _better_turn(env: "PegHole", state: State, middle: jax.Array) -> jax.Array:
    """The way round that keeps the wrist nearest to its middle, at the peg and at the hole."""
    _, peg, hole = _poses(env, state)

    def strain(turn: float) -> jax.Array:
        at_peg = _wrap(_yaw(peg.quat) + turn - middle)
        at_hole = at_peg + _wrap(_yaw(hole.quat) - _yaw(peg.quat))
        return jnp.maximum(jnp.abs(at_peg), jnp.abs(at_hole))

    return jnp.where(strain(0.0) <= strain(jnp.pi), 0.0, jnp.pi)


def _to_peg(carry: Carry, hand: Pose, peg: Pose) -> tuple[Pose, jax.Array]:
    """Where the hand takes the peg, or above that while it is aside; and whether it may close."""
    upright = _hand_over(_yaw(peg.quat) + carry.turn)
    aside = jnp.linalg.norm(hand.pos[:2] - peg.pos[:2]) / _AT_PEG
    turned = jnp.linalg.norm(_rotation_to(hand.quat, upright)) / _FACING
    off = jnp.maximum(aside, turned)
    above = jnp.clip(0.02 * (off - 2.0), 0.0, carry.hover)
    level = peg.pos + jnp.array([0.0, 0.0, 1.0]) * (carry.grasp + above)
    may_close = (off < 1.0) & (hand.pos[2] < level[2] + _LEVEL)
    return _up_first(hand, Pose(level, upright)), may_close


def _to_hole(carry: Carry, hand: Pose, peg: Pose, hole: Pose) -> Pose:
    """The hand's pose at which the peg, as it is held now, is where it should be at the hole."""
    up = jnp.array([0.0, 0.0, 1.0])
    gap, twist = _misfit(peg, hole)
    height = _height(carry, gap, twist)
    change = quat_multiply(_upright(_yaw(hole.quat)), quat_conjugate(peg.quat))
    pos = hole.pos + up * height + quat_rotate(change, hand.pos - peg.pos)
    return _up_first(hand, Pose(pos, quat_multiply(change, hand.quat)))


def _up_first(hand: Pose, goal: Pose) -> Pose:
    """The goal; right above where it is for a hand that is centimetres too low."""
    share = jnp.clip(2.0 - (goal.pos[2] - hand.pos[2]) / 0.01, 0.0, 1.0)
    pos = hand.pos + (goal.pos - hand.pos) * jnp.stack([share, share, jnp.ones(())])
    rotation = share * _rotation_to(hand.quat, goal.quat)
    return Pose(pos, quat_multiply(rotvec_to_quat(rotation), hand.quat))


def _misfit(peg: Pose, hole: Pose) -> tuple[jax.Array, jax.Array]:
    """Where the peg is in the hole's frame, m [3], and how much it is turned there, rad []."""
    gap = quat_rotate(quat_conjugate(hole.quat), peg.pos - hole.pos)
    return gap, jnp.linalg.norm(_rotation_to(peg.quat, hole.quat))


def _height(carry: Carry, gap: jax.Array, twist: jax.Array) -> jax.Array:
    """Where the peg's bottom is to be above the hole's, m: the lower the better they are aligned.

    So a peg that is aside is never pressed on the plate, which would take the plate along; and one
    that was is lifted, until it's over the slot.
    """
    aside = jnp.linalg.norm(gap[:2])
    misfit = jnp.maximum(aside / _FIT, twist / _TWIST)
    far = jnp.maximum(aside / _NEAR, twist / _NEARLY_FACING)
    above = jnp.clip(_CLEAR + _RISE * (misfit - 1.0), 0.0, _MAX_CLEAR)
    above = _HEIGHT + above + jnp.clip(0.01 * (far - 1.0), 0.0, carry.lift)
    inside = (gap[2] < _HEIGHT - 0.001) & (aside < 0.001)
    return jnp.where(inside | (misfit < 1.0), gap[2] - _PRESS, above)


def _where(condition: jax.Array, a: Pose, b: Pose) -> Pose:
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def _ahead(carry: Carry, hand: Pose, goal: Pose, middle: jax.Array) -> Pose:
    """A pose on the way to the goal, at most a few centimetres and half a radian ahead."""
    step = goal.pos - hand.pos
    length = jnp.linalg.norm(step)
    pos = hand.pos + step * jnp.minimum(1.0, _REACH * carry.pace / jnp.maximum(length, 1e-6))
    rotation = _rotation_to(hand.quat, goal.quat)
    # The long way round if the short one leads past the wrist's limit.
    now = _wrap(_yaw_of_hand(hand.quat) - middle)
    beyond = jnp.abs(now + rotation[2]) > 2.6
    rotation = jnp.where(beyond, rotation.at[2].add(-2 * jnp.pi * jnp.sign(rotation[2])), rotation)
    angle = jnp.linalg.norm(rotation)
    share = jnp.minimum(1.0, _TURN * carry.pace / jnp.maximum(angle, 1e-6))
    return Pose(pos, quat_multiply(rotvec_to_quat(rotation * share), hand.quat))


def _rotation_to(a: jax.Array, b: jax.Array) -> jax.Array:
    """The shortest rotation from one orientation to another, in world axes, rad. [3]."""
    return quat_to_rotvec(quat_multiply(b, quat_conjugate(a)))


def _yaw(quat: jax.Array) -> jax.Array:
    """About the world's z axis, rad."""
    x = quat_rotate(quat, jnp.array([1.0, 0.0, 0.0]))
    return jnp.arctan2(x[1], x[0])


def _yaw_of_hand(quat: jax.Array) -> jax.Array:
    """Of a hand that points down: 0 where its fingers lie along y."""
    return _yaw(quat_multiply(quat, quat_conjugate(jnp.asarray(_DOWN))))


def _upright(yaw: jax.Array | float) -> jax.Array:
    return axis_angle_to_quat(jnp.array([0.0, 0.0, 1.0]), jnp.asarray(yaw))


def _hand_over(yaw: jax.Array) -> jax.Array:
    return quat_multiply(_upright(yaw), jnp.asarray(_DOWN))


def _wrap(angle: jax.Array) -> jax.Array:
    return jnp.arctan2(jnp.sin(angle), jnp.cos(angle))
