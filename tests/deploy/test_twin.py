"""The simulated robot, against a rollout of the same policy."""

import jax
import jax.numpy as jnp
import numpy as np

import envs
from jaxrobo.deploy import Twin
from jaxrobo.policy import chunked, constant

KEY = jax.random.key(3)


def test_it_goes_on_beyond_the_end_of_an_episode_and_plans_when_it_is_time():
    env = envs.make("DofbotReacher", "native", episode_steps=3)
    plans = np.random.default_rng(0).uniform(-1, 1, (4, 5)).astype(np.float32)
    policy = chunked(lambda params, obs, key: params["plans"], 4, 5)
    twin = Twin(env, policy, {"plans": plans}, KEY)

    bare = env.unwrapped
    reset, step = jax.jit(bare.reset), jax.jit(bare.step)
    state = reset(jax.random.split(KEY, 3)[1])
    np.testing.assert_allclose(twin.pose, state.data.qpos)
    goals = 0.0
    for k in range(9):
        state = step(state, plans[k % 4])
        goals += float(state.metrics["goals"])
        np.testing.assert_allclose(twin.step(), state.data.qpos, atol=1e-6)
    np.testing.assert_array_equal(twin.pose, twin.state.data.qpos)
    assert twin.metric == goals
    assert twin.dt == bare.dt


def test_actions_are_clipped_as_rollouts_do(monkeypatch):
    """In a task that relies on it, as tasks may."""
    env = envs.make("DofbotReacher", "native")
    add = lambda _, s, action: s.replace(data=s.data.replace(qpos=s.data.qpos + action))
    monkeypatch.setattr(type(env.unwrapped), "step", add)
    twin = Twin(env, constant(jnp.full(5, 3.0)), (), KEY)
    before = twin.pose
    np.testing.assert_allclose(twin.step(), before + 1, rtol=1e-6)
