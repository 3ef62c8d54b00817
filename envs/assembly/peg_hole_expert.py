"""The scripted expert of PegHole: grasp, lift, carry, insert; and again where that fails.

It reads the poses of hand, peg and hole, and commands poses of the hand a few centimetres ahead, so
that the arm's lag keeps it slow. It doesn't know the future or the physics: it looks where the peg
is in the hand, and corrects.
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

OVER_PEG, REACH, CLOSE, LIFT, OVER_HOLE, INSERT, DONE = range(7)
"""The stages."""

_DOWN = np.array([0.0, 1.0, 0.0, 0.0])
"""The hand points down, its fingers along y."""

_PATIENCE = np.array([60, 25, 6, 15, 60, 60, 1000])
"""Steps after which a stage is given up."""

_HEIGHT = parts.HOLE_SIZE[2]

_PRESS = 0.003
"""How far below where it is the peg is commanded, m: presses with 12 N, below what slips."""

_FIT, _TWIST = 1.5e-4, 0.01
"""How far aside, m, and how much turned, rad, a peg may be to be pressed: little more than what
fits."""

_CLEAR, _RISE, _MAX_CLEAR = 0.0005, 0.001, 0.004
"""How far above the plate a peg is kept that isn't aligned, m: at least, for each `_FIT` that it is
aside beyond the first, and at most."""


@struct.dataclass
class Carry:
    """What the expert remembers.

    Attributes:
      stage: where it is, one of the stages above. []
      count: steps in this stage. []
      turn: 0 or pi: which of the two ways round the hand takes the peg. []
      grasp: height on the peg at which it is taken, m. []
      hover: height of the hand above the table on the way to the peg, m. []
      carry: height of the peg's bottom on the way to the hole, m. []
      pace: how far ahead it commands, as a share. []
      aside: by how much the first approach of each misses, m. [2]
    """

    stage: jax.Array
    count: jax.Array
    turn: jax.Array
    grasp: jax.Array
    hover: jax.Array
    carry: jax.Array
    pace: jax.Array
    aside: jax.Array


def make(env: "PegHole", noise: float) -> Policy:
    """The expert as a policy; `noise` scales how much its ways vary."""
    middle = _yaw_of_hand(forward(env.chain, jnp.asarray(panda.HOME)).quat)

    def init(state: State, key: jax.Array) -> Carry:
        draw = noise * jax.random.uniform(key, (6,), minval=-1.0, maxval=1.0)
        zero = jnp.zeros((), jnp.int32)
        return Carry(
            stage=zero,
            count=zero,
            turn=_better_turn(env, state, middle),
            grasp=0.035 + 0.003 * draw[0],
            hover=0.12 + 0.02 * draw[1],
            carry=0.04 + 0.01 * draw[2],
            pace=1.0 + 0.25 * draw[3],
            aside=0.003 * draw[4:],
        )

    def act(carry: Carry, state: State, key: jax.Array) -> tuple[jax.Array, Carry]:
        hand, peg, hole = _poses(env, state)
        carry = _advance(env, carry, state, middle)
        goal = _goal(carry, hand, peg, hole)
        target = _ahead(carry, hand, goal, middle)
        grip = jnp.where((carry.stage >= CLOSE) & (carry.stage < DONE), 1.0, -1.0)
        return jnp.append(pose_action(target), grip), carry

    return scripted(act, init)


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


def _advance(env: "PegHole", carry: Carry, state: State, middle: jax.Array) -> Carry:
    """Goes on when a stage's aim is reached, and back when the peg is lost or nothing helps."""
    hand, peg, hole = _poses(env, state)
    over_peg = jnp.linalg.norm(hand.pos[:2] - peg.pos[:2])
    turned = jnp.abs(_wrap(_yaw(peg.quat) + carry.turn - _yaw_of_hand(hand.quat)))
    gap = quat_rotate(quat_conjugate(hole.quat), peg.pos - hole.pos)
    aside = jnp.linalg.norm(gap[:2])
    twist = jnp.linalg.norm(_rotation_to(peg.quat, hole.quat))
    stage, late = carry.stage, carry.count >= jnp.asarray(_PATIENCE)[carry.stage]
    reached = jnp.stack(
        [
            (over_peg < 0.006) & (turned < 0.06) & (hand.pos[2] < carry.hover + 0.02),
            (over_peg < 0.003) & (hand.pos[2] < peg.pos[2] + carry.grasp + 0.002),
            carry.count >= 4,
            peg.pos[2] > 0.6 * carry.carry,
            (aside < 0.007) & (twist < 0.08),
            jnp.zeros((), bool),
            jnp.zeros((), bool),
        ]
    )[stage]
    held = (env.opening(state.data) > 0.006) & (jnp.linalg.norm(hand.pos - peg.pos) < 0.08)
    lost = (stage >= LIFT) & (stage < DONE) & ~held
    go_on = reached | (late & (stage < INSERT))
    new = jnp.where(go_on, stage + 1, stage)
    new = jnp.where(late & (stage == INSERT), OVER_HOLE, new)
    new = jnp.where(lost | (late & (stage == LIFT)), OVER_PEG, new)
    new = jnp.where(state.info["success"], DONE, new)
    moved = new != stage
    restart = moved & (new == OVER_PEG)
    return carry.replace(
        stage=new,
        count=jnp.where(moved, 0, carry.count + 1),
        turn=jnp.where(restart, _better_turn(env, state, middle), carry.turn),
        aside=jnp.where(restart, 0.0, carry.aside),
    )


