"""Model fields that vary between simulations, against models compiled with their values."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from jaxrobo.physics import NativePhysics


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


BODY = """
<mujoco>
  <option timestep="0.002" {option}/>
  <worldbody>
    <geom type="plane" size="1 1 1" friction="0.1 0.005 0.0001"/>
    <body name="arm" pos="1 0 0.5">
      <joint name="hinge" axis="0 1 0" armature="{armature}"/>
      <geom type="capsule" fromto="0 0 0 0.3 0 0" size="0.02"/>
    </body>
    <body name="thing" pos="0 0 0.3" euler="5 3 0">
      <freejoint/>
      <inertial pos="{ipos}" euler="0 0 30" mass="{mass}" diaginertia="{inertia}"/>
      <geom name="thing" type="box" size="{size}" pos="{pos}" euler="0 0 30" friction="{friction}"/>
      <site name="thing" pos="{site}"/>
    </body>
  </worldbody>
  <actuator><position joint="hinge" kp="{kp}" kv="{kv}" ctrlrange="-1 1"/></actuator>
  <sensor>
    <framepos objtype="site" objname="thing"/>
    <framepos objtype="geom" objname="thing"/>
  </sensor>
</mujoco>
"""
NOMINAL = dict(
    option="",
    armature="0.01",
    ipos="0.01 0 0",
    mass="0.5",
    inertia="0.001 0.002 0.003",
    size="0.03 0.02 0.02",
    pos="0.01 0 0",  # the frame of the inertia, of which the compiler makes a shortcut
    friction="0.1",
    site="0.01 0 0",
    kp="5",
    kv="0.3",
)
VARIATIONS = {
    "mass": (dict(mass="1.5", inertia="0.006 0.012 0.012"), ("body_mass", "body_inertia")),
    "armature": (dict(armature="0.1"), ("dof_armature",)),
    "gains": (dict(kp="9", kv="0.1"), ("actuator_gainprm", "actuator_biasprm")),
    "friction": (dict(friction="0.9"), ("geom_friction",)),
    "geom size": (dict(size="0.12 0.09 0.15"), ("geom_size",)),
    "geom pose": (dict(pos="0.05 0.01 -0.1"), ("geom_pos",)),
    "site pose": (dict(site="0.05 0.01 -0.1"), ("site_pos",)),
    "centre of mass": (dict(ipos="-0.01 0.008 0.015"), ("body_ipos",)),
    "gravity": (dict(option='gravity="0 1 -3"'), ("opt.gravity",)),
}


def compiled(**changes):
    return mujoco.MjModel.from_xml_string(BODY.format(**{**NOMINAL, **changes}))


@pytest.fixture(scope="module")
def thing():
    return NativePhysics(compiled())


def simulate(model):
    data = mujoco.MjData(model)
    data.qvel[1:4], data.ctrl[0] = (0.5, 0.2, 0), 0.7
    for _ in range(200):
        mujoco.mj_step(model, data)
    mujoco.mj_step1(model, data)  # what is derived from the state that it ended in
    return data


@pytest.mark.parametrize("case", VARIATIONS)
def test_varied_model_fields_equal_a_model_compiled_with_them(case, thing, x64):
    changes, fields = VARIATIONS[case]
    nominal, other = thing.mj_model, compiled(**changes)
    assert nominal.geom("thing").sameframe == mujoco.mjtSameFrame.mjSAMEFRAME_INERTIA
    values = {f: getattr(other.opt, f[4:]) if "." in f else getattr(other, f) for f in fields}
    qvel = np.zeros(other.nv)
    qvel[1:4] = (0.5, 0.2, 0)
    state = thing.init(model=values, qvel=qvel)
    state, _ = thing.step(state, {"ctrl": [0.7]}, 200)
    expected, unchanged = simulate(other), simulate(nominal)
    for name in ("qpos", "qvel", "sensordata", "site_xpos"):
        np.testing.assert_allclose(getattr(state, name), getattr(expected, name), atol=1e-8)
    change = [getattr(expected, k) - getattr(unchanged, k) for k in ("qpos", "qvel", "sensordata")]
    assert np.abs(np.concatenate(change)).max() > 1e-3


def test_each_simulation_has_its_own_model(thing, x64):
    mass, inertia = thing.mj_model.body_mass, thing.mj_model.body_inertia
    scales = jnp.array([0.5, 1.0, 3.0])

    def run(scale):
        state = thing.init(model={"body_mass": mass * scale, "body_inertia": inertia * scale})
        return thing.step(state, {"ctrl": jnp.array([0.7])}, 100)[0]

    states = jax.jit(jax.vmap(run))(scales)
    for i, scale in enumerate(scales):
        model = compiled()
        model.body_mass *= scale
        model.body_inertia *= scale
        data = mujoco.MjData(model)
        mujoco.mj_setConst(model, data)
        data.ctrl[0] = 0.7
        mujoco.mj_step(model, data, nstep=100)
        np.testing.assert_allclose(states.qpos[i], data.qpos, atol=1e-10)
        for name in ("body_subtreemass", "dof_invweight0", "actuator_acc0"):
            np.testing.assert_allclose(states.model[name][i], getattr(model, name), rtol=1e-12)
    assert np.ptp(states.qpos[:, 0]) > 0.01


def test_a_simple_body_refuses_another_centre_of_mass():
    """The compiler gave it a diagonal mass matrix; MuJoCo says so instead of computing nonsense."""
    xml = "<mujoco><worldbody><body><freejoint/><geom size='0.1'/></body></worldbody></mujoco>"
    physics = NativePhysics(mujoco.MjModel.from_xml_string(xml))
    with pytest.raises(Exception, match="simple='false'"):
        physics.init(model={"body_ipos": jnp.full((2, 3), 0.01)})
