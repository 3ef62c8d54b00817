"""The helical joint: a leg is screwed in by a hand that holds it, at any pose of the hole."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobo.physics import make_physics
from jaxrobo.physics.rotations import axis_angle_to_quat, quat_multiply, quat_rotate
from jaxrobo.physics.scene import Scene
from jaxrobo.physics.screw import Screw

LEAD = 0.009375
"""m a turn: the thread of FurnitureBench's furniture."""

TURNS = 2.7
"""What a leg of its square table takes."""

SECONDS, SUBSTEPS, TIMESTEP = 6.0, 10, 0.002
CALLS = round(SECONDS / (SUBSTEPS * TIMESTEP))

TOP = (
    '<mujoco><worldbody><body name="top" mocap="true">'
    '<geom type="box" size="0.08 0.08 0.015"/></body></worldbody></mujoco>'
)
LEG = (
    '<mujoco><worldbody><body name="leg">'
    '<geom type="box" size="0.015 0.015 0.04375" mass="0.0231"/></body></worldbody></mujoco>'
)
HAND = '<mujoco><worldbody><body name="hand" mocap="true"/></worldbody></mujoco>'

TILTED = np.array([0.9, 0.3, -0.2, 0.25]) / np.linalg.norm([0.9, 0.3, -0.2, 0.25])
"""The hole looks neither up nor along an axis of the world."""

SCREW = Screw("thread", "top/top", "leg/leg", LEAD, pos=(0.05, 0, 0.015), part_pos=(0, 0, 0.04))


@pytest.fixture(scope="module")
def model():
    scene = Scene(TIMESTEP)
    scene.attach(TOP, "top/")
    scene.attach(LEG, "leg/", pos=(0, 0, 0.5), free=True)
    scene.attach(HAND, "hand/")
    SCREW.add_to(scene)
    scene.weld("grip", "hand/hand", "leg/leg", active=True, torquescale=10.0)
    return scene.compile()


@pytest.fixture(scope="module", params=["native", "mjx"])
def physics(request, model):
    return make_physics(model, request.param)


def pose(height, angle, aside=0.0):
    """The leg's pose in the world, `height` and `angle` from the thread's zero."""
    top = jnp.array([0.3, -0.1, 0.4])
    quat = axis_angle_to_quat(jnp.array([0.0, 0, 1]), angle)
    local = jnp.stack([0.05 + aside, 0.0 * height, 0.015 + 0.04 + height])
    return top + quat_rotate(TILTED, local), quat_multiply(TILTED, quat)


def mocap(height, angle, aside):
    """Poses of the top and of the hand, as the hand turns `aside` of the leg's axis."""
    hand_pos, hand_quat = pose(height, angle, aside)
    return {
        "mocap_pos": jnp.stack([jnp.array([0.3, -0.1, 0.4]), hand_pos]),
        "mocap_quat": jnp.stack([jnp.asarray(TILTED), hand_quat]),
    }


@pytest.fixture(scope="module")
def advance(physics, model):
    """`(states, poses [25, legs], engaged) -> states, fits [25, legs]`: half a second of each."""
    joint = SCREW.bind(model)

    def step(engaged, state, inputs):
        state = joint.update(state, engaged)
        state, _ = physics.step(state, inputs, SUBSTEPS)
        return state, joint.fit(state)

    @jax.jit
    def advance(states, poses, engaged):
        each = functools.partial(jax.vmap(step, (None, 0, 0)), engaged)
        return jax.lax.scan(each, states, poses)

    return advance


def starts(n):
    """Of each leg, how far aside it's held, m, and the angle that it ends at, rad."""
    return np.random.default_rng(0).uniform([-2e-3, -3], [2e-3, 3], (n, 2))


def begin(model, start):
    """The state at the entry of the thread."""
    aside, first = start
    height = LEAD * first / (2 * math.pi) + LEAD * TURNS
    angle = 2 * math.pi * TURNS + first
    pos, quat = pose(height, angle, aside)
    qpos = jnp.concatenate([pos, quat])
    free = model.joint("leg/free").qposadr[0]
    qpos = jnp.asarray(model.qpos0).at[free + np.arange(7)].set(qpos)
    return make_physics(model, "native").init(qpos=qpos, **mocap(height, angle, aside))


