"""Contacts: the engines against each other and against textbook mechanics."""

import math

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from jaxrobo.physics import make_physics
from jaxrobo.physics.contacts import ContactSensor
from jaxrobo.physics.rotations import random_quat
from jaxrobo.physics.scene import Scene

TIMESTEP, GRAVITY = 0.002, 9.81
HALF = 0.02
FLOOR = '<mujoco><worldbody><geom name="floor" type="plane" size="9 9 1"/></worldbody></mujoco>'
SHAPES = {
    "box": f'type="box" size="{HALF} {HALF} {HALF}" mass="0.05"',
    "ball": f'type="sphere" size="{HALF}" mass="0.05"',
    "rod": f'type="capsule" size="{HALF} 0.06" mass="0.05" euler="0 90 0"',
}
# name: shape, x, height of the centre
THINGS = {
    "rest": ("box", 0.0, HALF),
    "slide": ("box", 1.0, HALF),
    "low": ("box", 2.0, HALF),
    "middle": ("box", 2.0, 3 * HALF),
    "top": ("box", 2.0, 5 * HALF),
    "ball": ("ball", 3.0, HALF),
    "rod": ("rod", 4.0, HALF),
}
DROPS = 64


def part(shape):
    return (
        f'<mujoco><worldbody><body name="it"><geom name="it" {SHAPES[shape]}/></body></worldbody>'
        "</mujoco>"
    )


@pytest.fixture(scope="module")
def model():
    """Everything far enough apart not to meet, but for a stack of three."""
    scene = Scene(TIMESTEP)
    scene.attach(FLOOR, "ground/")
    for name, (shape, x, height) in THINGS.items():
        scene.attach(part(shape), f"{name}/", pos=(x, 0, height), free=True)
        if name not in ("middle", "top"):
            scene.pair("ground/floor", f"{name}/it", 0.3)
    scene.pair("low/it", "middle/it", 0.3)
    scene.pair("middle/it", "top/it", 0.3)
    return scene.compile()


def address(model, name):
    joint = model.joint(f"{name}/free")
    return joint.qposadr[0], joint.dofadr[0]


@pytest.fixture(scope="module")
def start(model):
    """Settled, then pushed."""
    data = mujoco.MjData(model)
    mujoco.mj_step(model, data, 500)
    qpos, qvel = data.qpos.copy(), np.zeros(model.nv)
    for name, speed in (("slide", 0.5), ("ball", 0.3)):
        qvel[address(model, name)[1]] = speed
    return qpos.astype(np.float32), qvel.astype(np.float32)


def run_both(model, qpos, qvel):
    """Of each engine: positions and velocities after 100 and after 300 steps, of a batch."""
    found = {}
    for engine in ("native", "mjx"):
        physics = make_physics(model, engine)

        def run(qpos, qvel, physics=physics):
            state = physics.init(qpos=qpos, qvel=qvel)

            def go(state, _):
                state, _ = physics.step(state, {}, 100)
                return state, (state.qpos, state.qvel)

            return jax.lax.scan(go, state, length=3)[1]

        qpos_after, qvel_after = jax.jit(jax.vmap(run))(qpos, qvel)
        found[engine] = {n: (qpos_after[:, i], qvel_after[:, i]) for n, i in ((100, 0), (300, 2))}
    return jax.tree.map(np.asarray, found)


@pytest.fixture(scope="module")
def runs(model, start):
    """Of each engine, without a batch axis."""
    return jax.tree.map(lambda x: x[0], run_both(model, *(x[None] for x in start)))


def test_rest_stacks_sliding_and_rolling_agree_to_a_tenth_of_a_millimetre(model, runs):
    (native, native_v), (mjx, mjx_v) = (runs[engine][100] for engine in ("native", "mjx"))
    for name in THINGS:
        q, v = address(model, name)
        np.testing.assert_allclose(
            mjx[q : q + 7], native[q : q + 7], rtol=0, atol=1e-4, err_msg=name
        )
        np.testing.assert_allclose(
            mjx_v[v : v + 3], native_v[v : v + 3], rtol=0, atol=1e-3, err_msg=name
        )


def test_what_rests_stays(model, start, runs):
    for engine in ("native", "mjx"):
        for name in ("rest", "low", "middle", "top", "rod"):
            q, _ = address(model, name)
            moved = runs[engine][300][0][q : q + 3] - start[0][q : q + 3]
            assert np.abs(moved).max() < 1e-4, (engine, name)


