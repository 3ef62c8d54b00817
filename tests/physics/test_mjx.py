"""The MJX engine: what it refuses, the constants it derives, how it compiles."""

import time

import jax
import jax.export
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from jaxrobo.physics import make_physics
from jaxrobo.physics._mjx import kinematics

PENDULUM = """
<mujoco>
  <compiler angle="radian"/>
  <option timestep="0.002" {option}><flag {flag}/></option>
  <worldbody>
    <camera name="camera" mode="{camera}" pos="0 -1 0"/>
    <geom name="table" type="{table}" size="0.2 0.2 0.05" pos="0 0 -2"/>
    <body name="link">
      <joint name="hinge" axis="0 1 0" damping="0.02" {joint}/>
      <geom name="rod" type="box" size="0.02 0.02 0.3" pos="0 0 -0.3" mass="0.5" {geom}/>
      <site name="tip" pos="0 0 -0.6"/>
    </body>
  </worldbody>
  <tendon><fixed name="tendon" {tendon}><joint joint="hinge" coef="1"/></fixed></tendon>
  <actuator><{actuator}/></actuator>
  <sensor>{sensor}</sensor>
</mujoco>
"""
PLAIN = {
    "option": "",
    "flag": "",
    "camera": "fixed",
    "table": "sphere",
    "joint": "",
    "geom": "",
    "tendon": "",
    "actuator": 'motor joint="hinge"',
    "sensor": "",
}


def _pendulum(**changes):
    return mujoco.MjModel.from_xml_string(PENDULUM.format(**PLAIN | changes))


@pytest.fixture(scope="module")
def pendulum():
    return make_physics(_pendulum(flag='contact="disable"'), "mjx")


def _swing(physics, angle, torque, calls, substeps):
    """Angles and rates after each call."""
    state = physics.init(qpos=angle)
    step = lambda state, _: (physics.step(state, {"ctrl": torque}, substeps)[0],) * 2
    states = jax.lax.scan(step, state, length=calls)[1]
    return states.qpos[:, 0], states.qvel[:, 0], states.time


def test_a_swing_follows_mujoco_under_nested_vmap(pendulum):
    rng = np.random.default_rng(0)
    angle, torque = rng.uniform(-2, 2, (3, 2, 1)), rng.uniform(-1, 1, (3, 2, 1))
    run = lambda a, t: _swing(pendulum, a, t, 5, 20)
    nested = jax.jit(jax.vmap(jax.vmap(run)))(angle, torque)
    data = mujoco.MjData(pendulum.mj_model)
    for index in np.ndindex(3, 2):
        mujoco.mj_resetData(pendulum.mj_model, data)
        data.qpos[:], data.ctrl[:] = angle[index], torque[index]
        expected = []
        for _ in range(5):
            mujoco.mj_step(pendulum.mj_model, data, 20)
            expected.append([data.qpos[0], data.qvel[0], data.time])
        got = np.stack([x[index] for x in nested], axis=1)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def test_a_program_for_an_accelerator_calls_no_host(pendulum):
    run = jax.jit(jax.vmap(lambda a, t: _swing(pendulum, a, t, 2, 2)))
    args = [jax.ShapeDtypeStruct((4, 1), jnp.float32)] * 2
    exported = jax.export.export(run, platforms=["cuda"])(*args).mlir_module()
    assert "callback" not in exported
    assert "optimization_barrier" not in exported


def test_all_products_of_matrices_ask_for_full_precision():
    """Those of an accelerator have three digits unless they're told to."""
    model = _pendulum()  # touches nothing, but a contact's rows are computed all the same
    physics = make_physics(model, "mjx")
    run = lambda a, t: physics.step(physics.init(qpos=a), {"ctrl": t}, 1)
    closed = jax.make_jaxpr(run)(jnp.zeros(1), jnp.zeros(1))
    highest = (jax.lax.Precision.HIGHEST,) * 2
    found = [
        eqn.params["precision"] for eqn in _equations(closed) if eqn.primitive.name == "dot_general"
    ]
    assert len(found) > 10
    assert set(found) == {highest}


