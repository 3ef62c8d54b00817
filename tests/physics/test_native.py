"""The native engine against plain loops over MuJoCo, bit for bit in float64."""

import gc
import threading
import time
import weakref

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from jaxrobo.physics import NativePhysics, make_physics
from jaxrobo.physics.native import _MAX_IDLE_KINDS

SCENE = """
<mujoco>
  <option timestep="0.004"/>
  <worldbody>
    <geom name="floor" type="plane" size="1 1 1"/>
    <body name="upper" pos="0 0 1">
      <joint name="shoulder" axis="0 1 0" damping="0.1"/>
      <geom type="capsule" fromto="0 0 0 0.3 0 0" size="0.02" mass="0.5"/>
      <body name="lower" pos="0.3 0 0">
        <joint name="elbow" axis="0 1 0" damping="0.1"/>
        <geom type="capsule" fromto="0 0 0 0.2 0 0" size="0.02" mass="0.3"/>
        <site name="tip" pos="0.2 0 0.01"/>
      </body>
    </body>
    <body name="box" pos="0.5 0 0.1">
      <freejoint/>
      <geom name="box" type="box" size="0.05 0.04 0.03" mass="0.2"/>
    </body>
    <body name="hand" mocap="true" pos="0 0.5 0.3"/>
    <body name="held" pos="0 0.5 0.3">
      <freejoint/>
      <geom type="sphere" size="0.02" mass="0.1"/>
    </body>
  </worldbody>
  <equality>
    <weld name="grasp" body1="hand" body2="held" solref="0.02 1"/>
    <joint name="lock" joint1="elbow" active="false" solref="0.02 1"/>
  </equality>
  <actuator>
    <position name="shoulder" joint="shoulder" kp="20" dampratio="1"/>
    <general name="elbow" joint="elbow" dyntype="filterexact" dynprm="0.05" gainprm="3"/>
  </actuator>
  <sensor>
    <framepos name="tip" objtype="site" objname="tip"/>
    <framelinvel name="tip_velocity" objtype="site" objname="tip"/>
    <contact name="touching" geom1="floor" geom2="box" data="found dist" reduce="mindist"/>
  </sensor>
</mujoco>
"""
NU, NBODY = 2, 6
EVOLVING = ("time", "qpos", "qvel", "act", "qacc_warmstart")
DERIVED = ("xpos", "xquat", "site_xpos", "site_xmat", "sensordata")


@pytest.fixture(scope="module")
def model():
    return mujoco.MjModel.from_xml_string(SCENE)


@pytest.fixture(scope="module")
def physics(model):
    return NativePhysics(model)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def advance(physics):
    """A jitted `(qvel [n, nv], ctrl [n, nu]) -> states` after 25 substeps, twice."""

    def run(qvel, ctrl):
        state = physics.init(qvel=qvel)
        for _ in range(2):
            state, _ = physics.step(state, {"ctrl": ctrl}, substeps=25)
        return state

    return jax.jit(jax.vmap(run))


def perturbed(model, seed, *shape):
    """Joint velocities and controls."""
    rng = np.random.default_rng(seed)
    qvel = 0.5 * rng.standard_normal((*shape, model.nv))
    return jnp.asarray(qvel), jnp.asarray(rng.uniform(-1, 1, (*shape, NU)))


def refresh(model, data):
    """Position- and velocity-dependent quantities of the state that `data` is in."""
    mujoco.mj_step1(model, data)


def assert_same_state(state, data, model, **tolerance):
    compare = np.testing.assert_allclose if tolerance else np.testing.assert_array_equal
    for name in (*EVOLVING, *DERIVED):
        expected = np.asarray(getattr(data, name))
        if name == "site_xmat":
            expected = expected.reshape(model.nsite, 3, 3)
        compare(getattr(state, name), expected, err_msg=name, **tolerance)


def assert_trees_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


# --- one simulation -----------------------------------------------------------------------------


