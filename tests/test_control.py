"""Controllers: the algebra of the action modes, tracking with the Panda, the gripper's margin."""

import functools

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from envs.robots import panda
from jaxrobo import control
from jaxrobo.physics import make_physics
from jaxrobo.physics.kinematics import Chain, Pose, forward, pose_error
from jaxrobo.physics.rotations import random_quat, rotvec_to_quat

SEEDS = st.integers(0, 2**31 - 1)
DEGREE = np.pi / 180


@functools.cache
def arm():
    model = panda.load().compile()
    return model, Chain.from_model(model, tip="ee", base="link0")


def rotation(quat):
    return Rotation.from_quat(np.roll(np.asarray(quat, np.float64), -1))


def random_pose(seed):
    keys = jax.random.split(jax.random.key(seed))
    return Pose(jax.random.normal(keys[0], (3,)), random_quat(keys[1]))


def rows(matrix):
    return matrix[:2].ravel()


def assert_same_pose(a, b, atol=2e-6):
    np.testing.assert_allclose(a.pos, b.pos, atol=atol)
    matrices = [rotation(pose.quat).as_matrix() for pose in (a, b)]
    np.testing.assert_allclose(*matrices, atol=atol)


@given(SEEDS)
def test_pos_is_the_pose_itself(seed):
    current, wanted = random_pose(seed), random_pose(seed + 1)
    action = np.concatenate([wanted.pos, rows(rotation(wanted.quat).as_matrix())])
    np.testing.assert_allclose(control.pose_action(wanted), action, atol=2e-6)
    assert_same_pose(control.pose_target("pos", jnp.asarray(action), current), wanted)


@given(SEEDS)
def test_pos_at_the_current_pose_keeps_it(seed):
    current = random_pose(seed)
    assert_same_pose(control.pose_target("pos", control.pose_action(current), current), current)


@given(SEEDS)
def test_delta_moves_along_the_base_and_turns_about_the_tip(seed):
    current, change = random_pose(seed), random_pose(seed + 1)
    action = control.pose_action(change)
    target = control.pose_target("delta", action, current)
    np.testing.assert_allclose(target.pos, current.pos + change.pos, atol=1e-6)
    expected = rotation(current.quat) * rotation(change.quat)
    np.testing.assert_allclose(
        rotation(target.quat).as_matrix(), expected.as_matrix(), rtol=0, atol=3e-6
    )


def test_delta_by_hand():
    """The tip turned by 90 degrees about z, then by 90 about its own x: its y axis points up."""
    current = Pose(jnp.array([0.4, 0.0, 0.2]), rotvec_to_quat((0.0, 0.0, np.pi / 2)))
    quarter = [[1, 0, 0], [0, 0, -1], [0, 1, 0]]
    action = jnp.concatenate([jnp.array([0.1, 0.0, 0.0]), rows(jnp.array(quarter, float))])
    target = control.pose_target("delta", action, current)
    np.testing.assert_allclose(target.pos, [0.5, 0.0, 0.2], atol=1e-6)
    axes = rotation(target.quat).as_matrix().T
    np.testing.assert_allclose(axes, [[0, 1, 0], [0, 0, 1], [1, 0, 0]], atol=1e-6)


@given(SEEDS)
def test_no_change_keeps_the_pose(seed):
    current = random_pose(seed)
    nothing = jnp.concatenate([jnp.zeros(3), rows(jnp.eye(3))])
    assert_same_pose(control.pose_target("delta", nothing, current), current)


@given(SEEDS)
def test_relative_is_delta_from_the_pose_at_planning(seed):
    """Wherever the tip has come to since."""
    planned, now, change = (random_pose(seed + i) for i in range(3))
    action = control.pose_action(change)
    target = control.pose_target("pos", control.relative_to_pos(action, planned), now)
    assert_same_pose(target, control.pose_target("delta", action, planned), atol=4e-6)


def test_pose_error_brings_one_pose_to_the_other():
    for seed in range(5):
        current, target = random_pose(seed), random_pose(seed + 100)
        error = np.asarray(pose_error(current, target), np.float64)
        np.testing.assert_allclose(current.pos + error[:3], target.pos, atol=1e-6)
        turned = Rotation.from_rotvec(error[3:]) * rotation(current.quat)
        np.testing.assert_allclose(
            turned.as_matrix(), rotation(target.quat).as_matrix(), rtol=0, atol=5e-6
        )


def circle(start, steps):
    """5 cm of radius and swings of 10 degrees, from the pose `start`. `[steps]` poses."""
    angle = np.linspace(0, 2 * np.pi, steps)
    offset = 0.05 * np.stack([np.cos(angle) - 1, np.sin(angle), 0.5 * np.sin(angle)], -1)
    swing = 10 * DEGREE * np.stack([np.sin(angle), 0 * angle, 1 - np.cos(angle)], -1)
    actions = jax.vmap(control.pose_action)(Pose(offset, rotvec_to_quat(swing)))
    return jax.vmap(control.pose_target, (None, 0, None))("delta", actions, start)


def errors(pose, target):
    error = pose_error(pose, target)
    return jnp.linalg.norm(error[:3]), jnp.linalg.norm(error[3:])


def test_differential_ik_tracks_a_moving_pose():
    """A step of it for each of 100 targets, 3 mm and half a degree apart."""
    _, chain = arm()
    q0 = jnp.asarray(panda.HOME, float)
    targets = circle(forward(chain, q0), 101)

    def follow(q, target):
        q = control.differential_ik_target(chain, q, target)
        return q, (q, errors(forward(chain, q), target))

    _, (q, (pos, rot)) = jax.jit(functools.partial(jax.lax.scan, follow))(q0, targets)
    assert np.max(pos) < 1e-3
    assert np.max(rot) < 0.5 * DEGREE
    assert np.all(q >= chain.lower)
    assert np.all(q <= chain.upper)