def _equations(jaxpr):
    """All of a program, those of its loops and calls too."""
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield eqn
        for value in jax.tree.leaves([*eqn.params.values()], is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
                yield from _equations(value)


def test_kinematics_of_a_long_chain_are_fast_in_a_plain_jit():
    link = '<body pos="0 0 0.1"><joint axis="{}"/><geom size="0.02" contype="0"/>'
    axes = ["0 0 1", "0 1 0", "1 0 0"] * 3
    chain = "".join(map(link.format, axes)) + "</body>" * len(axes)
    xml = (
        f'<mujoco><option><flag contact="disable"/></option><worldbody>{chain}</worldbody></mujoco>'
    )
    physics = make_physics(mujoco.MjModel.from_xml_string(xml), "mjx")
    place = lambda q: kinematics(physics._model, physics._data.replace(qpos=q)).xpos
    qpos = np.random.default_rng(0).normal(size=(64, len(axes)))
    place = jax.jit(jax.vmap(place)).lower(qpos).compile()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        jax.block_until_ready(place(qpos))
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5  # some ms; half a minute without the barriers


MIXED = """
<mujoco>
  <default><geom contype="0" conaffinity="0"/></default>
  <worldbody>
    <site name="anchor" pos="0 0 1"/>
    <body name="post" pos="1 0 0"><geom size="0.1"/></body>
    <body name="arm">
      <joint name="a" axis="0 1 0" armature="0.1"/>
      <geom type="box" size="0.1 0.2 0.3" pos="0.1 0 0"/>
      <body name="wrist" pos="0.3 0 0.1">
        <joint type="ball"/><geom type="box" size="0.1 0.05 0.03"/><site name="tip" pos="0.1 0 0"/>
        <body name="pad" pos="0 0.1 0"><geom size="0.03"/></body>
      </body>
    </body>
    <body name="slider">
      <joint name="s" type="slide" axis="1 0 0" armature="2"/><geom size="0.1"/>
    </body>
    <body name="free" pos="0 0 1">
      <freejoint name="f"/><geom type="box" size="0.1 0.2 0.3"/>
      <body pos="0.2 0 0">
        <joint axis="1 1 0"/><geom type="capsule" size="0.03 0.1" pos="0 0 0.1"/>
      </body>
    </body>
    <body name="hand" mocap="true" pos="0 1 0">
      <geom size="0.1"/>
      <body name="finger" pos="0 0.1 0"><joint axis="1 0 0"/><geom size="0.1" pos="0 0 0.1"/></body>
    </body>
  </worldbody>
  <tendon>
    <spatial name="rope"><site site="tip"/><site site="anchor"/></spatial>
    <fixed name="sum"><joint joint="a" coef="0.7"/><joint joint="s" coef="-2"/></fixed>
  </tendon>
  <actuator>
    <motor joint="a" gear="3"/><motor site="tip" gear="0 1 0 0 0.2 0"/><motor tendon="rope"/>
    <motor joint="f" gear="0 0 1 0.1 0 0"/>
  </actuator>
</mujoco>
"""


def test_constants_are_those_of_set_const():
    m, rng = mujoco.MjModel.from_xml_string(MIXED), np.random.default_rng(0)
    physics = make_physics(m, "mjx")
    spread = {
        "body_mass": (0.5, 2),
        "body_inertia": (0.95, 1.05),
        "body_pos": (0.5, 2),
        "dof_armature": (0.5, 2),
        "actuator_gear": (0.5, 2),
    }
    model = {}
    for name, (low, high) in spread.items():
        nominal = getattr(m, name)
        model[name] = nominal * rng.uniform(low, high, (3, *nominal.shape))
    offset = 0.02 * rng.normal(size=(3, m.nbody, 3))
    offset[:, m.body_simple > 0] = 0  # the compiler chose shortcuts that assume a centred mass
    model["body_ipos"] = m.body_ipos + offset
    derived = jax.jit(jax.vmap(physics._derive_constants))(model)
    for i in range(3):
        expected = mujoco.MjModel.from_xml_string(MIXED)
        for name, values in model.items():
            getattr(expected, name)[:] = values[i]
        mujoco.mj_setConst(expected, mujoco.MjData(expected))
        assert len(derived) == 8
        for name, values in derived.items():
            scale = np.abs(getattr(expected, name)).max()
            np.testing.assert_allclose(
                values[i], getattr(expected, name), rtol=1e-5, atol=1e-6 * scale, err_msg=name
            )


def test_fields_that_nothing_derives_from_bring_no_constants(pendulum):
    assert pendulum._derive_constants({"dof_damping": jnp.ones(1)}) == {}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"option": 'integrator="RK4"'}, "mjINT_RK4"),
        ({"option": 'integrator="implicit"'}, "mjINT_IMPLICIT"),
        ({"option": 'integrator="discrete"'}, "mjINT_DISCRETE"),
        ({"option": 'solver="PGS"'}, "mjSOL_PGS"),
        ({"option": 'noslip_iterations="3"'}, "noslip"),
        ({"option": 'actuatorgroupdisable="2"'}, "disabled actuator groups"),
        ({"flag": 'sleep="enable"'}, "sleeping"),
        ({"flag": 'energy="enable"'}, "mjENBL_ENERGY"),
        ({"flag": 'spring="disable"'}, "springs or dampers"),
        ({"table": "cylinder"}, "mjGEOM_CYLINDER.*mjGEOM_BOX"),
        ({"geom": 'gap="0.01" margin="0.01"'}, "contact gap"),
        ({"option": 'density="1"', "geom": 'fluidshape="ellipsoid"'}, "ellipsoid fluid"),
        ({"joint": 'stiffness="1 2"'}, "nonlinear springs"),
        ({"tendon": 'armature="0.1"'}, "tendon armature"),
        ({"actuator": 'motor joint="hinge" armature="0.1"'}, "actuator armature"),
        ({"actuator": 'motor joint="hinge" damping="0.1"'}, "actuator damping"),
        ({"actuator": 'motor joint="hinge" delay="0.01" nsample="5"'}, "delays"),
        (
            {"actuator": 'general joint="hinge" dyntype="filter" dynprm="1" actearly="true"'},
            "early activation",
        ),
        ({"actuator": 'adhesion body="link" ctrlrange="0 1"'}, "mjTRN_BODY"),
        (
            {
                "actuator": 'muscle joint="hinge" lengthrange="-1 1"',
                "option": 'integrator="implicitfast"',
            },
            "muscles",
        ),
        ({"sensor": '<rangefinder name="r" site="tip"/>'}, r"'r' \(rangefinder\)"),
        (
            {
                "joint": 'limited="true" range="-1 1"',
                "sensor": '<jointlimitpos name="l" joint="hinge"/>',
            },
            r"'l' \(jointlimitpos\)",
        ),
        (
            {
                "camera": "trackcom",
                "sensor": '<framepos name="p" objtype="camera" objname="camera"/>',
            },
            r"'p' \(framepos\)",
        ),
    ],
)
def test_what_mjx_lacks_is_refused_by_name(changes, named):
    with pytest.raises(ValueError, match=f"the mjx engine doesn't support .*{named}"):
        make_physics(_pendulum(**changes), "mjx")


