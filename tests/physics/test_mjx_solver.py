"""The constraint solver of the mjx engine against MuJoCo's, and the conditions it solves."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from jaxrobo.physics._mjx import mjx
from jaxrobo.physics._mjx_solver import _evaluate, _problem, solve
from jaxrobo.physics._mjx_step import accelerations

SCENE = """
<mujoco>
  <option timestep="0.002" iterations="50" ls_iterations="50" tolerance="1e-12"/>
  <default><geom contype="0" conaffinity="0"/></default>
  <worldbody>
    <geom name="floor" type="plane" size="1 1 1"/>
    <body name="part" pos="0 0 0.0195">
      <freejoint/><geom name="part" type="box" size="0.02 0.02 0.02" mass="0.004"/>
    </body>
    <body name="arm" pos="0.3 0 0.2">
      <joint name="shoulder" axis="0 1 0" range="-0.2 0.2" limited="true" frictionloss="0.3"/>
      <geom type="capsule" fromto="0 0 0 0.2 0 0" size="0.02"/>
      <body pos="0.2 0 0">
        <joint name="elbow" axis="0 1 0" frictionloss="0.05"/>
        <geom name="tip" type="capsule" fromto="0 0 0 0.1 0 0" size="0.02"/>
      </body>
    </body>
    <body name="hand" mocap="true" pos="0 0.02 0.1"/>
  </worldbody>
  <contact><pair geom1="floor" geom2="part" friction="0.4 0.4 0.01 0.001 0.001"
    solref="0.004 1" solimp="0.999 0.9999 0.0005 0.5 2"/></contact>
  <equality>
    <weld body1="hand" body2="part" relpose="0 0 -0.08 1 0 0 0" solref="0.01 1"/>
    <joint joint1="elbow" joint2="shoulder" polycoef="0 -1 0 0 0" active="false"/>
  </equality>
  <actuator><motor joint="shoulder"/><motor joint="elbow"/></actuator>
</mujoco>
"""


@pytest.fixture(scope="module")
def model():
    return mujoco.MjModel.from_xml_string(SCENE)


def states(model, n=12):
    """Poses at and beyond limits, sliding and resting parts, drives weaker and stronger than dry
    friction; half of them with the joints coupled."""
    rng = np.random.default_rng(0)
    for i in range(n):
        data = mujoco.MjData(model)
        data.qpos[:2] += rng.normal(0, 0.01, 2)
        data.qpos[2] += rng.uniform(-0.0002, 0.0002)
        data.qpos[7:] = rng.uniform(-0.25, 0.25, 2)
        data.qvel[:] = rng.normal(0, 0.2, model.nv) * (i % 3)
        data.ctrl[:] = rng.normal(0, 0.5, 2)
        data.eq_active[1] = i % 2
        data.xfrc_applied[1, 2] = -20.0 * (i % 4 == 0)
        mujoco.mj_forward(model, data)
        yield data


def on_device(model, data):
    made = mjx.make_data(model, impl="jax")
    fields = ("qpos", "qvel", "ctrl", "eq_active", "xfrc_applied", "mocap_pos", "mocap_quat")
    given = {k: jnp.asarray(getattr(data, k), getattr(made, k).dtype) for k in fields}
    return made.replace(**given)


def solutions(model, dtype):
    """What MuJoCo finds in double precision, and what we find, for every state."""
    with jax.enable_x64(dtype == "float64"):
        ours = jax.jit(accelerations)
        put = mjx.put_model(model, impl="jax")
        for data in states(model):
            found = ours(put, on_device(model, data))
            assert found.qacc.dtype == dtype
            yield data, found


def test_double_precision_agrees_with_mujoco_to_rounding(model):
    for data, found in solutions(model, "float64"):
        scale = np.abs(data.qacc).max()
        np.testing.assert_allclose(found.qacc, data.qacc, atol=1e-7 * scale)
        np.testing.assert_allclose(found.qfrc_constraint, data.qfrc_constraint, atol=1e-6)


def test_single_precision_keeps_forces_of_newtons_on_parts_of_grams(model):
    """Errors are measured against the unconstrained acceleration, up to 5,000 m/s^2."""
    for data, found in solutions(model, "float32"):
        scale = np.abs(data.qacc_smooth).max()
        error = np.abs(np.asarray(found.qacc) - data.qacc).max()
        assert error < 2e-4 * scale


def test_the_gradient_vanishes_and_forces_obey_their_bounds(model):
    put = mjx.put_model(model, impl="jax")
    evaluate = jax.jit(lambda found: _evaluate(_problem(put, found), found.qacc, 0))
    for _, found in solutions(model, "float64"):
        with jax.enable_x64(True):
            end = evaluate(found)
        force, d = np.asarray(found._impl.efc_force), found._impl
        assert np.abs(end.gradient).max() < 1e-6
        loss = slice(d.ne, d.ne + d.nf)
        assert (np.abs(force[loss]) <= np.asarray(d.efc_frictionloss)[loss] + 1e-12).all()
        assert (force[d.ne + d.nf :] >= 0).all()


def test_it_can_be_differentiated_in_reverse_with_one_iteration(model):
    model.opt.iterations = model.opt.ls_iterations = 1
    put = mjx.put_model(model, impl="jax")
    model.opt.iterations = model.opt.ls_iterations = 50
    data = jax.jit(accelerations)(put, on_device(model, next(states(model))))

    def height(force):
        return solve(put, data.replace(qfrc_smooth=data.qfrc_smooth.at[2].add(force))).qacc[2]

    slope = jax.jit(jax.grad(height))(0.0)
    assert np.isfinite(slope)
    assert slope > 0


@pytest.mark.parametrize("torque", [0.9, 1.0, 1.01])
def test_one_iteration_is_exact_where_one_step_is(torque):
    """A hinge beyond its limit: one row, so that Newton's first step leads to the minimum.

    The acceleration solves (I + J^2 D) a = torque + J D reference, as the many iterations find.
    """
    hinge = mujoco.MjModel.from_xml_string(
        """<mujoco><option gravity="0 0 0"/><worldbody><body>
        <joint axis="0 1 0" range="-10 10"/>
        <geom type="capsule" fromto="0 0 0 0 0 -1" size="0.05"/>
        </body></worldbody></mujoco>"""
    )
    data = mujoco.MjData(hinge)
    data.qpos[:] = 0.3
    found = []
    for iterations in (1, 50):
        hinge.opt.iterations = hinge.opt.ls_iterations = iterations
        put = mjx.put_model(hinge, impl="jax")
        state = jax.jit(accelerations)(put, on_device(hinge, data))

        def acceleration(force, put=put, state=state):
            return solve(put, state.replace(qfrc_smooth=state.qfrc_smooth + force)).qacc[0]

        slope = jax.grad if iterations == 1 else jax.jacfwd
        found.append((acceleration(torque), slope(acceleration)(torque)))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4)