def test_held_inputs_equal_a_loop_over_mj_step(model, physics, x64):
    qvel, ctrl = perturbed(model, 0)
    force = np.zeros((NBODY, 6))
    force[3, 0] = 0.3
    state = physics.init(qvel=qvel)
    data = mujoco.MjData(model)
    data.qvel = qvel
    refresh(model, data)
    for name in DERIVED[:2]:
        np.testing.assert_array_equal(getattr(state, name), getattr(data, name))
    for call in range(3):
        inputs = {"ctrl": ctrl * (call + 1), "xfrc_applied": force}
        inputs["mocap_pos"] = np.array([[0.01 * call, 0.5, 0.3]])
        state, recorded = physics.step(state, inputs, substeps=20)
        assert recorded == {}
        for name, value in inputs.items():
            setattr(data, name, value)
            np.testing.assert_array_equal(getattr(state, name), value)
        for _ in range(20):
            mujoco.mj_step(model, data)
        refresh(model, data)
        assert_same_state(state, data, model)
    assert not state.diverged


def test_what_isnt_given_stays_as_it_is(model, physics, x64):
    ctrl = jnp.array([0.3, -0.2])
    given = physics.step(physics.init(), {"ctrl": ctrl}, substeps=3)[0]
    again = physics.step(given, substeps=3)[0]
    assert_trees_equal(again, physics.step(given, {"ctrl": ctrl}, substeps=3)[0])


def test_inputs_per_substep_and_recorded_sensors_equal_a_loop(model, physics, x64):
    steps, rng = 12, np.random.default_rng(1)
    inputs = {
        "ctrl": rng.uniform(-1, 1, (steps, NU)),
        "mocap_pos": np.array([0, 0.5, 0.3]) + 0.01 * rng.standard_normal((steps, 1, 3)),
        "mocap_quat": np.tile([1.0, 0, 0, 0], (1, 1)),  # held
        "xfrc_applied": 0.1 * rng.standard_normal((steps, NBODY, 6)),
    }
    names = ("tip_velocity", "touching", "tip")
    state, recorded = physics.step(physics.init(), inputs, steps, record=names)
    unrecorded, _ = physics.step(physics.init(), inputs, steps)
    assert_trees_equal(state, unrecorded)
    data = mujoco.MjData(model)
    expected = {name: [] for name in names}
    for i in range(steps):
        data.ctrl, data.mocap_pos = inputs["ctrl"][i], inputs["mocap_pos"][i]
        data.xfrc_applied = inputs["xfrc_applied"][i]
        mujoco.mj_step(model, data)
        refresh(model, data)
        for name in names:
            expected[name].append(data.sensor(name).data.copy())
    assert_same_state(state, data, model)
    for name in names:
        np.testing.assert_array_equal(recorded[name], expected[name])
    for name in ("ctrl", "mocap_pos", "xfrc_applied"):
        np.testing.assert_array_equal(getattr(state, name), inputs[name][-1])


def test_substeps_in_one_call_or_several_are_the_same(physics, x64):
    ctrl = jnp.array([0.5, -0.5])
    state = physics.step(physics.init(), {"ctrl": ctrl}, 30)[0]
    pieces = physics.init()
    for n in (1, 9, 20):
        pieces, _ = physics.step(pieces, {"ctrl": ctrl}, n)
    assert_trees_equal(state, pieces)