@pytest.fixture(scope="module")
def screwed(physics, model, advance):
    """Turned by `TURNS` from the entry: the starts, the last states, and `[calls, legs]` fits."""
    legs = starts(100 if physics.engine == "native" else 8)

    def turned(share, start):
        turn = 2 * math.pi * TURNS * (1 - share) + start[1]
        return mocap(LEAD * turn / (2 * math.pi), turn, start[0])

    share = jnp.minimum(jnp.arange(1, CALLS + 26) / CALLS, 1.0)
    poses = jax.jit(jax.vmap(jax.vmap(turned, (None, 0)), (0, None)))(share, legs)
    states, fits = jax.jit(jax.vmap(lambda start: begin(model, start)))(legs), []
    for first in range(0, len(share), 25):
        part = jax.tree.map(lambda x, first=first: x[first : first + 25], poses)
        states, fit = advance(states, part, jnp.ones((), bool))
        fits.append(jax.device_get(fit))
    return legs, states, jax.tree.map(lambda *x: np.concatenate(x), *fits)


def test_a_leg_follows_its_helix_over_2_7_turns(screwed):
    legs, state, fits = screwed
    settled = jax.tree.map(lambda x: x[10:], fits)  # after 0.2 s
    assert np.isfinite(state.qpos).all()
    assert not state.diverged.any()
    assert np.abs(settled.axial).max() < 0.15e-3
    assert settled.lateral.max() < 0.15e-3
    assert settled.tilt.max() < 0.01
    # Nobody skipped a turn, and all ended where they were to.
    turned = settled.angle[0] - settled.angle[-1]
    np.testing.assert_allclose(turned, 2 * math.pi * TURNS, atol=0.9)
    np.testing.assert_allclose(settled.angle[-1], legs[:, 1], atol=math.radians(5))


def test_fit_measures_where_the_leg_is(model):
    physics, joint = make_physics(model, "native"), SCREW.bind(model)
    free = model.joint("leg/free").qposadr[0]

    def fit(height, angle, aside):
        pos, quat = pose(jnp.asarray(height), angle, aside)
        qpos = jnp.asarray(model.qpos0).at[free + np.arange(7)].set(jnp.concatenate([pos, quat]))
        return joint.fit(physics.init(qpos=qpos, **mocap(0.0 * pos[0], 0.0, 0.0)))

    on_helix = fit(LEAD * 1.25, 2 * math.pi * 0.25, 0.0)
    np.testing.assert_allclose(on_helix.axial, 0, atol=1e-6)
    np.testing.assert_allclose(on_helix.angle, 2 * math.pi * 1.25, atol=1e-4)
    np.testing.assert_allclose(on_helix.height, LEAD * 1.25, atol=1e-6)
    off = fit(LEAD * 1.25 + 0.001, 2 * math.pi * 0.25, 0.003)
    np.testing.assert_allclose(off.axial, 0.001, atol=1e-6)
    np.testing.assert_allclose(off.lateral, 0.003, atol=1e-6)
    np.testing.assert_allclose(off.tilt, 0, atol=1e-3)


def test_a_released_leg_is_free_and_can_be_engaged_again(model, screwed, advance):
    legs, states, _ = screwed
    engaged = jax.vmap(SCREW.bind(model).engaged)

    def lift(states, height, on):
        poses = mocap(jnp.asarray(height), 0.0, 0.0)
        poses = jax.tree.map(lambda x: jnp.broadcast_to(x, (25, len(legs), *x.shape)), poses)
        for _ in range(2):
            states, fits = advance(states, poses, jnp.asarray(on))
        return states, jax.tree.map(lambda x: np.asarray(x)[-1], fits)

    states, fit = lift(states, 0.08, False)
    assert not engaged(states).any()
    np.testing.assert_allclose(fit.height, 0.08, atol=1.5e-3)
    states, _ = lift(states, LEAD * 2, False)
    states, fit = lift(states, LEAD * 2, True)
    assert engaged(states).all()
    assert abs(fit.axial).max() < 0.15e-3
    np.testing.assert_allclose(fit.height, LEAD * 2, atol=1.5e-3)


def test_mistakes_are_named():
    scene = Scene(TIMESTEP)
    scene.attach(TOP, "top/")
    with pytest.raises(ValueError, match=r"unknown body 'leg/leg'; the scene has .*'top/top'"):
        SCREW.add_to(scene)
    with pytest.raises(ValueError, match="the lead of a screw must not be zero"):
        Screw("s", "top/top", "top/top", 0.0).add_to(scene)
