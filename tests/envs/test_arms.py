"""The models of UR10, KR120 and RA620: kinematics, limits, masses and drives of their tables."""

import math

import mujoco
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from envs.robots import kr120, ra620, ur10

ROBOTS = {"ur10": (ur10, "ee_link"), "kr120": (kr120, "tool0"), "ra620": (ra620, "tool0")}
H = math.pi / 2

# Of each URDF: per joint, where it is in its parent (m), roll, pitch and yaw (rad), axis, lower and
# upper limit (rad), speed limit (rad/s); then the fixed frame at the end.
URDF = {
    "ur10": (
        [
            ([0, 0, 0.1273], [0, 0, 0], [0, 0, 1], -4 * H, 4 * H, 2.16),
            ([0, 0.220941, 0], [0, H, 0], [0, 1, 0], -4 * H, 4 * H, 2.16),
            ([0, -0.1719, 0.612], [0, 0, 0], [0, 1, 0], -2 * H, 2 * H, 3.15),
            ([0, 0, 0.5723], [0, H, 0], [0, 1, 0], -4 * H, 4 * H, 3.2),
            ([0, 0.1149, 0], [0, 0, 0], [0, 0, 1], -4 * H, 4 * H, 3.2),
            ([0, 0, 0.1157], [0, 0, 0], [0, 1, 0], -4 * H, 4 * H, 3.2),
        ],
        ([0, 0.0922, 0], [0, 0, H]),
    ),
    "kr120": (
        [
            ([0, 0, 0.675], [0] * 3, [0, 0, -1], -3.22885911619, 3.22885911619, 2.72271363311),
            ([0.35, 0, 0], [0] * 3, [0, 1, 0], -2.70526034059, 0.610865238198, 2.72271363311),
            ([1.15, 0, 0], [0] * 3, [0, 1, 0], -2.26892802759, 2.68780704807, 2.72271363311),
            ([1.0, 0, -0.041], [0] * 3, [-1, 0, 0], -6.10865238198, 6.10865238198, 5.75958653158),
            ([0, 0, 0], [0] * 3, [0, 1, 0], -2.26892802759, 2.26892802759, 5.75958653158),
            ([0, 0, 0], [0] * 3, [-1, 0, 0], -6.10865238198, 6.10865238198, 10.7337748998),
        ],
        ([0.215, 0, 0], [0, H, 0]),
    ),
    "ra620": (
        [
            ([0, 0, 0.245], [0] * 3, [0, 0, 1], -H, H, 2.018),
            ([0.106, 0.150, 0.280], [0] * 3, [1, 0, 0], -2.356194, 1.745329, 2.018),
            ([0.0385, 0, 0.770], [0] * 3, [1, 0, 0], -1.396263, 3.316126, 2.018),
            ([-0.1445, 0.231, 0.150], [0] * 3, [0, 1, 0], -3.490659, 3.490659, 2.018),
            ([0, 0.454, 0], [0] * 3, [1, 0, 0], -2.268928, 2.268928, 2.018),
            ([0, 0.0885, 0], [0] * 3, [0, 1, 0], -2 * H, 2 * H, 2.018),
        ],
        ([0, 0.1215, 0], [0, -H, -H]),
    ),
}


@pytest.fixture(scope="module", params=ROBOTS)
def robot(request):
    module, hand = ROBOTS[request.param]
    return request.param, module, module.load().compile(), hand


def homogeneous(pos, rotation):
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = rotation.as_matrix(), pos
    return out


def by_urdf(name, q):
    """The pose of the frame at the end."""
    joints, (pos, rpy) = URDF[name]
    pose = np.eye(4)
    for angle, (origin, turn, axis, *_) in zip(q, joints, strict=True):
        pose = pose @ homogeneous(origin, Rotation.from_euler("xyz", turn))
        pose = pose @ homogeneous([0, 0, 0], Rotation.from_rotvec(angle * np.array(axis)))
    return pose @ homogeneous(pos, Rotation.from_euler("xyz", rpy))


def by_model(model, hand, q):
    data = mujoco.MjData(model)
    data.qpos = q
    mujoco.mj_kinematics(model, data)
    body = data.body(hand)
    return homogeneous(body.xpos, Rotation.from_matrix(body.xmat.reshape(3, 3)))


def test_forward_kinematics_is_the_urdfs(robot):
    name, _, model, hand = robot
    low, high = model.jnt_range.T
    for q in np.random.default_rng(0).uniform(low, high, (20, 6)):
        np.testing.assert_allclose(by_model(model, hand, q), by_urdf(name, q), atol=1e-9)


def test_a_ur10_follows_the_makers_denavit_hartenberg_parameters():
    """Their base is turned by half a turn about z, their flange has z where `ee_link` has x."""
    a = [0, -0.612, -0.5723, 0, 0, 0]
    d = [0.1273, 0, 0, 0.163941, 0.1157, 0.0922]
    alpha = [H, 0, 0, H, -H, 0]
    model = ur10.load().compile()
    for q in np.random.default_rng(1).uniform(-math.pi, math.pi, (20, 6)):
        pose = np.diag([-1.0, -1.0, 1.0, 1.0])
        for i in range(6):
            pose = pose @ homogeneous([0, 0, d[i]], Rotation.from_rotvec([0, 0, q[i]]))
            pose = pose @ homogeneous([a[i], 0, 0], Rotation.from_rotvec([alpha[i], 0, 0]))
        ours = by_model(model, "ee_link", q)
        np.testing.assert_allclose(ours[:3, 3], pose[:3, 3], atol=1e-5)
        np.testing.assert_allclose(ours[:3, 0], pose[:3, 2], atol=1e-5)


