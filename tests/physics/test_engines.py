"""The engines against each other: the same state and inputs give the same trajectory."""

import jax
import mujoco
import numpy as np
import pytest

from jaxrobo.physics import make_physics

WORKCELL = """
<mujoco>
  <compiler angle="radian"/>
  <option timestep="0.004" integrator="implicitfast" iterations="10" ls_iterations="10"/>
  <default>
    <geom contype="0" conaffinity="0" density="1500"/>
    <default class="arm">
      <joint damping="0.5" armature="0.02" limited="true" range="-0.6 0.6"/>
    </default>
  </default>
  <worldbody>
    <body childclass="arm" pos="0 0 0.1">
      <joint name="j0" axis="0 0 1"/><geom type="capsule" fromto="0 0 0 0 0 0.2" size="0.04"/>
      <body pos="0 0 0.2">
        <joint name="j1" axis="0 1 0"/><geom type="capsule" fromto="0 0 0 0 0 0.3" size="0.03"/>
        <body pos="0 0 0.3">
          <joint name="j2" axis="0 1 0"/><geom type="capsule" fromto="0 0 0 0 0 0.2" size="0.03"/>
          <body pos="0 0 0.2">
            <joint name="j3" axis="0 0 1"/><geom type="box" size="0.03 0.02 0.05"/>
            <body name="tool" pos="0 0 0.1">
              <joint name="j4" axis="0 1 0"/><geom type="box" size="0.02 0.04 0.05"/>
              <site name="tip" pos="0 0.02 0.1" quat="0.8 0.6 0 0"/>
            </body>
          </body>
        </body>
      </body>
    </body>
    <body name="hand" mocap="true" pos="0.5 0 0.5">
      <geom size="0.01"/>
      <body name="finger" pos="0.05 0 0"><geom size="0.01"/><site name="finger"/></body>
    </body>
    <body name="part" pos="0.5 0 0.5">
      <freejoint name="part"/><geom type="box" size="0.03 0.05 0.02" pos="0.01 0 0"/>
    </body>
    <body name="nut" pos="-0.5 0 0.5">
      <joint name="lead" type="slide" axis="0 0 1" damping="2" armature="0.001"/>
      <joint name="turn" type="hinge" axis="0 0 1" damping="0.01"/>
      <geom type="cylinder" size="0.03 0.02" pos="0.01 0 0"/>
    </body>
  </worldbody>
  <equality>
    <weld name="grasp" body1="hand" body2="part" active="false"/>
    <joint name="thread" joint1="lead" joint2="turn" polycoef="0 0.01 0 0 0" active="false"
      solref="0.008 1" solimp="0.9999 0.9999"/>
  </equality>
  <actuator>
    <position name="base" joint="j0" kp="60" kv="6" forcerange="-3 3"/>
    <position joint="j1" kp="80" kv="8"/>
    <position joint="j2" kp="60" kv="4"/><position joint="j3" kp="20" kv="1"/>
    <position joint="j4" kp="20" kv="1"/><motor joint="turn" gear="0.3"/>
  </actuator>
  <sensor>
    <framepos name="tip_pos" objtype="site" objname="tip"/>
    <framequat name="tip_quat" objtype="site" objname="tip" reftype="xbody" refname="part"/>
    <framelinvel name="tip_linvel" objtype="site" objname="tip"/>
    <frameangvel name="part_angvel" objtype="xbody" objname="part"/>
    <framepos name="finger_pos" objtype="site" objname="finger"/>
    <jointpos name="turn" joint="turn"/><jointvel name="turn_rate" joint="turn"/>
    <actuatorpos name="servo" actuator="base"/><gyro name="gyro" site="tip"/>
  </sensor>
</mujoco>
"""

SCENARIOS = (
    "plain",
    "grasped",
    "threaded",
    "pushed",
    "tumbling",
    "varied",
    "nan_velocity",
    "nan_control",
    "infinite_push",
)
FINITE = slice(0, SCENARIOS.index("nan_velocity"))
SENSORS = ("tip_pos", "tip_quat", "tip_linvel", "part_angvel", "finger_pos", "turn", "gyro")
CALLS, SUBSTEPS = 5, 20
EVOLVING = ("time", "qpos", "qvel", "qacc_warmstart")
DERIVED = ("xpos", "xquat", "site_xpos", "site_xmat", "sensordata")