@pytest.mark.parametrize("count", [0, 1, 3, 4, 7, 9, 16])
def test_only_the_live_advance_and_cost(physics, monkeypatch, count):
    """Bit for bit as if all did; no more than twice as many rows are computed as live."""
    n = 16
    ctrl = jax.random.uniform(jax.random.key(0), (n, NU), minval=-1.0, maxval=1.0)
    live = jnp.isin(jnp.arange(n), jax.random.permutation(jax.random.key(1), n)[:count])
    start = jax.vmap(lambda c: physics.init(ctrl=c))(ctrl)
    one = lambda s, c, l: physics.step(s, {"ctrl": -c}, 5, ["tip"], live=l)
    everyone, told = jax.vmap(lambda s, c: physics.step(s, {"ctrl": -c}, 5, ["tip"]))(start, ctrl)
    sizes, lend = [], physics._pool.lend
    monkeypatch.setattr(physics._pool, "lend", lambda k, v: sizes.append(k) or lend(k, v))
    some, told_live = jax.vmap(one)(start, ctrl, live)
    pick = lambda a, b: np.where(live.reshape(n, *[1] * (a.ndim - 1)), a, b)
    assert_trees_equal(some, jax.tree.map(pick, everyone, start))
    np.testing.assert_array_equal(told_live["tip"][live], told["tip"][live])
    assert len(sizes) == 1
    assert max(1, count) <= sizes[0] <= max(1, 2 * count - 1)


def test_float32_differs_from_a_loop_in_float64_by_rounding_only(model, physics):
    qvel, ctrl = perturbed(model, 0)
    state, _ = physics.step(physics.init(qvel=qvel), {"ctrl": ctrl}, 25)
    assert state.qpos.dtype == state.sensordata.dtype == jnp.float32
    data = mujoco.MjData(model)
    data.qvel, data.ctrl = qvel, ctrl
    for _ in range(25):
        mujoco.mj_step(model, data)
    refresh(model, data)
    assert_same_state(state, data, model, rtol=1e-5, atol=1e-5)
    assert state.time == np.float32(25 * 0.004)


def test_forward_follows_an_edit_of_the_state(model, physics, x64):
    state = physics.init()
    moved = physics.forward(state.replace(qpos=state.qpos.at[0].add(0.5)))
    data = mujoco.MjData(model)
    data.qpos[0] = 0.5
    refresh(model, data)
    np.testing.assert_array_equal(moved.site_xpos, data.site_xpos)
    np.testing.assert_array_equal(moved.sensordata, data.sensordata)
    assert abs(moved.site_xpos - state.site_xpos).max() > 0.1


def test_equality_constraints_can_be_switched_per_state(physics):
    start = physics.init(eq_active=jnp.array([False, True]))
    assert start.eq_active.dtype == bool
    state, _ = physics.step(start, {"mocap_pos": [[0.0, 0.5, 0.4]]}, 100)
    assert state.xpos[5, 2] < 0.03  # let go: fell to the floor
    assert abs(state.qpos[1]) < 0.01  # the elbow is locked
    np.testing.assert_array_equal(state.eq_active, [False, True])
    state, _ = physics.step(physics.init(), {"mocap_pos": [[0.0, 0.5, 0.4]]}, 100)
    assert state.xpos[5, 2] == pytest.approx(0.4, abs=0.01)  # held: follows the hand
    assert abs(state.qpos[1]) > 0.1


def test_init_takes_its_defaults_from_the_model(model, physics):
    state = physics.init()
    np.testing.assert_array_equal(state.qpos, np.float32(model.qpos0))
    np.testing.assert_allclose(state.mocap_pos, [[0, 0.5, 0.3]])
    np.testing.assert_array_equal(state.eq_active, [True, False])
    assert state.model == {}
    assert physics.mj_model.opt.disableflags == mujoco.mjtDisableBit.mjDSBL_AUTORESET
    assert model.opt.disableflags == 0  # the caller's model is left alone


# --- batches ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(physics):
    return advance(physics)


@pytest.fixture(scope="module")
def batch(model, run):
    """24 simulations, and their states from one vmapped call."""
    qvel, ctrl = perturbed(model, 3, 24)
    return qvel, ctrl, run(qvel, ctrl)


def test_nested_vmap_and_loops_equal_one_flat_vmap(batch, run):
    qvel, ctrl, states = batch
    for i in (0, 7, 23):
        single = run(qvel[i : i + 1], ctrl[i : i + 1])
        assert_trees_equal(jax.tree.map(lambda x, i=i: x[i : i + 1], states), single)
    fold = lambda x: x.reshape(4, 6, *x.shape[1:])
    nested = jax.vmap(run)(fold(qvel), fold(ctrl))
    assert_trees_equal(nested, jax.tree.map(fold, states))


