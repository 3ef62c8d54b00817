"""The Dofbot's reacher task, recomputed by hand from its states."""

import math

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from scipy import stats
from scipy.spatial.transform import Rotation

import envs
from envs.reacher.dofbot import Config, DofbotReacher, sample_goal
from jaxrobo.env import vectorise
from jaxrobo.rollout import run_episode, split_key

KEY = jax.random.key(2)
Q = math.pi / 4
LIMITS = np.array([2 * Q, Q, Q, Q, 2 * Q])


def make(**options):
    return DofbotReacher(Config(**options), engine="native", threads=1)


def reach(state, env):
    """The same state with its goal where the marker is."""
    goal = state.data.site_xpos[env.mj_model.site("marker").id]
    return state.replace(info={**state.info, "goal_pos": goal})


def marker(env, data):
    return np.asarray(data.site_xpos)[..., env.mj_model.site("marker").id, :]


def rotation(quat):
    return Rotation.from_quat(quat, scalar_first=True)


# --- the scene ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("q", "pos"),
    # computed from the manufacturer's URDF: (0, 0.015, 0.1) off link5 in world axes at q = 0
    [
        ([0, 0, 0, 0, 0], [0.000001, 0.016104, 0.447044]),
        ([0, Q, Q, Q, 0], [-0.000001, -0.273625, 0.054707]),
        ([2 * Q, Q, Q, Q, 2 * Q], [0.262922, -0.014937, 0.041504]),
    ],
)
def test_the_marker_is_where_the_original_has_it(q, pos):
    model = make().mj_model
    data = mujoco.MjData(model)
    data.qpos = q
    mujoco.mj_kinematics(model, data)
    np.testing.assert_allclose(data.site("marker").xpos, pos, atol=2e-6)


def test_goals_are_spread_over_four_columns():
    pos, quat = jax.device_get(jax.vmap(sample_goal)(jax.random.split(KEY, 4000)))
    for axis in (0, 1):
        assert stats.kstest(abs(pos[:, axis]), stats.uniform(0.15, 0.05).cdf).pvalue > 0.01
    assert stats.kstest(pos[:, 2], stats.uniform(0.15, 0.20).cdf).pvalue > 0.01
    column = (pos[:, 0] > 0) + 2 * (pos[:, 1] > 0)
    np.testing.assert_allclose(np.bincount(column) / 4000, 0.25, atol=0.03)
    assert abs(np.corrcoef(np.abs(pos).T) - np.eye(3)).max() < 0.05
    x, y, z = rotation(quat).as_euler("XYZ").T  # about x after one about y
    turned = abs(z) > 1  # a turn beyond +-90 degrees about y, in other angles
    np.testing.assert_allclose(np.where(turned, abs(z) - math.pi, z), 0, atol=1e-3)
    y = np.where(turned, np.sign(y) * math.pi - y, y)
    x = np.where(turned, x - np.sign(x) * math.pi, x)
    for angle in (x, y):
        assert stats.kstest(angle, stats.uniform(-math.pi, 2 * math.pi).cdf).pvalue > 0.01


# --- an episode, recomputed -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def episode():
    """Random actions for 610 steps in four simulations; a tolerance that they meet now and then."""
    env = envs.make("DofbotReacher", engine="native", threads=1, success_tolerance=0.12)
    batch = vectorise(env, 4)

    def run(key):
        reset_key, act_key = jax.random.split(key)
        start = batch.reset(reset_key)
        actions = jax.random.uniform(act_key, (610, 4, 5), minval=-1.2, maxval=1.2)
        # hold each action for a while, to get about
        actions = jnp.repeat(actions[::10], 10, axis=0)
        step = lambda s, a: ((s := batch.step(s, a)), s)
        return start, actions, jax.lax.scan(step, start, actions)[1]

    start, actions, states = jax.device_get(jax.jit(run)(KEY))
    return env, start, np.clip(actions, -1, 1), states


def before(start, states, read):
    """A quantity of the state before each step."""
    return np.concatenate([read(start)[None], read(states)[:-1]])


def test_an_episode_lasts_599_steps(episode):
    _, _, _, states = episode
    for i in range(4):
        np.testing.assert_array_equal(np.flatnonzero(states.done[:, i]), [598])
    assert states.truncated[598].all()
    assert not states.terminated.any()


