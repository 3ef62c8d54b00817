"""Kinematics: MuJoCo, scipy and closed forms as the independent implementations."""

import functools

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from jaxrobo.physics.kinematics import (
    Chain,
    differential_ik,
    forward,
    inverse,
    jacobian,
    joint_poses,
)

# Everything that a chain can contain: a rail, two joints in one body, anchors and axes off the body
# frame, axes that aren't of unit length, a fixed body in between, a reference that isn't zero, an
# unlimited joint, and other joints before and after in qpos.
SEVEN = """
<mujoco>
  <compiler angle="radian"/>
  <worldbody>
    <body name="ball"><freejoint name="ball_free"/><geom size=".02"/></body>
    <body name="rail" pos=".1 -.2 .3" euler=".2 .1 -.4">
      <joint name="slide" type="slide" axis="1 0 1" pos=".3 0 .1" range="-.3 .5"/>
      <geom size=".02"/>
      <body name="shoulder" pos="0 .05 .2" euler="0 .3 0">
        <joint name="pan" axis="0 0 2" pos=".05 0 0" range="-2 2" ref=".3"/>
        <joint name="lift" axis="0 1 .2" pos="0 .03 -.02" range="-1.5 1.2"/>
        <geom size=".02"/>
        <body name="spacer" pos=".1 0 .2" euler="0 0 .5">
          <geom size=".02"/>
          <body name="elbow" pos=".1 0 0" quat=".9 .1 -.2 .3">
            <joint name="elbow" axis="0 1 0" range="-2.2 .3"/>
            <geom size=".02"/>
            <body name="forearm" pos=".25 0 .03">
              <joint name="roll" axis="1 0 0"/>
              <geom size=".02"/>
              <body name="wrist" pos=".2 0 0">
                <joint name="flex" axis="0 1 0" pos="0 0 .02" range="-1.8 1.8"/>
                <joint name="twist" axis="1 .1 0" range="-2.5 2.5"/>
                <geom size=".02"/>
                <site name="tool" pos=".1 .02 .01" euler=".3 -.2 1"/>
                <body name="finger" pos=".05 0 0">
                  <joint name="finger" type="slide" axis="0 1 0" range="0 .04"/>
                  <geom size=".02"/>
                </body>
              </body>
            </body>
          </body>
        </body>
      </body>
    </body>
  </worldbody>
</mujoco>
"""
SEVEN_JOINTS = ("slide", "pan", "lift", "elbow", "roll", "flex", "twist")

# A desktop arm: yaw, three pitches, roll, each of half a turn.
FIVE = """
<mujoco>
  <compiler angle="degree"/>
  <default><joint axis="0 1 0" range="-90 90"/></default>
  <worldbody><body pos="0 0 .07"><joint name="yaw" axis="0 0 1"/><geom size=".02"/>
    <body pos="0 0 .04"><joint name="shoulder"/><geom size=".02"/>
      <body pos="0 0 .083"><joint name="elbow"/><geom size=".02"/>
        <body pos="0 0 .083"><joint name="wrist"/><geom size=".02"/>
          <body pos="0 0 .074"><joint name="roll" axis="0 0 1" range="-90 180"/><geom size=".02"/>
            <site name="tip" pos="0 .015 .1"/>
  </body></body></body></body></body></worldbody>
</mujoco>
"""

BATCH, MANY = 32, 1000
UPPER, LOWER = 0.3, 0.2

# Two links in a plane, without limits.
PLANAR = f"""
<mujoco>
  <worldbody><body name="upper"><joint name="a" axis="0 0 1"/><geom size=".01"/>
    <body name="lower" pos="{UPPER} 0 0"><joint name="b" axis="0 0 1"/><geom size=".01"/>
      <site name="tip" pos="{LOWER} 0 0"/>
  </body></body></worldbody>
</mujoco>
"""

BALL = """
<mujoco>
  <worldbody><body name="b"><joint name="j" type="ball"/><geom size=".1"/></body></worldbody>
</mujoco>
"""

model = functools.cache(mujoco.MjModel.from_xml_string)


@functools.cache
def chain_of(xml: str, tip: str, base: str | None = None) -> Chain:
    return Chain.from_model(model(xml), tip=tip, base=base)


def _random_q(chain: Chain, seed: int, count: int) -> np.ndarray:
    """Configurations within the limits, or a turn where there is none. [count, n]"""
    lower, upper = np.maximum(chain.lower, -np.pi), np.minimum(chain.upper, np.pi)
    return np.random.default_rng(seed).uniform(lower, upper, (count, lower.size)).astype(np.float32)