def test_a_sliding_box_stops_where_coulomb_says(model, start, runs):
    """v^2 / (2 mu g) = 42.5 mm, after 0.17 s."""
    q, v = address(model, "slide")
    for engine in ("native", "mjx"):
        qpos, qvel = runs[engine][300]
        distance = qpos[q] - start[0][q]
        np.testing.assert_allclose(distance, 0.5**2 / (2 * 0.3 * GRAVITY), rtol=0.03)
        assert np.abs(qvel[v : v + 3]).max() < 1e-3


def test_a_sliding_ball_ends_up_rolling(model, runs):
    """At 5/7 of its speed, whatever the friction."""
    _, v = address(model, "ball")
    for engine in ("native", "mjx"):
        qvel = runs[engine][300][1]
        np.testing.assert_allclose(qvel[v], 0.3 * 5 / 7, rtol=0.02)
        np.testing.assert_allclose(qvel[v + 4] * HALF, qvel[v], rtol=0.02)


@pytest.fixture(scope="module")
def box_model():
    scene = Scene(TIMESTEP)
    scene.attach(FLOOR, "ground/")
    scene.attach(part("box"), "box/", pos=(0, 0, 0.1), free=True)
    scene.pair("ground/floor", "box/it", 0.3)
    scene.contact_sensor("weight", "ground/floor", "box/it", force=True)
    return scene.compile()


def test_impacts_agree_in_distribution(box_model):
    """Tilted boxes fall on their corners: means within 3 standard errors of their difference."""
    quat = random_quat(jax.random.key(0), (DROPS,))
    pos = jnp.tile(jnp.array([0.0, 0, 0.15]), (DROPS, 1))
    falls = run_both(box_model, jnp.concatenate([pos, quat], axis=1), jnp.zeros((DROPS, 6)))
    for step in (100, 300):
        samples = {}
        for engine in ("native", "mjx"):
            qpos, qvel = falls[engine][step]
            samples[engine] = {
                "height": qpos[:, 2],
                "distance": np.hypot(qpos[:, 0], qpos[:, 1]),
                "speed": np.linalg.norm(qvel[:, :3], axis=1),
                "spin": np.linalg.norm(qvel[:, 3:], axis=1),
            }
        for name in samples["native"]:
            a, b = samples["native"][name], samples["mjx"][name]
            error = math.sqrt((a.var() + b.var()) / DROPS)
            assert abs(a.mean() - b.mean()) < 3 * error + 1e-6, (step, name, a.mean(), b.mean())


# --- one batch, different objects ---------------------------------------------------------------


@pytest.mark.parametrize("engine", ["native", "mjx"])
def test_one_batch_holds_boxes_of_different_size_mass_and_friction(engine, box_model):
    """Edges of 5 and 10 cm; each rests on its face, weighs and slides as it should."""
    physics, m = make_physics(box_model, engine), box_model
    half = jnp.array([0.025, 0.05, 0.05])
    mass = jnp.array([0.1, 0.8, 0.4])
    friction = jnp.array([0.2, 0.2, 0.5])
    geom, body = m.geom("box/it").id, m.body("box/it").id
    sensor = ContactSensor.from_model(m, "weight")

    @jax.jit
    @jax.vmap
    def begin(half, mass, friction):
        own = {
            "geom_size": jnp.asarray(m.geom_size).at[geom].set(half),
            "body_mass": jnp.asarray(m.body_mass).at[body].set(mass),
            "body_inertia": jnp.asarray(m.body_inertia).at[body].set(mass * (2 * half) ** 2 / 6),
            "pair_friction": jnp.asarray(m.pair_friction).at[0, :2].set(friction),
        }
        qpos = jnp.array([0.0, 0, 0, 1, 0, 0, 0]).at[2].set(half)
        return physics.init(qpos=qpos, model=own)

    step = jax.jit(jax.vmap(lambda state: physics.step(state, {}, 200)[0]))
    settled = step(begin(half, mass, friction))
    force = jax.vmap(sensor.force)(settled)
    slid = step(settled.replace(qvel=settled.qvel.at[:, 0].set(0.5)))
    np.testing.assert_allclose(settled.qpos[:, 2], half, atol=2e-4)
    np.testing.assert_allclose(force[:, 2], mass * GRAVITY, rtol=1e-3)
    distance = slid.qpos[:, 0] - settled.qpos[:, 0]
    np.testing.assert_allclose(distance, 0.5**2 / (2 * friction * GRAVITY), rtol=0.05)
