"""The helical joint: a leg is screwed in by a hand that holds it, at any pose of the hole."""

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


def screw_in(physics, model, start):
    """Turns by `TURNS` from the entry; `start`: sideways error, m, and angle, rad.

    Returns where the leg is to the thread after every control step, and the last state.
    """
    joint = SCREW.bind(model)
    aside, first = start
    height = LEAD * first / (2 * math.pi) + LEAD * TURNS
    begin = 2 * math.pi * TURNS + first
    pos, quat = pose(height, begin, aside)
    qpos = jnp.concatenate([pos, quat])
    free = model.joint("leg/free").qposadr[0]
    qpos = jnp.asarray(model.qpos0).at[free + np.arange(7)].set(qpos)
    state = physics.init(qpos=qpos, **mocap(height, begin, aside))

    def step(state, share):
        turn = begin - 2 * math.pi * TURNS * share
        inputs = mocap(LEAD * turn / (2 * math.pi), turn, aside)
        state = joint.update(state, jnp.ones((), bool))
        state, _ = physics.step(state, inputs, SUBSTEPS)
        return state, joint.fit(state)

    share = jnp.minimum(jnp.arange(1, CALLS + 26) / CALLS, 1.0)
    state, fits = jax.lax.scan(step, state, share)
    return state, fits


def starts(n):
    rng = np.random.default_rng(0)
    return rng.uniform([-2e-3, -3], [2e-3, 3], (n, 2))


def test_a_leg_follows_its_helix_over_2_7_turns(physics, model):
    n = 1000 if physics.engine == "native" else 8
    state, fits = jax.jit(jax.vmap(lambda s: screw_in(physics, model, s)))(starts(n))
    settled = jax.tree.map(lambda x: np.asarray(x)[:, 10:], fits)  # after 0.2 s
    assert np.isfinite(state.qpos).all()
    assert not state.diverged.any()
    assert np.abs(settled.axial).max() < 0.15e-3
    assert settled.lateral.max() < 0.15e-3
    assert settled.tilt.max() < 0.01
    # Nobody skipped a turn, and all ended where they were to.
    turned = settled.angle[:, 0] - settled.angle[:, -1]
    np.testing.assert_allclose(turned, 2 * math.pi * TURNS, atol=0.9)
    np.testing.assert_allclose(settled.angle[:, -1], starts(n)[:, 1], atol=math.radians(5))


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


def test_a_released_leg_is_free_and_can_be_engaged_again(physics, model):
    joint = SCREW.bind(model)
    state, _ = jax.jit(lambda s: screw_in(physics, model, s))(starts(1)[0])

    def lift(state, height, engaged):
        def step(state, _):
            state = joint.update(state, engaged)
            state, _ = physics.step(state, mocap(height, 0.0, 0.0), SUBSTEPS)
            return state, None

        return jax.lax.scan(step, state, length=50)[0]

    lift = jax.jit(lift)
    state = lift(state, 0.08, jnp.zeros((), bool))
    assert not joint.engaged(state)
    np.testing.assert_allclose(joint.fit(state).height, 0.08, atol=1.5e-3)
    state = lift(state, LEAD * 2, jnp.zeros((), bool))
    state = lift(state, LEAD * 2, jnp.ones((), bool))
    assert joint.engaged(state)
    assert abs(joint.fit(state).axial) < 0.15e-3
    np.testing.assert_allclose(joint.fit(state).height, LEAD * 2, atol=1.5e-3)


def test_mistakes_are_named():
    scene = Scene(TIMESTEP)
    scene.attach(TOP, "top/")
    with pytest.raises(ValueError, match=r"unknown body 'leg/leg'; the scene has .*'top/top'"):
        SCREW.add_to(scene)
    with pytest.raises(ValueError, match="the lead of a screw must not be zero"):
        Screw("s", "top/top", "top/top", 0.0).add_to(scene)