@pytest.fixture(scope="module")
def workcell():
    return mujoco.MjModel.from_xml_string(WORKCELL)


def _starts(m):
    """What each scenario starts from, as a batch."""
    n, rng = len(SCENARIOS), np.random.default_rng(0)
    index = SCENARIOS.index
    fields = {
        "qpos": np.tile(m.qpos0, (n, 1)),
        "qvel": np.zeros((n, m.nv)),
        "eq_active": np.zeros((n, m.neq), bool),
        "xfrc_applied": np.zeros((n, m.nbody, 6)),
    }
    fields["qpos"][:, :5] = rng.uniform(-0.3, 0.3, (n, 5))
    fields["qvel"][:, :5] = rng.normal(size=(n, 5))
    fields["eq_active"][index("grasped"), 0] = True
    fields["eq_active"][index("threaded"), 1] = True
    part, free = m.body("part").id, m.joint("part").dofadr[0]
    fields["xfrc_applied"][index("pushed"), part] = [0.5, 1, 3, 0.01, 0.02, -0.01]
    fields["xfrc_applied"][index("infinite_push"), part, 0] = np.inf
    fields["qvel"][index("tumbling"), free + 3 : free + 6] = [4, -3, 5]
    fields["qvel"][index("nan_velocity"), free] = np.nan
    names = ("body_mass", "body_inertia", "dof_armature", "actuator_gainprm", "actuator_biasprm")
    model = {k: np.tile(getattr(m, k), (n, *[1] * getattr(m, k).ndim)) for k in names}
    scale, gain = rng.uniform(0.6, 1.6, m.nbody), rng.uniform(0.7, 1.3, m.nu)
    model["body_mass"][index("varied")] *= scale
    model["body_inertia"][index("varied")] *= scale[:, None]
    model["dof_armature"][index("varied"), :5] *= 2
    model["actuator_gainprm"][index("varied"), :, 0] *= gain
    model["actuator_biasprm"][index("varied"), :, 1:3] *= gain[:, None]
    return fields, model


def _inputs(m):
    """Controls for every substep, and poses of the hand held for a call; `[CALLS, scenario]`."""
    n, rng = len(SCENARIOS), np.random.default_rng(1)
    ctrl = rng.uniform(-1.5, 1.5, (CALLS, n, 1, m.nu))  # often beyond the joint limits
    ctrl = ctrl + 0.1 * rng.normal(size=(CALLS, n, SUBSTEPS, m.nu))
    ctrl[2, SCENARIOS.index("nan_control"), 7, 1] = np.nan
    way = np.linspace(0, 1, CALLS)[:, None, None, None]
    pos = m.body("hand").pos + way * np.array([0.05, -0.05, 0.02])
    quat = np.concatenate([np.cos(0.2 * way), np.sin(0.2 * way) * np.array([0, 0.6, 0.8])], axis=-1)
    held = {"mocap_pos": pos, "mocap_quat": quat}
    held = {k: np.broadcast_to(v, (CALLS, n, 1, v.shape[-1])) for k, v in held.items()}
    return {"ctrl": ctrl, **held}


@pytest.fixture(scope="module")
def trajectories(workcell):
    """Of each engine: the state at the start, after each call, and the recorded sensors."""
    fields, model = _starts(workcell)
    inputs = _inputs(workcell)
    out = {}
    for engine in ("native", "mjx"):
        physics = make_physics(workcell, engine)
        init = lambda fields, model, physics=physics: physics.init(model=model, **fields)
        step = lambda s, x, physics=physics: physics.step(s, x, SUBSTEPS, SENSORS)
        init, step = (jax.jit(jax.vmap(f)) for f in (init, step))
        states, traces = [init(fields, model)], []
        for call in range(CALLS):
            state, trace = step(states[-1], {k: v[call] for k, v in inputs.items()})
            states.append(state)
            traces.append(trace)
        out[engine] = jax.device_get((states, traces))
    return out


@pytest.mark.parametrize("name", EVOLVING + DERIVED)
def test_states_agree(trajectories, name):
    tolerance = {"qvel": 1e-4, "qacc_warmstart": 1e-2, "sensordata": 1e-4}.get(name, 1e-5)
    for native, mjx in zip(trajectories["native"][0], trajectories["mjx"][0], strict=True):
        a, b = (getattr(state, name)[FINITE] for state in (native, mjx))
        np.testing.assert_allclose(b, a, rtol=0, atol=tolerance)