def test_an_arm_reaches_a_pose_by_differential_ik():
    """Ten control steps a second, as FurnitureBench has: after 3 s it is there."""
    model, chain = arm()
    physics = make_physics(model, "native")
    grip = jnp.array([panda.GRIP_FORCE])
    start = physics.init(qpos=np.concatenate([panda.HOME, [0.04, 0.04]]))
    goal = jax.tree.map(lambda x: x[30], circle(forward(chain, start.qpos[:7]), 101))
    assert errors(forward(chain, start.qpos[:7]), goal)[0] > 0.07

    def follow(state, _):
        q = control.differential_ik_target(chain, state.qpos[chain.qpos_adr], goal)
        state, _ = physics.step(state, {"ctrl": jnp.concatenate([q, grip])}, 50)
        return state, errors(forward(chain, state.qpos[:7]), goal)

    state, (pos, rot) = jax.jit(lambda s: jax.lax.scan(follow, s, length=30))(start)
    assert pos[-1] < 1e-3
    assert rot[-1] < 0.5 * DEGREE
    np.testing.assert_allclose(state.site_xpos[model.site("ee").id], goal.pos, atol=1e-3)
    assert np.all(np.diff(pos[:10]) < 0)


def test_damping_is_a_hundredth_of_a_step_at_most():
    """Against the least squares without damping, where J is well conditioned."""
    model, chain = arm()
    q = jnp.asarray(panda.HOME, float)
    data = mujoco.MjData(model)
    data.qpos[:7] = panda.HOME
    mujoco.mj_forward(model, data)
    jac = np.zeros((6, model.nv))
    mujoco.mj_jacSite(model, data, jac[:3], jac[3:], model.site("ee").id)
    assert np.linalg.svd(jac[:, :7])[1].min() > 0.1
    current = forward(chain, q)
    target = Pose(current.pos + jnp.array([0.01, -0.01, 0.02]), current.quat)
    step = control.differential_ik_target(chain, q, target) - q
    exact = np.linalg.pinv(jac[:, :7]) @ np.array([0.01, -0.01, 0.02, 0, 0, 0])
    assert np.linalg.norm(step - exact) < 0.01 * np.linalg.norm(exact)


def test_joint_targets_span_the_limits():
    _, chain = arm()
    for action, expected in ((-1.0, chain.lower), (0.0, chain.middle), (1.0, chain.upper)):
        target = control.joint_target(chain, jnp.full(7, action))
        np.testing.assert_allclose(target, expected, atol=1e-6)
    np.testing.assert_array_equal(
        control.joint_target(chain, jnp.full(7, 3.0)), control.joint_target(chain, jnp.ones(7))
    )


def test_joint_deltas_are_scaled_and_stop_at_the_limits():
    _, chain = arm()
    q, scale = jnp.asarray(panda.HOME, float), 0.1 * panda.MAX_SPEED
    action = jnp.array([1.0, -1.0, 0.5, 0.0, -0.5, 2.0, -2.0])
    moved = control.joint_delta_target(chain, q, action, scale)
    expected = np.array([0.2175, -0.2175, 0.10875, 0.0, -0.1305, 0.261, -0.261])
    np.testing.assert_allclose(moved - q, expected, atol=1e-6)
    beyond = control.joint_delta_target(chain, q, jnp.ones(7), 10.0)
    np.testing.assert_array_equal(beyond, chain.upper)


@pytest.mark.parametrize(
    ("last", "command", "grasp"),
    [
        (-1.0, -1.0, -1),  # the same sign goes on
        (1.0, 1.0, 1),
        (-1.0, 1.0, 1),  # another sign, beyond the margin
        (1.0, -0.02, -1),
        (-1.0, 0.019, -1),  # another sign, not beyond the margin: the last one goes on
        (-1.0, 0.01, -1),
        (1.0, -0.01, 1),
        (1.0, 0.0, 1),
        (-1.0, 0.0, -1),
        (0.01, 0.01, 1),  # small but of the last one's sign
        (-0.01, -0.5, -1),
        (0.0, 0.0, 1),  # a zero closes
        (0.0, -1.0, -1),
    ],
)
def test_the_grippers_truth_table(last, command, grasp):
    result, kept = control.grip(jnp.asarray(last), jnp.asarray(command))
    assert result == grasp
    assert kept == jnp.asarray(command)


def test_a_small_command_that_persists_acts_a_step_late():
    last, seen = jnp.asarray(-1.0), []
    for command in (0.01, 0.01, -0.01, 0.01, -0.5):
        grasp, last = control.grip(last, jnp.asarray(command))
        seen.append(int(grasp))
    assert seen == [-1, 1, 1, -1, -1]


def test_wrong_arguments_are_refused():
    _, chain = arm()
    pose = random_pose(0)
    with pytest.raises(ValueError, match="unknown mode 'relative'; valid: pos, delta"):
        control.pose_target("relative", jnp.zeros(9), pose)
    with pytest.raises(ValueError, match=r"action has shape \(10,\), expected \(9,\)"):
        control.pose_target("pos", jnp.zeros(10), pose)
    with pytest.raises(ValueError, match=r"action has shape \(10,\), expected \(9,\)"):
        control.relative_to_pos(jnp.zeros(10), pose)
    with pytest.raises(ValueError, match=r"action has shape \(8,\), expected \(7,\)"):
        control.joint_target(chain, jnp.zeros(8))
    with pytest.raises(ValueError, match=r"q has shape \(9,\), expected \(7,\)"):
        control.joint_delta_target(chain, jnp.zeros(9), jnp.zeros(7), 0.1)
