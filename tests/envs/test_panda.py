"""The Panda's model against its maker's tables, its drives, and a grasp that holds."""

import jax
import mujoco
import numpy as np
import pytest

from envs.robots import panda
from jaxrobo.physics import make_physics

# Craig's parameters of the seven joints and the flange, as the maker publishes them (Franka Control
# Interface documentation, "Denavit-Hartenberg parameters"): a (m), d (m), alpha (rad).
DH = [
    (0, 0.333, 0),
    (0, 0, -np.pi / 2),
    (0, 0.316, np.pi / 2),
    (0.0825, 0, np.pi / 2),
    (-0.0825, 0.384, -np.pi / 2),
    (0, 0, np.pi / 2),
    (0.088, 0, np.pi / 2),
    (0, 0.107, 0),
]
LIMITS = [
    (-2.8973, 2.8973),
    (-1.7628, 1.7628),
    (-2.8973, 2.8973),
    (-3.0718, -0.0698),
    (-2.8973, 2.8973),
    (-0.0175, 3.7525),
    (-2.8973, 2.8973),
]
TORQUES = np.array([87.0] * 4 + [12.0] * 3)


@pytest.fixture(scope="module")
def model():
    return panda.load().compile()


def screw(a, d, alpha, theta):
    """Modified DH: Rot_x(alpha) Trans_x(a) Rot_z(theta) Trans_z(d)."""
    ct, st, ca, sa = np.cos(theta), np.sin(theta), np.cos(alpha), np.sin(alpha)
    return np.array(
        [
            [ct, -st, 0, a],
            [st * ca, ct * ca, -sa, -d * sa],
            [st * sa, ct * sa, ca, d * ca],
            [0, 0, 0, 1],
        ]
    )


def transform(data, kind, name):
    body = getattr(data, kind)(name)
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = body.xmat.reshape(3, 3), body.xpos
    return out


def closed(model, q, width=0.0):
    data = mujoco.MjData(model)
    data.qpos[:7], data.qpos[7:] = q, width / 2
    mujoco.mj_forward(model, data)
    return data


def test_forward_kinematics_is_the_makers_table(model):
    low, high = np.array(LIMITS).T
    for q in np.random.default_rng(0).uniform(low, high, (20, 7)):
        data = closed(model, q, 0.06)
        pose = np.eye(4)
        for i, (row, theta) in enumerate(zip(DH, [*q, 0.0], strict=True)):
            pose = pose @ screw(*row, theta)
            if i < 7:
                np.testing.assert_allclose(transform(data, "body", f"link{i + 1}"), pose, atol=1e-9)
        pose = pose @ screw(0, 0, 0, -np.pi / 4)
        np.testing.assert_allclose(transform(data, "body", "hand"), pose, atol=1e-8)
        ee = pose @ screw(0, 0.103399, 0, 0)
        np.testing.assert_allclose(transform(data, "site", "ee"), ee, atol=1e-8)
        for side, y in (("left", 0.03), ("right", -0.03)):
            finger = pose @ [0, y, 0.0584, 1]
            np.testing.assert_allclose(data.body(f"{side}_finger").xpos, finger[:3], atol=1e-8)


def test_the_limits_are_the_makers(model):
    np.testing.assert_array_equal(model.jnt_range[:7], LIMITS)
    np.testing.assert_array_equal(model.jnt_range[7:], [[0, 0.04]] * 2)
    assert model.jnt_limited.all()
    np.testing.assert_array_equal(model.jnt_actfrcrange[:7], np.stack([-TORQUES, TORQUES], 1))
    np.testing.assert_array_equal(panda.load(width=0.065).compile().jnt_range[7:, 1], 0.0325)
    assert [model.joint(i).name for i in range(9)] == [*panda.JOINTS, *panda.FINGERS]