def _mujoco_data(xml: str, chain: Chain, q: np.ndarray, seed: int = 0) -> mujoco.MjData:
    """Simulation data with the chain at `q` and everything else at random."""
    data = mujoco.MjData(model(xml))
    data.qpos[:] = np.random.default_rng(seed).normal(size=data.qpos.size)
    data.qpos[np.asarray(chain.qpos_adr)] = q
    mujoco.mj_kinematics(data.model, data)
    mujoco.mj_comPos(data.model, data)
    return data


def _rotation(quat: np.ndarray) -> Rotation:
    return Rotation.from_quat(quat.astype(np.float64), scalar_first=True)


def _batched(function, in_axes):
    """The function over a batch, compiled once a chain; the result as numpy arrays."""
    program = jax.jit(jax.vmap(function, in_axes))
    return lambda *args: jax.device_get(program(*args))


kinematics_batch = _batched(
    lambda c, q: (forward(c, q), jacobian(c, q), joint_poses(c, q)), (None, 0)
)
step_batch = _batched(differential_ik, (None, 0, 0, None))
reach_batch = _batched(inverse, (None, 0))
inverse_batch = _batched(inverse, (None, 0, 0, 0))


@pytest.mark.parametrize(("xml", "tip"), [(SEVEN, "tool"), (PLANAR, "tip")])
def test_forward_and_jacobian_agree_with_mujoco(xml, tip):
    chain = chain_of(xml, tip)
    q = _random_q(chain, 0, BATCH)
    pose, jac, _ = kinematics_batch(chain, q)
    site = model(xml).site(tip).id
    for i in range(BATCH):
        data = _mujoco_data(xml, chain, q[i])
        np.testing.assert_allclose(pose.pos[i], data.site_xpos[site], atol=1e-6)
        matrix = _rotation(pose.quat[i]).as_matrix()
        np.testing.assert_allclose(matrix.ravel(), data.site_xmat[site], atol=2e-6)
        expected = np.zeros((6, data.qvel.size))
        mujoco.mj_jacSite(data.model, data, expected[:3], expected[3:], site)
        np.testing.assert_allclose(jac[i], expected[:, np.asarray(chain.dof_adr)], atol=2e-6)


def test_pose_of_a_body_relative_to_a_base():
    chain = chain_of(SEVEN, "wrist", "shoulder")
    assert chain.joint_names == ("elbow", "roll", "flex", "twist")
    q = _random_q(chain, 1, BATCH)
    pose, _, _ = kinematics_batch(chain, q)
    for i in range(BATCH):
        data = _mujoco_data(SEVEN, chain, q[i])
        base, tip = data.body("shoulder"), data.body("wrist")
        rotation = base.xmat.reshape(3, 3).T
        np.testing.assert_allclose(pose.pos[i], rotation @ (tip.xpos - base.xpos), atol=1e-6)
        expected = rotation @ tip.xmat.reshape(3, 3)
        np.testing.assert_allclose(_rotation(pose.quat[i]).as_matrix(), expected, atol=2e-6)


def test_joint_poses_are_at_the_anchors():
    chain = chain_of(SEVEN, "tool")
    q = _random_q(chain, 2, BATCH)
    poses = jax.tree.map(lambda x: x[0], kinematics_batch(chain, q)[2])
    q = q[0]
    data = _mujoco_data(SEVEN, chain, q)
    joints = [data.model.joint(name).id for name in SEVEN_JOINTS]
    axes = _rotation(poses.quat).apply(np.asarray(chain.axis, np.float64))
    np.testing.assert_allclose(axes, data.xaxis[joints], atol=1e-6)
    # MuJoCo gives the anchor before the joint's own motion, which matters for the rail alone.
    anchors = data.xanchor[joints]
    anchors[0] += q[0] * data.xaxis[joints[0]]
    np.testing.assert_allclose(poses.pos, anchors, atol=1e-6)


def test_planar_arm_by_hand():
    """At a = 90, b = -90 degrees the tip is at (0.2, 0.3), joint a at 0, joint b at (0, 0.3)."""
    chain = chain_of(PLANAR, "tip")
    q = np.tile(np.array([np.pi / 2, -np.pi / 2], np.float32), (BATCH, 1))
    pose, jac, _ = kinematics_batch(chain, q)
    np.testing.assert_allclose(pose.pos[0], [LOWER, UPPER, 0], atol=1e-6)
    expected = np.array([[-UPPER, LOWER, 0, 0, 0, 1], [0, LOWER, 0, 0, 0, 1]]).T
    np.testing.assert_allclose(jac[0], expected, atol=1e-6)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31 - 1))
def test_jacobian_agrees_with_finite_differences(seed):
    chain = chain_of(SEVEN, "tool")
    q = np.tile(_random_q(chain, seed, 1), (BATCH, 1))
    h = 5e-3
    offsets = h * np.eye(BATCH, 7, dtype=np.float32)
    ahead, behind = (kinematics_batch(chain, q + d)[0] for d in (offsets, -offsets))
    turn = (_rotation(ahead.quat) * _rotation(behind.quat).inv()).as_rotvec()
    change = np.concatenate([ahead.pos - behind.pos, turn], axis=-1)[:7].T / (2 * h)
    np.testing.assert_allclose(kinematics_batch(chain, q)[1][0], change, atol=3e-4)