def _goal(carry: Carry, hand: Pose, peg: Pose, hole: Pose) -> Pose:
    """Where the hand is to be in the end, in this stage."""
    aside = jnp.append(carry.aside, 0.0)
    upright = _hand_over(_yaw(peg.quat) + carry.turn)
    over_peg = Pose(peg.pos.at[2].set(carry.hover) + aside, upright)
    at_peg = Pose(peg.pos + jnp.array([0.0, 0.0, 1.0]) * carry.grasp, upright)
    lift = Pose(hand.pos.at[2].set(carry.grasp + carry.carry), hand.quat)

    def bring(height: jax.Array, offset: jax.Array, yaw: jax.Array | float = 0.0) -> Pose:
        """The hand's pose at which the peg, as it is held now, is upright at the hole."""
        place = hole.pos + quat_rotate(hole.quat, offset) + jnp.array([0.0, 0.0, 1.0]) * height
        wanted = quat_multiply(_upright(_yaw(hole.quat)), _upright(yaw))
        change = quat_multiply(wanted, quat_conjugate(peg.quat))
        return Pose(
            place + quat_rotate(change, hand.pos - peg.pos), quat_multiply(change, hand.quat)
        )

    goals = [
        over_peg,
        at_peg,
        at_peg,
        lift,
        bring(carry.carry, aside),
        bring(_insertion_height(peg, hole), jnp.zeros(3)),
        hand,
    ]
    return jax.tree.map(lambda *x: jnp.stack(x)[carry.stage], *goals)


def _insertion_height(peg: Pose, hole: Pose) -> jax.Array:
    """Where the peg's bottom is to be above the hole's, m: the lower the better they are aligned.

    So a peg that is aside is never pressed on the plate, which would take the plate along; and one
    that was is lifted, until it's over the slot.
    """
    gap = quat_rotate(quat_conjugate(hole.quat), peg.pos - hole.pos)
    twist = jnp.linalg.norm(_rotation_to(peg.quat, hole.quat))
    misfit = jnp.maximum(jnp.linalg.norm(gap[:2]) / _FIT, twist / _TWIST)
    above = _HEIGHT + jnp.clip(_CLEAR + _RISE * (misfit - 1.0), 0.0, _MAX_CLEAR)
    inside = gap[2] < _HEIGHT - 0.001
    return jnp.where(inside | (misfit < 1.0), gap[2] - _PRESS, above)


def _ahead(carry: Carry, hand: Pose, goal: Pose, middle: jax.Array) -> Pose:
    """A pose on the way to the goal, at most a few centimetres and half a radian ahead."""
    slow = jnp.array([0.07, 0.05, 0.03, 0.05, 0.06, 0.03, 0.02])[carry.stage]
    step = goal.pos - hand.pos
    length = jnp.linalg.norm(step)
    pos = hand.pos + step * jnp.minimum(1.0, slow * carry.pace / jnp.maximum(length, 1e-6))
    rotation = _rotation_to(hand.quat, goal.quat)
    # The long way round if the short one leads past the wrist's limit.
    now = _wrap(_yaw_of_hand(hand.quat) - middle)
    beyond = jnp.abs(now + rotation[2]) > 2.6
    rotation = jnp.where(beyond, rotation.at[2].add(-2 * jnp.pi * jnp.sign(rotation[2])), rotation)
    angle = jnp.linalg.norm(rotation)
    share = jnp.minimum(1.0, 0.6 * carry.pace / jnp.maximum(angle, 1e-6))
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