def test_rewards_are_those_of_the_pose_after_the_step(episode):
    env, start, actions, states = episode
    within = slice(0, 598)  # the state after step 598 is of the next episode
    goal = before(start, states, lambda s: s.info["goal_pos"])[within]
    distance = np.linalg.norm(marker(env, states.data)[within] - goal, axis=-1)
    reached = distance <= 0.12
    squared = np.sum(actions[within] ** 2, -1)
    expected = -10 * distance - 2e-4 * squared + 250 * reached
    np.testing.assert_allclose(states.reward[within], expected, rtol=1e-4, atol=1e-4)
    terms = {"distance": -10 * distance, "action": -2e-4 * squared, "goal": 250 * reached}
    for name, value in terms.items():
        measured = states.metrics[f"reward/{name}"][within]
        np.testing.assert_allclose(measured, value, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(states.metrics["goals"][within], reached)
    assert reached.sum() > 10


def test_a_reached_goal_and_no_other_is_replaced(episode):
    _, start, _, states = episode
    for name in ("goal_pos", "goal_quat"):
        after = states.info[name][:598]
        changed = (before(start, states, lambda s: s.info[name])[:598] != after).any(-1)  # noqa: B023
        np.testing.assert_array_equal(changed, states.metrics["goals"][:598].astype(bool))
    goals = states.info["goal_pos"][:598].reshape(-1, 3)
    assert len(np.unique(goals, axis=0)) == states.metrics["goals"][:598].sum() + 4


def test_observations_show_the_state_after_the_step(episode):
    env, start, actions, states = episode
    obs, data, info = states.obs, states.data, states.info
    assert env.observation_spec.shape == obs.shape[2:] == (26,)
    hand = rotation(data.xquat[..., env.mj_model.body("link5").id, :].reshape(-1, 4))
    relative = (hand * rotation(info["goal_quat"].reshape(-1, 4)).inv()).as_matrix()
    np.testing.assert_allclose(obs[..., 0:5], data.qpos / LIMITS, atol=1e-5)
    np.testing.assert_allclose(obs[..., 5:10], np.clip(0.2 * data.qvel, -5, 5), atol=1e-5)
    np.testing.assert_allclose(obs[..., 10:13], info["goal_pos"], atol=1e-6)
    np.testing.assert_allclose(obs[..., 13:17], info["goal_quat"], atol=1e-6)
    shown = rotation(obs[..., 17:21].reshape(-1, 4)).as_matrix()
    np.testing.assert_allclose(shown, relative, atol=1e-4)
    last = np.where(states.done[..., None] > 0, 0, actions)  # an episode starts without one
    np.testing.assert_allclose(obs[..., 21:26], last, atol=1e-6)
    np.testing.assert_array_equal(start.obs[:, 21:26], 0)


def test_actions_are_targets_scaled_to_the_limits(episode):
    _, _, actions, states = episode
    np.testing.assert_allclose(states.data.ctrl[:598], (actions * LIMITS)[:598], atol=1e-6)
    assert states.data.time[597] == pytest.approx(598 * 0.0166, rel=1e-4)


def test_episodes_start_within_a_fifth_of_the_limits(episode):
    _, start, _, states = episode
    starts = np.concatenate([start.data.qpos, states.data.qpos[598]])
    assert (abs(starts) <= 0.2 * LIMITS).all()
    assert (np.ptp(starts / LIMITS, 0) > 0.1).all()
    assert not start.data.qvel.any()
    np.testing.assert_array_equal(start.data.ctrl, start.data.qpos)


def test_the_first_episodes_goals_are_drawn_too(episode):
    _, start, _, states = episode
    goals = np.concatenate([start.info["goal_pos"], states.info["goal_pos"][598]])
    assert len(np.unique(goals, axis=0)) == 8
    np.testing.assert_allclose(start.data.mocap_pos[:, 0], start.info["goal_pos"])


# --- options --------------------------------------------------------------------------------------


def test_upstream_lag_judges_the_pose_before_the_step_and_shows_a_new_goal_late():
    env = make(upstream_lag=True)
    start = reach(env.reset(KEY), env)
    goal = np.asarray(start.info["goal_pos"])
    away = jnp.ones(5)
    first = env.step(start, away)
    assert np.linalg.norm(marker(env, first.data) - goal) > 0.05  # it's gone after the step
    assert first.metrics["goals"] == 1
    assert first.reward == pytest.approx(250 - 2e-4 * 5, rel=1e-5)
    np.testing.assert_array_equal(first.obs[10:13], goal)  # not replaced yet
    second = env.step(first, away)
    new = np.asarray(second.info["goal_pos"])
    assert np.linalg.norm(new - goal) > 0.01
    np.testing.assert_array_equal(second.obs[10:13], new)
    distance = np.linalg.norm(marker(env, first.data) - new)
    assert second.reward == pytest.approx(-10 * distance - 1e-3, rel=1e-4)
    hand = rotation(first.data.xquat[env.mj_model.body("link5").id])  # of before the step
    relative = hand * rotation(second.info["goal_quat"]).inv()
    shown = rotation(second.obs[17:21])
    np.testing.assert_allclose(shown.as_matrix(), relative.as_matrix(), atol=1e-5)
    np.testing.assert_allclose(second.obs[:5], second.data.qpos / LIMITS, atol=1e-6)


def test_without_the_lag_a_reached_goal_counts_at_once():
    env = make()
    start = reach(env.reset(KEY), env)
    first = env.step(start, start.data.ctrl / env._limits)  # stays where it is
    assert first.metrics["goals"] == 1
    assert first.reward > 249
    assert np.linalg.norm(first.obs[10:13] - start.info["goal_pos"]) > 0.01  # replaced already


def test_relative_control_moves_the_target():
    """20 rad/s x 16.6 ms x action, within the limits."""
    env = make(relative_control=True)
    state, target = env.reset(KEY), None
    action = np.array([1.0, -1.0, 0.5, 0.1, 0.0])
    for _ in range(4):
        before = np.asarray(state.data.ctrl)
        state = env.step(state, jnp.asarray(action))
        target = np.clip(before + 20 * 0.0166 * action, -LIMITS, LIMITS)
        np.testing.assert_allclose(state.data.ctrl, target, atol=1e-6)
    assert target[1] == pytest.approx(-Q)
    with pytest.raises(ValueError, match="relative_control must be off"):
        env.expert()


def test_a_moving_average_smooths_the_target():
    env = make(moving_average=0.1)
    state = env.reset(KEY)
    expected = np.asarray(state.data.ctrl)
    for a in (1.0, 1.0, -0.5):
        state = env.step(state, jnp.full(5, a))
        expected = 0.1 * a * LIMITS + 0.9 * expected
        np.testing.assert_allclose(state.data.ctrl, expected, atol=1e-6)


def test_the_servo_profile_and_a_cap_limit_the_speed():
    for options, cap in [({"profile": "servo"}, 1.0), ({"velocity_cap": 2.5}, 2.5)]:
        env = make(**options)
        state = env.reset(KEY)
        for _ in range(5):
            state = env.step(state, jnp.ones(5))
        assert abs(state.data.qvel).max() == pytest.approx(cap, rel=1e-2)
    free = env = make()
    state = free.step(free.reset(KEY), jnp.ones(5))
    assert abs(state.data.qvel).max() > 10


def test_without_reset_noise_the_arm_starts_upright():
    assert not make(reset_noise=0.0).reset(KEY).data.qpos.any()


def test_metrics_and_info_of_others_are_kept():
    env = make()
    state = env.reset(KEY)
    state = state.replace(
        metrics={**state.metrics, "reward": jnp.zeros(())}, info={**state.info, "mine": jnp.ones(2)}
    )
    stepped = env.step(state, jnp.zeros(5))
    assert jax.tree.structure(stepped) == jax.tree.structure(state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"profile": "pybullet"}, "unknown profile 'pybullet'; valid: isaac, servo"),
        ({"moving_average": 0.0}, r"moving_average must be in \(0, 1\], got 0.0"),
        ({"episode_steps": 0}, "episode_steps must be positive, got 0"),
        ({"success_tolerance": -0.1}, "success_tolerance must be positive, got -0.1"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)


# --- the expert -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("cap", "steps_a_goal"), [(None, 7.8), (3.14, 18.6), (1.0, 54.0)])
def test_the_expert_reaches_goals_at_the_pace_that_the_drives_allow(cap, steps_a_goal):
    """What greedy inverse kinematics need with a first-order lag of 0.0506 s and a speed limit.

    77, 32 and 11 goals in an episode of 599 steps: a limit of 1 rad/s rules out the 24 to 47 of the
    original's published curves.
    """
    steps = 120 if cap is None else 300
    env = envs.make(
        "DofbotReacher", engine="native", threads=1, episode_steps=steps, velocity_cap=cap
    )
    expert = env.expert()
    keys = jax.random.split(split_key("validation", 0), 8)
    episodes = jax.jit(jax.vmap(lambda key: run_episode(env, expert, (), key)))(keys)
    np.testing.assert_array_equal(episodes["length"], steps)
    goals = episodes["goals"].mean() + 0.5  # in the end, one is half done
    assert steps / goals == pytest.approx(steps_a_goal, rel=0.25)