def test_chain_carries_names_addresses_and_limits():
    chain = chain_of(SEVEN, "tool")
    m = model(SEVEN)
    assert chain.joint_names == SEVEN_JOINTS
    np.testing.assert_array_equal(chain.qpos_adr, range(7, 14))
    np.testing.assert_array_equal(chain.dof_adr, range(6, 13))
    assert chain.lower[4] == -np.inf
    assert chain.upper[4] == np.inf
    ranges = np.array([m.joint(name).range for name in SEVEN_JOINTS])
    limited = np.arange(7) != 4
    lower, upper = np.asarray(chain.lower, np.float64), np.asarray(chain.upper, np.float64)
    np.testing.assert_allclose(np.stack([lower, upper], -1)[limited], ranges[limited], rtol=2e-7)
    # Single precision must not step over the model's limit, such as -2.2 = -2.2000000477.
    assert np.all(lower[limited] >= ranges[limited, 0])
    assert np.all(upper[limited] <= ranges[limited, 1])
    np.testing.assert_allclose(chain.middle, [0.1, 0, -0.15, -0.95, 0, 0, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("xml", "tip", "base", "message"),
    [
        (SEVEN, "hand", None, "unknown tip 'hand'; sites: tool; bodies: world, ball, rail"),
        (SEVEN, "tool", "torso", "unknown base 'torso'; bodies: world, ball"),
        (SEVEN, "tool", "ball", "base 'ball' isn't above .* valid: world, rail, shoulder"),
        (SEVEN, "spacer", "shoulder", "no joint between 'shoulder' and 'spacer'"),
        (SEVEN, "ball", None, "free joint 'ball_free' between 'world' and 'ball'"),
        (BALL, "b", None, "ball joint 'j' between 'world' and 'b'"),
    ],
)
def test_chains_that_cannot_be_are_refused(xml, tip, base, message):
    with pytest.raises(ValueError, match=message):
        Chain.from_model(model(xml), tip=tip, base=base)


def test_wrong_shapes_are_refused():
    chain = chain_of(PLANAR, "tip")
    with pytest.raises(ValueError, match=r"q has shape \(3,\), expected \(2,\)"):
        forward(chain, jnp.zeros(3))
    with pytest.raises(ValueError, match=r"error_twist has shape \(2,\)"):
        differential_ik(chain, jnp.zeros(2), jnp.zeros(2), 0.1)
    with pytest.raises(ValueError, match=r"pos has shape \(2,\)"):
        inverse(chain, jnp.zeros(2))
    with pytest.raises(ValueError, match=r"quat has shape \(3,\)"):
        inverse(chain, jnp.zeros(3), jnp.zeros(3))
    with pytest.raises(ValueError, match=r"q0 has shape \(1,\)"):
        inverse(chain, jnp.zeros(3), q0=jnp.zeros(1))


@pytest.mark.parametrize("rows", [3, 6])
def test_step_is_damped_least_squares_over_the_free_joints(rows):
    """Against the textbook formula over the columns of the joints that aren't held, in numpy."""
    chain = chain_of(SEVEN, "tool")
    q = np.tile(0.8 * np.asarray(chain.middle), (BATCH, 1))
    q[1, 2] = chain.upper[2]
    jac = kinematics_batch(chain, q)[1].astype(np.float64)[:, :rows]
    # An error that the lift joint, at its upper limit in the second row, would reduce by going up.
    error = 0.01 * np.sign(jac[:, :, 2])
    damping = 0.05
    steps = step_batch(chain, q, error, damping)
    for i, free in enumerate([np.ones(7, bool), np.arange(7) != 2]):
        j = jac[i][:, free]
        expected = np.zeros(7)
        expected[free] = np.linalg.solve(j.T @ j + damping**2 * np.eye(free.sum()), j.T @ error[i])
        np.testing.assert_allclose(steps[i], expected, atol=2e-6)
    assert steps[1, 2] == 0
    # Away from the limit, the same joint is free to go.
    assert step_batch(chain, q, -error, damping)[1, 2] < 0


def test_step_stops_at_the_limits():
    chain = chain_of(SEVEN, "tool")
    q = _random_q(chain, 3, BATCH)
    step = step_batch(chain, q, np.full((BATCH, 3), 0.5, np.float32), 1e-3)
    assert np.all(q + step >= chain.lower - 1e-6)
    assert np.all(q + step <= chain.upper + 1e-6)
    assert np.any(np.isclose(q + step, chain.upper, atol=1e-6))


def _check_solution(xml, chain, tip, solution, pos, quat=None):
    """The first results are within the model's limits, and the errors are those MuJoCo measures."""
    m = model(xml)
    site = m.site(tip).id
    for i in range(BATCH):
        q = np.asarray(solution.q[i], np.float64)
        for name, value in zip(chain.joint_names, q, strict=True):
            low, high = m.joint(name).range
            assert not m.joint(name).limited or low <= value <= high
        data = _mujoco_data(xml, chain, q)
        pos_error = np.linalg.norm(data.site_xpos[site] - pos[i])
        np.testing.assert_allclose(solution.pos_error[i], pos_error, atol=1e-6)
        rot_error = 0.0
        if quat is not None:
            tip_rotation = Rotation.from_matrix(data.site_xmat[site].reshape(3, 3))
            rot_error = (tip_rotation.inv() * _rotation(quat[i])).magnitude()
        np.testing.assert_allclose(solution.rot_error[i], rot_error, atol=3e-6)
        assert solution.converged[i] == (
            solution.pos_error[i] <= 1e-4 and solution.rot_error[i] <= 1e-3
        )


def test_five_joints_reach_positions_from_the_middle():
    chain = chain_of(FIVE, "tip")
    pos = kinematics_batch(chain, _random_q(chain, 4, MANY))[0].pos
    solution = reach_batch(chain, pos)
    assert np.mean(solution.converged) > 0.99  # 99.87 % of 20,000
    _check_solution(FIVE, chain, "tip", solution, pos)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31 - 1))