def test_masses_and_inertias_are_physical(model):
    assert model.body_mass.sum() == pytest.approx(16.691901 + 0.73 + 2 * 0.015)
    moments = np.sort(model.body_inertia[1:])
    assert np.all(moments > 0)
    assert np.all(moments[:, 0] + moments[:, 1] > moments[:, 2])


def test_the_fingertips_meet_at_the_end_effector(model):
    data = closed(model, panda.HOME)
    hand = transform(data, "body", "hand")[:3, :3]
    for name, side in (("left_tip", 1), ("right_tip", -1)):
        geom = model.geom(name)
        np.testing.assert_allclose(geom.size, [0.00875, 0.0076, 0.00925])
        offset = hand.T @ (data.geom(name).xpos - data.site("ee").xpos)
        np.testing.assert_allclose(offset, [0, side * 0.00758, 0.00025], atol=5e-6)


def test_it_starts_above_the_table_with_the_hand_down(model):
    data = closed(model, panda.HOME)
    np.testing.assert_allclose(data.site("ee").xpos, [0.567, 0.055, 0.124], atol=1e-3)
    assert data.site("ee").xmat[8] < -0.99


def test_nothing_collides_unless_paired(model):
    assert not model.geom_contype.any()
    assert not model.geom_conaffinity.any()
    spec = panda.load()
    spec.compiler.discardvisual = True
    spec.add_pair(geomname1="left_tip", geomname2="right_tip")
    bare = spec.compile()
    assert [bare.geom(i).name for i in range(bare.ngeom)] == ["left_tip", "right_tip"]
    np.testing.assert_array_equal(bare.body_inertia, model.body_inertia)


def run(model, data, seconds, record):
    rows = []
    for _ in range(round(seconds / model.opt.timestep)):
        mujoco.mj_step(model, data)
        rows.append(record(data).copy())
    return np.array(rows)


@pytest.mark.parametrize("timestep", [0.002, 0.004])
def test_a_drive_follows_with_its_lag(timestep):
    """e^-1 of the step is left after 0.2 s, and no joint exceeds its torque."""
    spec = panda.load()
    spec.option.timestep = timestep
    model = spec.compile()
    data = closed(model, panda.HOME)
    data.ctrl[:7] = panda.HOME + 0.1
    torques = []

    def left(data):
        torques.append(np.abs(data.qfrc_actuator[:7]))
        return panda.HOME + 0.1 - data.qpos[:7]

    error = run(model, data, 1.2, left) / 0.1
    np.testing.assert_allclose(error[round(0.2 / timestep) - 1], np.exp(-1), atol=0.03)
    assert np.abs(error[-1]).max() < 0.01
    assert error.min() > -0.01
    assert np.all(np.max(torques, 0) <= TORQUES)
    assert np.any(np.max(torques, 0) == TORQUES)


def test_gravity_does_not_act(model):
    data = closed(model, panda.HOME, 0.04)
    data.ctrl[:7] = panda.HOME
    run(model, data, 0.5, lambda data: data.qpos)
    np.testing.assert_allclose(data.qpos[:7], panda.HOME, atol=1e-9)


def test_the_hand_closes_on_nothing_and_opens():
    model = panda.load(width=0.065).compile()
    data = closed(model, panda.HOME, 0.065)
    data.ctrl[:7], data.ctrl[7] = panda.HOME, -panda.GRIP_FORCE
    width = run(model, data, 0.5, lambda data: data.ten_length)[:, 0]
    assert width[-1] == pytest.approx(0, abs=3e-4)
    speed = -np.diff(width)[20:60].mean() / model.opt.timestep
    assert speed == pytest.approx(2 * 0.2, rel=0.02)
    data.ctrl[7] = panda.GRIP_FORCE
    width = run(model, data, 0.5, lambda data: data.ten_length)[:, 0]
    assert width[-1] == pytest.approx(0.065, abs=3e-4)
    assert data.qpos[7] == pytest.approx(data.qpos[8], abs=1e-5)


