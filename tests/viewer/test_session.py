import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

import envs
from jaxrobo.policy import constant, receding
from jaxrobo.viewer import session as core
from jaxrobo.viewer.shapes import parts
from tests.tiny import Draw


@pytest.fixture(scope="module")
def reacher():
    """An environment, and its session functions under a policy that wants 0.5, compiled."""
    env = envs.make("DofbotReacher", "native", episode_steps=4)
    policy = constant(jnp.full(5, 0.5))
    begin = jax.jit(lambda seed: core.begin(env, policy, 3, jax.random.key(seed)))
    step = jax.jit(lambda session: core.step(env, policy, (), session))
    return env, begin, step


def run(step, session, steps):
    for _ in range(steps):
        session = step(session)
    return session


def test_abilities():
    env = envs.make("DofbotReacher", "native", relative_control=True)
    joints = tuple(f"joint{i}" for i in range(1, 6))
    assert core.abilities(env) == core.Abilities(joints, True)
    assert core.abilities(envs.make("PegHole", "native")) == core.Abilities((), False)
    with pytest.raises(ValueError, match="Draw can't be shown"):
        core.abilities(Draw())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("actuator_biastype", mujoco.mjtBias.mjBIAS_NONE),  # a motor
        ("actuator_biasprm", 0.0),  # a drive of speeds
        ("actuator_dyntype", mujoco.mjtDyn.mjDYN_INTEGRATOR),
    ],
)
def test_only_position_actuators_are_driven_by_hand(field, value):
    env = envs.make("DofbotReacher", "native")
    getattr(env.mj_model, field)[2] = value
    assert core.abilities(env).joints == ()


def test_taken_over_acts_by_hand_and_the_others_by_the_policy(reacher):
    env, begin, step = reacher
    session = step(begin(0))
    np.testing.assert_allclose(session.action, 0.5)
    session = core.take_over(env, session, 1)
    np.testing.assert_allclose(session.manual, 0.5)  # goes on with what it did
    session = core.nudge(core.nudge(session, 0, -0.2), 0, -0.2)
    session = step(core.command(session, 3, 7.0))
    expected = np.full((3, 5), 0.5)
    expected[1, 0], expected[1, 3] = 0.1, 1.0
    np.testing.assert_allclose(session.action, expected, atol=1e-6)
    np.testing.assert_allclose(step(core.give_back(session)).action, 0.5)


def test_nobody_taken_over_ignores_hands(reacher):
    _, begin, _ = reacher
    session = core.command(core.nudge(begin(0), 0, 0.3), 1, 0.3)
    np.testing.assert_array_equal(session.manual, 0.0)


def test_by_hand_the_clock_stands_still(reacher):
    env, begin, step = reacher
    session = run(step, core.take_over(env, begin(0), 2), 4)
    np.testing.assert_array_equal(session.rollout.env.done, [1, 1, 0])
    length = step(session).rollout.episode["length"]
    np.testing.assert_array_equal(length, [1, 1, 5])  # the others started anew


def test_same_as_a_rollout_without_hands(reacher):
    env, begin, step = reacher
    session = run(step, begin(0), 3)
    state, advance = begin(0).rollout.env, jax.jit(jax.vmap(env.step))
    for _ in range(3):
        state = advance(state, jnp.full((3, 5), 0.5))
    np.testing.assert_allclose(session.rollout.env.data.qpos, state.data.qpos, atol=1e-6)


def test_a_moved_goal_is_the_goal(reacher):
    env, begin, step = reacher
    looks = parts(env.visual_model)
    pos = jnp.array([0.1, -0.2, 0.3])
    session = core.move_goal(begin(0), 1, pos)
    after = step(session)
    np.testing.assert_allclose(after.rollout.env.data.mocap_pos[1, 0], pos)
    np.testing.assert_allclose(after.rollout.env.obs[1, 10:13], pos)
    frame = core.look(env, looks, after)
    np.testing.assert_allclose(frame.goal[1], pos)
    reward = -10 * frame.distance - 2e-4 * 5 * 0.25
    np.testing.assert_allclose(frame.reward, reward, atol=1e-5)
    assert not np.allclose(frame.goal[0], pos)


def test_a_moved_goal_is_drawn_where_it_is_before_the_next_step(reacher):
    """Its cube and the ball around it, in the simulation that it's of."""
    env, begin, _ = reacher
    looks = parts(env.visual_model)
    rows = np.array([part.body for part in looks]) == env.mj_model.body("goal").id
    assert rows.sum() == 2
    pos = jnp.array([0.1, -0.2, 0.3])
    before = core.look(env, looks, begin(0))
    after = core.look(env, looks, core.move_goal(begin(0), 1, pos))
    np.testing.assert_allclose(after.pos[1, rows], [pos, pos])
    np.testing.assert_array_equal(after.pos[:, ~rows], before.pos[:, ~rows])
    np.testing.assert_array_equal(after.pos[::2], before.pos[::2])


def test_relative_actions_by_hand_act_once():
    env = envs.make("DofbotReacher", "native", relative_control=True)
    policy = constant(jnp.full(5, 0.5))
    session = core.begin(env, policy, 2, jax.random.key(0))
    session = core.nudge(core.take_over(env, session, 0), 2, 0.25)
    step = jax.jit(lambda session: core.step(env, policy, (), session))
    session = step(session)
    np.testing.assert_allclose(session.action, [[0, 0, 0.25, 0, 0], [0.5] * 5])
    np.testing.assert_allclose(step(session).action, [[0.0] * 5, [0.5] * 5])


def test_a_policy_that_plans_does_so_every_period():
    """Plan k holds k, so the actions tell which plan they're of."""
    env = envs.make("DofbotReacher", "native")

    def predict(params, seen, previous, key):
        return jnp.full((4, 5), 0.1 + jnp.where(previous.exists, previous.actions[0, 0], 0.0))

    policy = receding(predict, horizon=4, action_size=5, period=3)
    session = core.begin(env, policy, 2, jax.random.key(0))
    step = jax.jit(lambda session: core.step(env, policy, (), session))
    for expected in (0.1, 0.1, 0.1, 0.2, 0.2, 0.2, 0.3):
        session = step(session)
        np.testing.assert_allclose(session.action, expected, atol=1e-6)


def test_mistakes(reacher):
    env, begin, _ = reacher
    with pytest.raises(ValueError, match="no simulation 3; valid: 0 to 2"):
        core.take_over(env, begin(0), 3)
    with pytest.raises(ValueError, match="no simulation -1"):
        core.move_goal(begin(0), -1, jnp.zeros(3))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        core.begin(env, constant(jnp.zeros(5)), 0, jax.random.key(0))
