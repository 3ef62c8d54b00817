"""The Dofbot's model: its URDF's kinematics, and the motion of its drives in closed form."""

import math

import mujoco
import numpy as np
import pytest

from envs.robots import dofbot

# Forward kinematics computed from the manufacturer's URDF with numpy: joint positions (rad), and
# position (m) and orientation (wxyz) of link5.
Q = math.pi / 4
POSES = [
    (
        [0, 0, 0, 0, 0],
        [0.000001, 0.001104, 0.347044],
        [0.999999, -0.001248, 0.000400, -0.000001],
    ),
    (
        [0, Q, Q, Q, 0],
        [0.000000, -0.192308, 0.114811],
        [0.383837, 0.923401, 0.000154, 0.000366],
    ),
    (
        [2 * Q, Q, Q, Q, 2 * Q],
        [0.192824, 0.000504, 0.112728],
        [0.004633, 0.925450, 0.002198, 0.378836],
    ),
]

ORIGINS = [
    [0, 0, 0.06605],
    [0, 0.000129, 0.107501],
    [0, 0.001024, 0.190346],
    [0, 0.001920, 0.273191],
    [0, 0.001104, 0.347044],
]


def posed(q):
    model = dofbot.load().compile()
    data = mujoco.MjData(model)
    data.qpos = q
    mujoco.mj_kinematics(model, data)
    return data


@pytest.mark.parametrize(("q", "pos", "quat"), POSES)
def test_the_hand_is_where_the_urdf_puts_it(q, pos, quat):
    hand = posed(q).body("link5")
    np.testing.assert_allclose(hand.xpos, pos, atol=2e-6)
    quat = np.multiply(quat, np.sign(np.dot(hand.xquat, quat)))
    np.testing.assert_allclose(hand.xquat, quat, atol=2e-6)


def test_the_joints_are_where_the_urdf_puts_them():
    data = posed(np.zeros(5))
    for name, origin in zip(dofbot.JOINTS, ORIGINS, strict=True):
        np.testing.assert_allclose(data.joint(name).xanchor, origin, atol=2e-6)
    axes = [data.joint(name).xaxis for name in dofbot.JOINTS]
    np.testing.assert_allclose(axes[0], [0, 0.010805, 1], atol=1e-4)  # tilted like its link
    np.testing.assert_allclose(axes[1:4], np.tile([1.0, 0, 0], (3, 1)), atol=1e-3)
    np.testing.assert_allclose(axes[4], [0, 0, 1], atol=3e-3)


def test_the_joint_limits_are_the_urdfs():
    model = dofbot.load().compile()
    expected = [[-1.5708, 1.5708]] * 4 + [[-1.5708, 3.1416]]
    np.testing.assert_array_equal(model.jnt_range, expected)
    assert model.jnt_limited.all()
    assert (model.nq, model.nu, model.opt.timestep) == (5, 5, 0.0083)


@pytest.mark.parametrize("cap", [math.inf, 1.0, 3.14])
def test_a_drive_is_a_capped_first_order_lag(cap):
    """q' = q + dt clip((target - q) / 0.0506, -cap, cap), but for the mass and the weight."""
    model = dofbot.load(cap).compile()
    data = mujoco.MjData(model)
    q, data.ctrl = np.zeros(5), [1.2, 0.5, -0.6, 0.7, -1.0]
    fastest = 0.0
    for step in range(400):
        mujoco.mj_step(model, data)
        q = q + 0.0083 * np.clip((data.ctrl - q) / (53 / 1048), -cap, cap)
        np.testing.assert_allclose(data.qpos, q, atol=4e-3 if step < 10 else 1.2e-3)
        fastest = max(fastest, abs(data.qvel).max())
    np.testing.assert_allclose(data.qpos, data.ctrl, atol=5e-4)  # gravity sags it less than this
    if math.isfinite(cap):
        assert fastest == pytest.approx(cap, rel=0.03)  # links pull at each other
    else:
        assert fastest == pytest.approx(1.2 / 0.0506, rel=0.01)


def test_a_speed_cap_must_be_positive():
    with pytest.raises(ValueError, match=r"velocity_cap must be positive, got 0\.0"):
        dofbot.load(0.0)