def test_poses_come_back(seed):
    """Any pose, singular ones included, from a start 0.1 rad (1 cm of the rail) off.

    One in 1e5 ends against a limit (2 of 200,000 measured), so one in a batch is let pass.
    """
    chain = chain_of(SEVEN, "tool")
    q = _random_q(chain, seed, BATCH)
    pose, _, _ = kinematics_batch(chain, q)
    offset = np.random.default_rng(seed + 1).normal(size=q.shape)
    offset *= 0.1 / np.linalg.norm(offset, axis=-1, keepdims=True)
    start = (q + offset * [0.1, 1, 1, 1, 1, 1, 1]).astype(np.float32)
    solution = inverse_batch(chain, pose.pos, pose.quat, start)
    assert np.sum(solution.converged) >= BATCH - 1
    _check_solution(SEVEN, chain, "tool", solution, pose.pos, pose.quat)


def test_out_of_reach_the_arm_stretches_towards_the_target():
    chain = chain_of(PLANAR, "tip")
    angle = np.linspace(0.3, 6, 16)
    pos = np.stack([np.cos(angle), np.sin(angle), 0 * angle], -1).astype(np.float32)
    solution = reach_batch(chain, pos)
    assert not np.any(solution.converged)
    np.testing.assert_allclose(solution.pos_error, 1 - UPPER - LOWER, atol=1e-3)


def test_out_of_reach_is_as_close_as_the_limits_allow():
    """No worse than scipy's bounded least squares, from the same start."""
    chain = chain_of(FIVE, "tip")
    pos = np.random.default_rng(5).normal(size=(MANY, 3))
    pos = (0.6 * pos / np.linalg.norm(pos, axis=-1, keepdims=True)).astype(np.float32)
    solution = reach_batch(chain, pos)
    assert not np.any(solution.converged)
    _check_solution(FIVE, chain, "tip", solution, pos)
    limits = np.asarray(chain.lower, np.float64), np.asarray(chain.upper, np.float64)
    data = mujoco.MjData(model(FIVE))

    def residual(q, target):
        data.qpos[:] = q
        mujoco.mj_kinematics(data.model, data)
        return data.site_xpos[0] - target

    for target, error in zip(pos[:8], solution.pos_error[:8], strict=True):
        start = np.asarray(chain.middle, np.float64)
        best = least_squares(residual, start, bounds=limits, args=(target,))
        assert error <= np.linalg.norm(best.fun) + 1e-3


def test_tracks_a_moving_target_with_two_steps_at_a_time():
    """A circle of 5 cm radius in 50 steps of 6 mm, the tool's orientation held."""
    chain = chain_of(SEVEN, "tool")
    q = chain.middle + 0.2
    start = forward(chain, q)
    angle = np.linspace(0, 2 * np.pi, 51)
    circle = 0.05 * np.stack([np.cos(angle) - 1, np.sin(angle), 0 * angle], -1)

    def follow(q, target):
        solution = inverse(chain, target, start.quat, q, iterations=2)
        return solution.q, solution

    _, solutions = jax.jit(functools.partial(jax.lax.scan, follow))(q, start.pos + circle)
    assert np.all(solutions.converged)
    # A branch switch would show as a jump.
    assert np.max(np.abs(np.diff(solutions.q, axis=0))) < 0.1