def test_recorded_sensors_agree(trajectories):
    for native, mjx in zip(trajectories["native"][1], trajectories["mjx"][1], strict=True):
        assert set(native) == set(mjx) == set(SENSORS)
        for name in SENSORS:
            assert mjx[name].shape == native[name].shape
            np.testing.assert_allclose(mjx[name][FINITE], native[name][FINITE], rtol=0, atol=1e-4)


def test_the_scenarios_do_what_they_are_for(workcell, trajectories):
    states, traces = trajectories["mjx"]
    last = jax.tree.map(lambda x: dict(zip(SCENARIOS, x, strict=True)), states[-1])
    reach = np.abs([state.qpos[FINITE, :5] for state in states]).max()
    assert 0.61 < reach < 0.8  # joints press into their soft limits
    part = slice(*(workcell.joint("part").qposadr[0] + np.array([0, 3])))
    grasped, plain = last.qpos["grasped"][part], last.qpos["plain"][part]
    np.testing.assert_allclose(grasped, last.mocap_pos["grasped"][0], atol=0.02)
    assert plain[2] < grasped[2] - 0.5  # it fell
    lead, turn = (last.qpos["threaded"][workcell.joint(k).qposadr[0]] for k in ("lead", "turn"))
    assert abs(turn) > 0.3
    assert lead == pytest.approx(0.01 * turn, abs=2e-4)
    np.testing.assert_allclose(
        last.site_xpos["plain"][1] - last.mocap_pos["plain"][0],
        0.05 * last.site_xmat["plain"][1][:, 0],
        atol=1e-6,
    )  # the finger follows the hand
    np.testing.assert_array_equal(traces[-1]["tip_pos"][:, -1], states[-1].sensordata[:, :3])


def test_constants_agree(trajectories):
    native, mjx = (trajectories[engine][0][0].model for engine in ("native", "mjx"))
    assert set(native) == set(mjx)
    for name in native:
        np.testing.assert_allclose(mjx[name], native[name], rtol=2e-6, atol=1e-7, err_msg=name)


def test_divergence_is_flagged_alike_and_spares_the_neighbours(trajectories):
    expected = [False] * FINITE.stop + [True, False, True], [False] * FINITE.stop + [True] * 3
    for states, _ in trajectories.values():
        assert states[0].diverged.tolist() == expected[0]
        assert states[2].diverged.tolist() == expected[0]  # the control fails in the third call
        assert states[3].diverged.tolist() == expected[1]
        assert states[-1].diverged.tolist() == expected[1]
        assert all(
            np.isfinite(states[-1].qpos[FINITE]).all() for states, _ in trajectories.values()
        )