def test_results_dont_depend_on_threads_or_history(batch, model, run):
    qvel, ctrl, states = batch
    run(-2 * qvel, 5 * ctrl)  # leaves its traces in the Batch that the next call is lent
    assert_trees_equal(run(qvel, ctrl), states)
    assert_trees_equal(advance(NativePhysics(model, threads=1))(qvel, ctrl), states)


# --- divergence ---------------------------------------------------------------------------------


def test_a_bad_simulation_is_flagged_and_its_neighbours_are_untouched(
    batch, run, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    qvel, ctrl, states = batch
    bad = {
        1: (qvel[1].at[0].set(jnp.nan), ctrl[1]),
        4: (qvel[4], ctrl[4].at[1].set(jnp.nan)),
        9: (qvel[9], ctrl[9].at[0].set(-jnp.inf)),
        17: (qvel[17].at[3].set(1e12), ctrl[17]),
    }
    for i, (v, u) in bad.items():
        qvel, ctrl = qvel.at[i].set(v), ctrl.at[i].set(u)
    mixed = run(qvel, ctrl)
    flagged = np.flatnonzero(mixed.diverged)
    np.testing.assert_array_equal(flagged, sorted(bad))
    assert not np.all(np.isfinite(mixed.qvel[1]))  # not silently reset to the default pose
    good = np.setdiff1d(np.arange(24), flagged)
    pick = lambda x: x[good]
    assert_trees_equal(jax.tree.map(pick, mixed), jax.tree.map(pick, states))
    assert list(tmp_path.iterdir()) == []  # no MUJOCO_LOG.TXT
    printed = capfd.readouterr()
    assert "WARNING" not in printed.out + printed.err


@pytest.mark.parametrize(
    "given",
    [
        {"qpos": np.full(16, np.nan)},
        {"ctrl": np.array([np.nan, 0.0])},
        {"xfrc_applied": np.full((NBODY, 6), np.inf)},
        {"mocap_pos": np.full((1, 3), 1e11)},
    ],
    ids=lambda given: next(iter(given)),
)
def test_a_bad_start_is_flagged(physics, given):
    state = physics.init(**given)
    assert state.diverged
    assert physics.step(state.replace(diverged=jnp.array(False)))[0].diverged


def test_divergence_lasts(physics):
    bad, _ = physics.step(physics.init(), {"ctrl": jnp.array([jnp.nan, 0.0])})
    fine, _ = physics.step(bad, {"ctrl": jnp.zeros(2)})
    assert fine.diverged


def test_a_bad_input_of_one_substep_is_flagged(physics):
    ctrl = jnp.zeros((5, NU)).at[2, 0].set(jnp.nan)
    assert physics.step(physics.init(), {"ctrl": ctrl}, 5)[0].diverged


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda p: p.init(qpos=jnp.zeros(3)),
            r"state field 'qpos' has shape \(3,\), expected \(16,\)",
        ),
        (lambda p: p.init(xpos=jnp.zeros(3)), "unknown state field 'xpos'; valid: qpos"),
        (lambda p: p.init(model={"body_weight": 1.0}), "unknown model field 'body_weight'"),
        (lambda p: p.init(model={"opt.gravitas": 1.0}), "unknown model field 'opt.gravitas'"),
        (lambda p: p.init(model={"nq": 1}), "unknown model field 'nq'"),
        (lambda p: p.init(model={"body_mass": jnp.ones(2)}), r"'body_mass' has shape \(2,\)"),
        (lambda p: p.step(p.init(), substeps=0), "substeps must be at least 1, got 0"),
        (lambda p: p.step(p.init(), {"qpos": jnp.zeros(16)}), "unknown input 'qpos'; valid: ctrl"),
        (
            lambda p: p.step(p.init(), {"ctrl": jnp.zeros((3, NU))}, 2),
            r"input 'ctrl' has shape \(3, 2\), expected \(2,\) or \(2, 2\)",
        ),
        (lambda p: p.step(p.init(), record=("tips",)), "unknown sensor 'tips'; .*'tip_velocity'"),
    ],
)
def test_wrong_arguments_are_named(physics, call, message):
    with pytest.raises(ValueError, match=message):
        call(physics)


