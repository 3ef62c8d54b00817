"""Scenes: attached parts, explicit pairs, contact sensors and what they read on both engines."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from jaxrobo.physics import make_physics
from jaxrobo.physics.contacts import ContactSensor, grasped
from jaxrobo.physics.scene import Scene

MASS, HALF = 0.4, 0.03
BOX = (
    f'<mujoco><worldbody><body name="box"><geom name="box" type="box" size="{HALF} {HALF} {HALF}" '
    f'mass="{MASS}"/></body></worldbody></mujoco>'
)
FLOOR = '<mujoco><worldbody><geom name="floor" type="plane" size="1 1 1"/></worldbody></mujoco>'
HAND = (
    '<mujoco><worldbody><body name="palm" mocap="true">'
    '<geom name="palm" type="box" size="0.02 0.02 0.01"/></body></worldbody></mujoco>'
)


def stack(force=True):
    """Two boxes, one on the other, on a floor; a mocap hand."""
    scene = Scene(0.002)
    scene.attach(FLOOR, "ground/")
    scene.attach(BOX, "low/", pos=(0, 0, HALF), free=True)
    scene.attach(BOX, "high/", pos=(0, 0, 3 * HALF), free=True)
    scene.attach(HAND, "hand/", pos=(0, 0, 0.5))
    scene.group("boxes", "low/box", "high/box")
    scene.pair("ground/floor", "boxes", 0.8)
    scene.pair("low/box", "high/box", 0.8)
    scene.contact_sensor("on_floor", "ground/floor", "boxes", force=force)
    scene.contact_sensor("on_low", "low/box", "high/box", force=force)
    scene.weld("hold", "hand/palm", "high/box", pos=(0, 0, -0.1))
    return scene


@pytest.fixture(scope="module")
def model():
    return stack().compile()


@pytest.fixture(scope="module", params=["native", "mjx"])
def physics(request, model):
    return make_physics(model, request.param)


@pytest.fixture(scope="module")
def start(model):
    """The native engine's, for both: what they make of it is compared elsewhere."""
    return jax.jit(make_physics(model, "native").init)()


@pytest.fixture(scope="module")
def run(physics, model):
    """`(state, mocap height) -> state, recorded sensors`, for 0.1 s."""
    names = [model.sensor(i).name for i in range(model.nsensor)]

    def run(state, height):
        pose = jnp.array([0.0, 0, 1])[None] * height
        return physics.step(state, {"mocap_pos": pose}, 50, names)

    return jax.jit(run)


def test_only_pairs_collide_with_the_friction_they_were_given(model):
    assert not model.geom_contype.any()
    assert not model.geom_conaffinity.any()
    assert model.npair == 3
    np.testing.assert_allclose(model.pair_friction, [[0.8, 0.8, 0.005, 0.0001, 0.0001]] * 3)
    assert model.body("high/box").jntnum == 1


def test_names_of_a_part_get_its_prefix_and_the_part_stays_as_it_is():
    part = mujoco.MjSpec.from_string(BOX)
    scene = Scene(0.01)
    scene.attach(part, "a/", pos=(1, 2, 3), quat=(0, 1, 0, 0))
    scene.attach(part, "b/", parent="a/box", pos=(0, 0, 1))
    model = scene.compile()
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    np.testing.assert_allclose(data.body("b/box").xpos, [1, 2, 2], atol=1e-12)
    assert [b.name for b in part.bodies] == ["world", "box"]
    assert model.opt.timestep == 0.01


def test_what_is_only_to_be_seen_can_be_left_out():
    scene = stack()
    scene.spec.body("low/box").add_geom(name="paint", size=[0.01, 0, 0], mass=0)
    full, bare = scene.compile(), scene.compile(visual=False)
    assert (full.ngeom, bare.ngeom) == (5, 3)  # the hand's own doesn't collide either
    np.testing.assert_array_equal(full.body_mass, bare.body_mass)
    np.testing.assert_array_equal(full.body_inertia, bare.body_inertia)


def test_sensors_measure_the_weight_that_rests_on_a_thing(model, start, run):
    state = start
    for _ in range(8):
        state, _ = run(state, 0.5)
    on_floor = ContactSensor.from_model(model, "on_floor")
    on_low = ContactSensor.from_model(model, "on_low")
    weight = MASS * 9.81
    assert on_floor.touching(state)
    assert on_low.touching(state)
    np.testing.assert_allclose(on_floor.force(state), [0, 0, 2 * weight], atol=0.02)
    np.testing.assert_allclose(on_low.force(state), [0, 0, weight], atol=0.02)