def test_a_model_without_joints_is_refused():
    m = mujoco.MjModel.from_xml_string('<mujoco><worldbody><geom size="1"/></worldbody></mujoco>')
    with pytest.raises(ValueError, match="doesn't support models without joints"):
        make_physics(m, "mjx")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nonsense", "unknown model field 'nonsense'"),
        ("jnt_stiffnesspoly", "can't vary the model field 'jnt_stiffnesspoly'"),
        ("jnt_limited", "can't vary the model field 'jnt_limited'"),
        ("actuator_damping", "can't vary the model field 'actuator_damping'"),
        ("opt.iterations", "can't vary the model field 'opt.iterations'"),
        ("dof_frictionloss", "can't vary 'dof_frictionloss' unless the model has it"),
        ("body_gravcomp", "can't vary 'body_gravcomp' unless the model has it"),
        ("opt.wind", "can't vary 'opt.wind' unless the model has it"),
    ],
)
def test_fields_that_mjx_would_not_read_are_refused(pendulum, name, message):
    with pytest.raises(ValueError, match=message):
        pendulum.init(model={name: jnp.zeros(1)})


def test_an_engine_made_while_tracing_serves_afterwards():
    made = []
    jax.eval_shape(lambda: made.append(make_physics(_pendulum(flag='contact="disable"'), "mjx")))
    state = jax.eval_shape(made[0].init)
    assert state.site_xpos.shape == (1, 3)


def test_an_elliptic_cone_without_contacts_works():
    m = _pendulum(option='cone="elliptic"', flag='contact="disable"', joint='frictionloss="0.1"')
    physics = make_physics(m, "mjx")
    new, _ = jax.eval_shape(lambda: physics.step(physics.init()))
    assert new.qpos.shape == (1,)


def test_the_room_for_contacts_is_stated_and_bounded():
    def pile(n):
        boxes = "".join(
            f'<body><freejoint/><geom name="b{i}" type="box" size="1 1 1"/></body>'
            for i in range(n)
        )
        return mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{boxes}</worldbody></mujoco>")

    physics = make_physics(pile(3), "mjx")
    assert physics.contact_slots == 3 * 4
    assert physics.constraint_rows == 3 * 4 * 4
    with pytest.raises(ValueError, match="760 possible contacts for mjx, of 190 box-box pairs"):
        make_physics(pile(20), "mjx")


def test_contact_sensors_that_read_differently_are_refused():
    def build(attributes):
        return mujoco.MjModel.from_xml_string(
            '<mujoco><worldbody><geom name="f" type="plane" size="1 1 1"/><body><freejoint/>'
            '<geom name="b" size="0.1"/></body></worldbody><sensor>'
            f'<contact name="c" geom1="f" geom2="b" {attributes}/></sensor></mujoco>'
        )

    make_physics(build('data="found force" reduce="netforce"'), "mjx")
    make_physics(build('data="found" num="1"'), "mjx")
    for attributes in ('data="force" reduce="maxforce"', 'data="pos"', 'data="found" num="2"'):
        with pytest.raises(ValueError, match=r"sensor 'c' \(contact\)"):
            make_physics(build(attributes), "mjx")
