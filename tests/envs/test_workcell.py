"""The Panda at its table: a part is grasped by friction alone, lifted and shaken."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from envs.assembly import parts, workcell
from envs.robots import panda
from jaxrobo.physics import make_physics
from jaxrobo.physics.contacts import ContactSensor, grasped
from jaxrobo.physics.kinematics import Chain, inverse
from jaxrobo.physics.rotations import axis_angle_to_quat, quat_multiply
from jaxrobo.physics.scene import Scene

PART = (0.4, 0.05, 0.0)
SUBSTEPS = 50
DOWN = np.array([0.0, 1, 0, 0])
"""The hand points down, its fingers along y."""

LEG = mujoco.MjSpec.from_string(
    '<mujoco><worldbody><body name="peg"><geom name="peg" type="box" size="0.015 0.015 0.04" '
    'pos="0 0 0.04" mass="0.15"/></body></worldbody></mujoco>'
)
"""As heavy as the table top of FurnitureBench."""


def build(part: mujoco.MjSpec, friction: float) -> mujoco.MjModel:
    scene: Scene = workcell.build()
    workcell.add_part(scene, part, "part", friction, PART, rests="peg", bumps="peg", held="peg")
    for side in ("left", "right"):
        scene.contact_sensor(side, f"panda/{side}_tip", "part/peg", force=True)
    return scene.compile()


def plan(model, shakes):
    """Controls of a grasp, a lift by 11 cm and `shakes` swings of centimetres and 0.3 rad."""
    chain = Chain.from_model(model, tip="panda/ee")

    def reach(offset, yaw=0.0):
        quat = quat_multiply(axis_angle_to_quat(jnp.array([0.0, 0, 1]), yaw), DOWN)
        goal = jnp.array(PART) + jnp.asarray(offset)
        return np.asarray(solve(goal, quat))

    solve = jax.jit(
        lambda pos, quat: inverse(chain, pos, quat, q0=jnp.asarray(panda.HOME), iterations=50).q
    )
    above, at, lifted = (0, 0, 0.15), (0, 0, 0.035), (0, 0, 0.15)
    rows = [(above, 0.0, 1)] * 3 + [(at, 0.0, 1)] * 12 + [(at, 0.0, -1)] * 5
    rows += [(lifted, 0.0, -1)] * 12
    for k in range(shakes):
        sign, slow = (-1) ** k, (-1) ** (k // 2)
        rows += [((0.03 * sign, 0.03 * slow, 0.15 + 0.02 * sign), 0.3 * sign, -1)] * 2
    rows += [(lifted, 0.0, -1)] * 15
    cache = {key: reach(*key) for key in {(o, y) for o, y, _ in rows}}
    grip = panda.GRIP_FORCE
    return np.stack([np.append(cache[o, y], g * grip) for o, y, g in rows]).astype(np.float32)


def play(model, engine, controls):
    """The part in the hand's frame, its height, and whether it is grasped, after each step."""
    physics = make_physics(model, engine)
    left, right = (ContactSensor.from_model(model, side) for side in ("left", "right"))
    part, hand = model.body("part/peg").id, model.site("panda/ee").id
    arm = np.array([model.joint(f"panda/{j}").qposadr[0] for j in panda.JOINTS])
    fingers = np.array([model.joint(f"panda/{j}").qposadr[0] for j in panda.FINGERS])
    qpos = jnp.asarray(model.qpos0).at[arm].set(controls[0, :7]).at[fingers].set(0.035)

    def step(state, ctrl):
        state, _ = physics.step(state, {"ctrl": ctrl}, SUBSTEPS)
        place = state.site_xmat[hand].T @ (state.xpos[part] - state.site_xpos[hand])
        held = grasped(left.force(state), right.force(state), 1.0)
        return state, (place, state.xpos[part, 2], held)

    run = jax.jit(lambda c: jax.lax.scan(step, physics.init(qpos=qpos, ctrl=c[0]), c))
    state, rows = run(jnp.asarray(controls))
    return state, jax.tree.map(np.asarray, rows)


@pytest.mark.parametrize(("part", "friction"), [(parts.peg(), 0.25), (LEG, 0.15)])
def test_what_is_grasped_by_friction_stays_when_lifted_and_shaken(part, friction):
    model = build(part, friction)
    state, (place, height, held) = play(model, "native", plan(model, shakes=12))
    assert not state.diverged
    assert not held[:15].any()
    assert held[18:].all()
    assert height[31] > 0.08
    assert np.abs(place[31:] - place[31]).max() < 2e-3