MACHINE = """
<mujoco>
  <compiler angle="radian"/>
  <option timestep="0.004" integrator="implicitfast"/>
  <default><geom contype="0" conaffinity="0"/></default>
  <worldbody>
    <site name="anchor" pos="0 0 1"/>
    <body pos="0 0 1" gravcomp="0.5">
      <joint name="hinge" axis="0 1 0" damping="0.1" stiffness="3" frictionloss="0.05"/>
      <geom name="link" type="capsule" fromto="0 0 0 0.3 0 0" size="0.02"/>
      <body pos="0.3 0 0">
        <joint name="ball" type="ball" damping="0.02" limited="true" range="0 0.6" stiffness="0.2"/>
        <geom type="box" size="0.1 0.02 0.03" pos="0.1 0 0"/><site name="elbow" pos="0.1 0.05 0"/>
        <body pos="0.2 0 0">
          <joint name="slide" type="slide" axis="1 0 0" range="-0.05 0.05" limited="true"/>
          <geom size="0.03"/><site name="end" pos="0 0 0.05" quat="0.8 0.6 0 0"/>
        </body>
        <body pos="0.2 0.1 0">
          <joint name="branch" type="slide" axis="0 1 0"/><geom size="0.03"/>
        </body>
      </body>
    </body>
    <body name="hand" mocap="true" pos="1 0 1"><site name="palm" pos="0 0 0.1"/></body>
    <body name="part" pos="1 0 1">
      <freejoint name="free"/><geom type="box" size="0.1 0.05 0.03" pos="0.02 0.01 0"/>
      <site name="handle" pos="0.1 0 0" quat="0.6 0 0.8 0"/>
      <body pos="-0.1 0 0" euler="0.5 0 0"><geom type="box" size="0.02 0.08 0.02"/></body>
    </body>
    <body name="rotor" pos="-1 0 1">
      <freejoint/><geom type="box" size="0.1 0.2 0.02"/>
      <body pos="0.1 0 0">
        <joint axis="0 1 0" damping="0.01"/><geom type="box" size="0.05 0.02 0.02"/>
      </body>
    </body>
    <body name="bob" pos="-1 0 0.8">
      <freejoint/><geom type="ellipsoid" size="0.05 0.08 0.1" pos="0.03 0 0"/>
    </body>
  </worldbody>
  <tendon>
    <fixed name="split" damping="0.4" limited="true" range="-0.02 0.1">
      <joint joint="slide" coef="0.5"/><joint joint="branch" coef="0.5"/>
    </fixed>
    <spatial name="rope" stiffness="5" damping="0.3" springlength="0.3">
      <site site="elbow"/><site site="handle"/>
    </spatial>
  </tendon>
  <equality>
    <connect body1="rotor" body2="bob" anchor="0.1 0 -0.1"/>
    <weld site1="palm" site2="handle" torquescale="0.5" solref="0.05 1"/>
    <weld body1="bob" body2="rotor" solref="0.5 1"/>
  </equality>
  <actuator>
    <position name="hinge" joint="hinge" kp="10" kv="1" forcerange="-0.4 0.4"/>
    <motor joint="ball" gear="0.5 0.2 0.1"/>
    <general tendon="split" biastype="affine" biasprm="0 -50 -5" gainprm="50"/>
    <general joint="branch" dyntype="filterexact" dynprm="0.05" biastype="affine" biasprm="0 -1"/>
    <motor site="end" gear="0 0 1 0 0.1 0"/>
    <position site="end" refsite="anchor" gear="1 0 0 0 0 0" kp="4" kv="0.5"/>
    <intvelocity joint="slide" kp="50" actrange="-1 1"/>
  </actuator>
  <sensor>
    <framequat name="quat" objtype="site" objname="handle" reftype="site" refname="end"/>
    <frameangvel name="angvel" objtype="site" objname="end" reftype="xbody" refname="rotor"/>
    <framelinvel name="linvel" objtype="xbody" objname="part" reftype="site" refname="end"/>
    <framexaxis name="axis" objtype="geom" objname="link"/><ballquat name="ballquat" joint="ball"/>
    <ballangvel name="ballangvel" joint="ball"/><tendonpos name="tendonpos" tendon="rope"/>
    <tendonvel name="tendonvel" tendon="rope"/><velocimeter name="velocimeter" site="end"/>
    <magnetometer name="magnetometer" site="end"/><subtreecom name="com" body="rotor"/>
    <subtreelinvel name="momentum" body="world"/><subtreeangmom name="spin" body="world"/>
    <clock name="clock"/><accelerometer name="accelerometer" site="end"/>
    <force name="force" site="end"/><torque name="torque" site="end"/>
    <framelinacc name="linacc" objtype="xbody" objname="part"/>
    <frameangacc name="angacc" objtype="body" objname="rotor"/>
    <actuatorfrc name="drive" actuator="hinge"/><jointactuatorfrc name="effort" joint="slide"/>
  </sensor>
</mujoco>
"""


def test_every_kind_of_joint_actuator_and_constraint_agrees_in_double_precision():
    m = mujoco.MjModel.from_xml_string(MACHINE)
    rng = np.random.default_rng(2)
    qvel, ctrl = rng.normal(size=m.nv), 0.3 * rng.normal(size=m.nu)
    with jax.enable_x64(True):
        # Not jitted: whether a program's callbacks see this thread's precision is left to chance.
        states, start = {}, make_physics(m, "native").init(qvel=qvel)
        for engine in ("native", "mjx"):
            physics = make_physics(m, engine)
            run = lambda ctrl, physics=physics: physics.step(start, {"ctrl": ctrl}, 50)[0]
            states[engine] = jax.device_get(jax.jit(run)(ctrl))
    native, mjx = states["native"], states["mjx"]
    assert np.abs(native.qpos - m.qpos0).max() > 0.3
    for name in ("qpos", "qvel", "act", "xquat", "site_xmat", "sensordata"):
        np.testing.assert_allclose(
            getattr(mjx, name), getattr(native, name), rtol=0, atol=1e-9, err_msg=name
        )