def test_wrong_settings_are_named(model):
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        NativePhysics(model, threads=0)
    with pytest.raises(ValueError, match="unknown engine 'bullet'; valid: auto, native, mjx"):
        make_physics(model, "bullet")
    with pytest.raises(ValueError, match="threads is an option of the native engine"):
        make_physics(model, "mjx", threads=2)
    assert make_physics(model).engine == "native"  # on a CPU


def test_a_model_with_what_the_state_doesnt_hold_is_refused():
    def build(sensor):
        return mujoco.MjModel.from_xml_string(
            "<mujoco><worldbody><body><freejoint/><geom size='0.1'/><site name='s'/></body>"
            f"</worldbody><sensor>{sensor}</sensor></mujoco>"
        )

    with pytest.raises(ValueError, match="delays"):
        NativePhysics(build("<gyro name='imu' site='s' delay='0.1' nsample='60'/>"))


# --- the pool of batches ------------------------------------------------------------------------


def test_concurrent_callers_get_their_own_results(batch, run):
    qvel, ctrl, states = batch
    results = {}

    def work(i):
        rolled = (jnp.roll(qvel, i, 0), jnp.roll(ctrl, i, 0))
        results[i] = [jax.tree.map(lambda x: np.roll(x, -i, 0), run(*rolled)) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert sorted(results) == [0, 1, 2, 3]
    for result in results.values():
        for state in result:
            assert_trees_equal(state, states)


def test_the_idle_pool_is_bounded_and_errors_drop_their_batch(model):
    pool = NativePhysics(model)._pool
    for n in range(1, _MAX_IDLE_KINDS + 10):
        with pool.lend(n, ()) as batch:
            assert batch.nsim == n
    kinds = list(pool._free)
    assert [n for n, _ in kinds] == list(range(10, _MAX_IDLE_KINDS + 10))
    with pool.lend(20, ()) as first, pool.lend(20, ()) as second:
        assert first is not second
    with pool.lend(20, ()) as again:
        assert again in (first, second)

    def fails():
        with pool.lend(15, ()):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert pool._free[15, ()] == []


def test_steps_arent_profiled_and_the_profiler_is_left_as_it_was(model, physics):
    readings = []

    def clock():
        readings.append(None)
        return 0.0

    before = mujoco.get_mjcb_time()
    mujoco.set_mjcb_time(clock)
    try:
        jax.block_until_ready(physics.step(physics.init()))
        with pytest.raises(RuntimeError), physics._pool.lend(1, ()):
            raise RuntimeError
        assert not readings
        mujoco.mj_step(model, mujoco.MjData(model))
        assert readings
    finally:
        mujoco.set_mjcb_time(before)


def test_an_engine_is_freed_with_its_programs(model):
    physics = NativePhysics(model)
    jax.block_until_ready(jax.jit(lambda engine=physics: engine.step(engine.init())[0].qpos)())
    gone = weakref.ref(physics)
    del physics
    deadline = time.monotonic() + 10
    while gone() is not None and time.monotonic() < deadline:
        gc.collect()  # XLA's threads let go of a program a moment after its result is there
        time.sleep(0.01)
    assert gone() is None


def test_sleeping_is_refused():
    flag = '<option><flag sleep="enable"/></option>'
    m = mujoco.MjModel.from_xml_string(
        f'<mujoco>{flag}<worldbody><body><freejoint/><geom size="1"/></body></worldbody></mujoco>'
    )
    with pytest.raises(ValueError, match="the native engine doesn't support sleeping"):
        make_physics(m, "native")