def test_a_weld_that_is_switched_on_carries_the_weight(model, start, run):
    weld = model.equality("hold").id
    state = start.replace(eq_active=start.eq_active.at[weld].set(True))
    for height in np.linspace(3 * HALF + 0.1, 0.25, 12):
        state, _ = run(state, height)
    assert not ContactSensor.from_model(model, "on_low").touching(state)
    force = ContactSensor.from_model(model, "on_floor").force(state)
    np.testing.assert_allclose(force, [0, 0, MASS * 9.81], atol=0.02)
    box = model.body("high/box").id
    np.testing.assert_allclose(state.xpos[box], [0, 0, 0.15], atol=5e-3)


def test_sensors_are_recorded_for_every_substep(model, start, run):
    sensor = ContactSensor.from_model(model, "on_low")
    lifted = start.replace(qpos=start.qpos.at[9].add(0.001))  # falls for 14 ms
    after, record = run(lifted, 0.5)
    touching = np.asarray(sensor.touching(record))
    assert touching.shape == (50,)
    assert not touching[:5].any()
    assert touching[-5:].all()
    assert sensor.force(record).shape == (50, 3)
    np.testing.assert_array_equal(sensor.force(record)[-1], sensor.force(after))


def test_a_sensor_without_force_costs_no_solution_and_says_so():
    model = stack(force=False).compile()
    sensor = ContactSensor.from_model(model, "on_floor")
    assert (model.sensor_needstage == mujoco.mjtStage.mjSTAGE_POS).all()
    state = make_physics(model, "native").init()
    with pytest.raises(ValueError, match="'on_floor/0' measures no force"):
        sensor.force(state)
    with pytest.raises(ValueError, match=r"unknown contact sensor 'x'; .*'on_floor', 'on_low'"):
        ContactSensor.from_model(model, "x")


def test_a_grasp_needs_two_forces_against_each_other():
    def held(a, b):
        return bool(grasped(jnp.array(a), jnp.array(b), 1.0))

    assert held([2.0, 0, 0], [-2.0, 0, 0])
    assert held([2.0, 0, 1.0], [-2.0, 0, 1.0])  # 127 degrees apart: the thing is carried
    assert not held([2.0, 0, 0], [-0.5, 0, 0])
    assert not held([2.0, 0, 0], [0.0, 2, 0])
    assert not held([2.0, 0, 0], [2.0, 0, 0])
    assert not held([0.0, 0, 0], [0.0, 0, 0])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: s.attach(BOX, ""), "a part needs a prefix"),
        (lambda s: s.attach(BOX, "low/"), "has a body 'low/box' already"),
        (lambda s: s.attach(BOX, "x/", parent="arm"), "unknown body 'arm'; .*low/box"),
        (lambda s: s.attach(FLOOR, "x/", free=True), "a free part is one body, 'x/' is not"),
        (lambda s: s.group("boxes", "low/box"), "the name 'boxes' is taken"),
        (lambda s: s.group("all", "lid"), "unknown geom or group 'lid'; valid: .*'boxes'"),
        (lambda s: s.pair("boxes", "floor", 1.0), "unknown geom or group 'floor'"),
        (lambda s: s.pair("high/box", "boxes", 1.0), "are one, or are paired already"),
        (lambda s: s.pair("hand/palm", "boxes", -1.0), "friction is one or three numbers.*-1"),
        (lambda s: s.pair("hand/palm", "boxes", np.nan), "friction is one or three numbers.*nan"),
        (lambda s: s.pair("hand/palm", "boxes", 0.0), "without friction has condim=1, not 3"),
        (lambda s: s.weld("w", "world", "low/lid"), "unknown body 'low/lid'; .*low/box"),
        (lambda s: s.attach(BOX, "x/", parent="low/box", free=True), "a free part has no parent"),
        (lambda s: s.pair("hand/palm", "boxes", (1, 2)), r"friction is one or three.*\(1, 2\)"),
        (lambda s: s.contact_sensor("t", "hand/palm", "boxes"), "never touch: pair them first"),
    ],
)
def test_mistakes_are_named(edit, message):
    with pytest.raises(ValueError, match=message):
        edit(stack())


@pytest.mark.parametrize("name", ["timestep", "iterations", "ls_iterations"])
def test_settings_must_be_positive(name):
    with pytest.raises(ValueError, match=f"{name} must be positive, got 0"):
        Scene(**{"timestep": 0.01, name: 0})
