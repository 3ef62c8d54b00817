"""A peg in its slot, with the real clearance: what fits goes in, what doesn't stays out."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from envs.assembly import parts
from jaxrobo.physics import make_physics
from jaxrobo.physics.rotations import axis_angle_to_quat
from jaxrobo.physics.scene import Scene

PUSH = 20.0
"""N."""

ALIGNED = 24
"""Within the clearance: +-0.06 mm, +-3 mrad."""

ASIDE = np.array([[1e-3, 0, 0], [0, 1e-3, 0], [-1e-3, 0, 0], [0, 0, 0.1], [0, 0, -0.1]])
"""x and y, m, and yaw, rad, of pegs that don't fit."""

HEIGHT = parts.HOLE_SIZE[2]


@pytest.fixture(scope="module")
def model():
    """A plate fixed to the world, and a peg that a mocap hand holds by a compliant weld."""
    scene = Scene(0.002)
    scene.attach(parts.table(), "table/")
    scene.attach(parts.hole(), "hole/")
    scene.attach(parts.peg(), "peg/", pos=(0, 0, 0.02), free=True)
    hand = '<mujoco><worldbody><body name="hand" mocap="true"/></worldbody></mujoco>'
    scene.attach(hand, "hand/", pos=(0, 0, 0.02))
    scene.weld(
        "hold",
        "hand/hand",
        "peg/peg",
        active=True,
        torquescale=10.0,
        solref=(0.01, 1),
        solimp=(0.99, 0.999, 0.001, 0.5, 2),
    )
    scene.group("walls", *(f"hole/{name}" for name in parts.WALLS))
    for other in ("walls", "table/table"):
        scene.pair(other, "peg/peg", 0.25, solref=parts.FIT_SOLREF, solimp=parts.FIT_SOLIMP)
    return scene.compile()


@pytest.fixture(scope="module")
def starts():
    rng = np.random.default_rng(0)
    fits = rng.uniform(-1, 1, (ALIGNED, 3)) * [0.06e-3, 0.06e-3, 3e-3]
    return np.concatenate([fits, ASIDE])


def insert(physics, start):
    """Lowers a peg in 2 s while the push rises to `PUSH`, then goes on for 0.6 s. `[130, 7]`.

    It begins with the native engine's state: on the other, that is a program to compile.
    """
    peg = physics.mj_model.body("peg/peg").id
    quat = axis_angle_to_quat(jnp.array([0.0, 0, 1]), start[2])
    pose = lambda z: jnp.append(start[:2], z)
    state = make_physics(physics.mj_model, "native").init(
        qpos=jnp.concatenate([pose(0.02), quat]), mocap_pos=pose(0.02)[None], mocap_quat=quat[None]
    )

    def step(state, share):
        push = jnp.zeros((physics.mj_model.nbody, 6)).at[peg, 2].set(-PUSH * share)
        inputs = {"mocap_pos": pose(0.02 * (1 - share))[None], "xfrc_applied": push}
        state, _ = physics.step(state, inputs, 10)
        return state, state.qpos

    share = jnp.minimum(jnp.arange(1, 131) / 100, 1.0)
    return jax.lax.scan(step, state, share)[1]


@pytest.fixture(scope="module", params=["native", "mjx"])
def paths(request, model, starts):
    physics = make_physics(model, request.param)
    return np.asarray(jax.jit(jax.vmap(lambda s: insert(physics, s)))(starts))


def penetration(model, path):
    """The deepest that the peg sinks into anything on its way, m, as MuJoCo sees it."""
    data, deepest = mujoco.MjData(model), 0.0
    for qpos in path:
        data.qpos[:] = qpos
        mujoco.mj_fwdPosition(model, data)
        deepest = max([deepest, *(-contact.dist for contact in data.contact)])
    return deepest


def test_dimensions_and_masses_are_those_of_the_originals():
    hole, peg = parts.hole().compile(), parts.peg().compile()
    assert hole.body("hole").mass[0] == pytest.approx(parts.HOLE_MASS)
    assert peg.body("peg").mass[0] == parts.PEG_MASS
    np.testing.assert_allclose(peg.geom("peg").size * 2, [0.016, 0.010, 0.050])
    left, right = hole.geom("left"), hole.geom("right")
    gap = right.pos[0] - right.size[0] - (left.pos[0] + left.size[0])
    assert gap == pytest.approx(0.01622)
    near, far = hole.geom("near"), hole.geom("far")
    gap = far.pos[1] - far.size[1] - (near.pos[1] + near.size[1])
    assert gap == pytest.approx(0.01016)
    np.testing.assert_allclose(2 * hole.geom("hole").size, parts.HOLE_SIZE)


def test_a_peg_that_is_aligned_goes_in(paths):
    np.testing.assert_allclose(paths[:ALIGNED, -1, 2], 0, atol=2e-5)


def test_a_peg_that_is_aside_or_turned_stays_out_under_20_newtons(paths):
    assert (paths[ALIGNED:, :, 2].min(axis=1) > HEIGHT - 1e-3).all()


def test_nothing_sinks_into_anything(model, paths):
    """At most 0.05 mm, of which aligned pegs need a tenth."""
    depths = np.array([penetration(model, path[::2]) for path in paths])
    assert np.percentile(depths[:ALIGNED], 99) < 1e-5
    assert depths.max() < 5e-5