def test_limits_are_the_urdfs(robot):
    name, module, model, _ = robot
    table = np.array([row[3:] for row in URDF[name][0]], float)
    np.testing.assert_allclose(model.jnt_range, table[:, :2], atol=1e-9)
    assert model.jnt_limited.all()
    np.testing.assert_array_equal(module.MAX_SPEED, table[:, 2])
    assert [model.joint(i).name for i in range(6)] == list(module.JOINTS)
    assert (model.nq, model.nu, model.opt.timestep) == (6, 6, 0.0083)


def test_a_ur10_weighs_what_its_urdf_says():
    """Solid cylinders: m (3 r^2 + l^2) / 12 across, m r^2 / 2 along."""
    model = ur10.load().compile()
    links = {
        "shoulder_link": (7.778, 0.075, 0.178, [0, 0, 0]),
        "upper_arm_link": (12.93, 0.075, 0.612, [0, -0.045, 0.306]),
        "forearm_link": (3.87, 0.075, 0.5723, [0, 0, 0.28615]),
        "wrist_1_link": (1.96, 0.075, 0.12, [0, 0.1149, 0]),
        "wrist_2_link": (1.96, 0.075, 0.12, [0, 0, 0.1157]),
        "wrist_3_link": (0.202, 0.045, 0.0305, [0, 0.07695, 0]),
    }
    for name, (mass, radius, length, centre) in links.items():
        body = model.body(name)
        across, along = mass * (3 * radius**2 + length**2) / 12, mass * radius**2 / 2
        assert body.mass[0] == pytest.approx(mass)
        np.testing.assert_allclose(body.ipos, centre, atol=1e-9)
        np.testing.assert_allclose(sorted(body.inertia), sorted([across, across, along]), rtol=1e-6)


@pytest.mark.parametrize("name", ["kr120", "ra620"])
def test_links_without_a_mass_of_their_own_weigh_2_kg(name):
    model = ROBOTS[name][0].load().compile()
    moving = slice(2, 8)  # after the world and the base, before the tool
    np.testing.assert_array_equal(model.body_mass[moving], 2)
    np.testing.assert_allclose(model.body_inertia[moving], 0.01)
    assert model.body_mass.sum() == 12


@pytest.mark.parametrize(("name", "lag"), [("ur10", 0.05), ("kr120", 1.0), ("ra620", 1.0)])
@pytest.mark.parametrize("capped", [False, True])
def test_drives_are_capped_first_order_lags(name, lag, capped):
    """q' = q + dt clip((target - q) / lag, -cap, cap), but for the inertia and the weight."""
    module = ROBOTS[name][0]
    cap = 0.5 * module.MAX_SPEED if capped else np.full(6, np.inf)
    model = module.load(cap if capped else math.inf).compile()
    data = mujoco.MjData(model)
    q, data.ctrl = np.zeros(6), [1.2, -0.5, 0.9, 0.7, -1.0, 2.0]
    fastest = np.zeros(6)
    for _ in range(300):
        mujoco.mj_step(model, data)
        q = q + 0.0083 * np.clip((data.ctrl - q) / lag, -cap, cap)
        np.testing.assert_allclose(data.qpos, q, atol=2e-3)
        fastest = np.maximum(fastest, abs(data.qvel))
    np.testing.assert_allclose(data.qpos, q, atol=5e-4)
    assert (fastest <= 1.01 * cap).all()
    if not capped:
        np.testing.assert_allclose(fastest, abs(data.ctrl) / lag, rtol=0.02)


def test_nothing_collides_and_looks_weigh_nothing(robot):
    *_, model, _ = robot
    assert not model.geom_contype.any()
    assert not model.geom_conaffinity.any()
    assert not model.geom_dataid.max() >= 0  # no meshes


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_the_widest_jump_of_the_targets_is_not_taken_for_divergence(robot, share):
    """MuJoCo's own check: accelerations beyond 1e10, before damping."""
    _, _, model, _ = robot
    model.body_mass *= share
    model.body_inertia *= share
    data = mujoco.MjData(model)
    data.qpos, data.ctrl = model.jnt_range.T
    mujoco.mj_forward(model, data)
    assert abs(data.qacc).max() < 1e9 * 5


@pytest.mark.parametrize("cap", [0.0, [1.0, 1.0, 1.0, 1.0, 1.0, -1.0]])
def test_speed_caps_must_be_positive(robot, cap):
    with pytest.raises(ValueError, match="velocity_cap must be positive, got "):
        robot[1].load(cap)


def test_there_is_one_speed_cap_or_one_a_joint(robot):
    with pytest.raises(ValueError, match=r"velocity_cap is one number or \d, one a joint; got \["):
        robot[1].load([1.0] * 9)