def holding():
    """A table leg of 3 cm and 23 g in the hand."""
    spec = panda.load()
    spec.option.timestep = 0.004
    spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    part = spec.worldbody.add_body(name="part")
    part.add_freejoint(name="part")
    box = mujoco.mjtGeom.mjGEOM_BOX
    part.add_geom(name="part", type=box, size=[0.015, 0.015, 0.04], mass=0.023)
    for tip in ("left_tip", "right_tip"):
        pair = spec.add_pair(geomname1=tip, geomname2="part", condim=4)
        pair.friction = [0.575, 0.575, 0.005, 1e-4, 1e-4]
        pair.solref, pair.solimp = [0.008, 1], [0.95, 0.99, 0.0005, 0.5, 2]
    model = spec.compile()
    data = closed(model, np.zeros(7))
    for names, values in ((panda.JOINTS, panda.HOME), (panda.FINGERS, [0.015, 0.015])):
        data.qpos[[model.joint(name).qposadr[0] for name in names]] = values
    mujoco.mj_forward(model, data)
    quat = np.zeros(4)
    mujoco.mju_mat2Quat(quat, data.site("ee").xmat)
    data.joint("part").qpos = [*data.site("ee").xpos, *quat]
    data.ctrl[:7], data.ctrl[7] = panda.HOME, -panda.GRIP_FORCE
    return model, data


def test_an_object_stays_in_the_moving_hand():
    """Swings of 0.1 rad at all joints, commanded ten times a second, for 2 s."""
    model, data = holding()
    ee = data.site("ee")
    place = lambda data: ee.xmat.reshape(3, 3).T @ (data.body("part").xpos - ee.xpos)
    start = run(model, data, 0.2, place)[-1]
    rows = []
    for k in range(20):
        data.ctrl[:7] = panda.HOME + 0.1 * np.sin(0.45 * k) * np.array([1, -0.5, 0.5, 0.5, 1, 1, 1])
        rows.append(run(model, data, 0.1, place))
    assert np.abs(np.concatenate(rows) - start).max() < 1e-3
    assert data.ten_length[0] == pytest.approx(0.03, abs=1e-3)


def test_the_engines_agree(model):
    """50 steps towards other targets, from moving joints, closing the hand and opening it."""
    rng = np.random.default_rng(0)
    states = {}
    qpos = np.concatenate([panda.HOME, [0.02, 0.02]]) + np.zeros((2, 1))
    ctrl = np.concatenate([panda.HOME + rng.uniform(-0.3, 0.3, (2, 7)), [[-13.0], [13.0]]], 1)
    qvel = np.concatenate([rng.normal(size=(2, 7)), np.zeros((2, 2))], 1)
    for engine in ("native", "mjx"):
        physics = make_physics(model, engine)

        def simulate(qpos, qvel, ctrl, physics=physics):
            return physics.step(physics.init(qpos=qpos, qvel=qvel), {"ctrl": ctrl}, 50)[0]

        simulate = jax.jit(jax.vmap(simulate))
        states[engine] = jax.device_get(simulate(qpos, qvel, ctrl))
    native, mjx = states["native"], states["mjx"]
    assert np.abs(native.qpos[:, :7] - qpos[:, :7]).min() > 1e-3
    np.testing.assert_allclose(mjx.qpos, native.qpos, atol=1e-5)
    np.testing.assert_allclose(mjx.qvel, native.qvel, atol=1e-4)
    np.testing.assert_allclose(mjx.site_xpos, native.site_xpos, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("stiffness", 0.0, r"stiffness must be positive, got 0\.0"),
        ("damping", -1.0, r"damping must be positive, got -1\.0"),
        ("width", 0.1, r"width must be in \(0, 0\.08\], got 0\.1"),
    ],
)
def test_bad_arguments_are_refused(name, value, message):
    with pytest.raises(ValueError, match=message):
        panda.load(**{name: value})
