"""Our environments as gymnasium's vector environment, against gymnasium's own loop over them."""

import importlib
import sys

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics

import envs
from jaxrobo.bridge.gymnasium import (
    GymnasiumVectorEnv,
    action_space,
    observation_space,
)
from jaxrobo.env import Spec, TimeLimit
from tests.learning.diagnostic_envs import Tasks, Walk, endless


class Alone(gymnasium.Env):
    """One simulation; its episodes are those of one simulation of the batch."""

    def __init__(self, env, key):
        self.env, self.key = env, key
        self.observation_space = observation_space(env.observation_spec)
        self.action_space = action_space(env)

    def reset(self, *, seed=None, options=None):
        self.key, key = jax.random.split(self.key)
        self.state = self.env.reset(key)
        return jax.tree.map(np.asarray, self.state.obs), {}

    def step(self, action):
        self.state = s = self.env.step(self.state, action)
        info = {k: np.float32(v) for k, v in s.metrics.items()}
        obs = jax.tree.map(np.asarray, s.obs)
        return obs, float(s.reward), bool(s.terminated), bool(s.truncated), info


def first_key(seed):
    return jax.random.key(int(seeding.np_random(seed)[0].integers(2**31)))


def one_by_one(env, num_envs, seed):
    keys = jax.random.split(first_key(seed), num_envs)
    makers = [lambda k=k: Alone(env, k) for k in keys]
    return SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)


def assert_same(a, b):
    """Equal trees of gymnasium: tuples, dicts, object arrays of observations or None, numbers."""
    if isinstance(a, tuple):
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, np.ndarray) and a.dtype == object:
        assert [x is None for x in a] == [x is None for x in b]
        for x, y in zip(a, b, strict=True):
            if x is not None:
                assert_same(x, y)
    else:
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("env", [TimeLimit(Walk(), 4), Tasks()], ids=["walk", "dict"])
def test_a_batch_is_what_gymnasium_makes_of_single_simulations(env):
    ours, theirs = GymnasiumVectorEnv(env, 3), one_by_one(env, 3, seed=5)
    assert ours.metadata == theirs.metadata
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    assert_same(ours.reset(seed=5), theirs.reset())
    ours.action_space.seed(0)
    ends = set()
    for _ in range(10):
        actions = 2 * ours.action_space.sample()
        seen, expected = ours.step(actions), theirs.step(actions)
        assert_same(seen, expected)
        assert ours.observation_space.contains(seen[0]) or np.isnan(seen[0]["x"]).any()
        terminated, truncated = seen[2:4]
        ends.add(int((terminated | truncated).sum()))
    assert len(ends) > 1  # none, some or all at once


def test_a_robot_in_gymnasium():
    env = envs.make("DofbotReacher", engine="native", threads=1, episode_steps=2)
    batch = GymnasiumVectorEnv(env, 2)
    assert batch.single_observation_space.shape == (26,)
    assert batch.single_action_space == gymnasium.spaces.Box(-1, 1, (5,), np.float32)
    first, _ = batch.reset(seed=0)
    assert batch.observation_space.contains(first)
    for _ in range(2):
        obs, reward, terminated, truncated, infos = batch.step(np.zeros((2, 5)))
        assert batch.observation_space.contains(obs)
    assert truncated.all()
    assert not terminated.any()
    assert reward.dtype == np.float32
    assert infos["final_obs"][0].shape == (26,)
    np.testing.assert_array_equal(infos["final_info"]["goals"].shape, (2,))
    assert np.abs(obs - first).max() > 0.01  # the next episode is another one


def test_a_seed_fixes_every_episode():
    def run(seed):
        batch = GymnasiumVectorEnv(TimeLimit(Walk(), 2), 2)
        seen = [batch.reset(seed=seed)[0]]
        seen += [batch.step(np.zeros((2, 1)))[0] for _ in range(5)]
        return np.array([*seen, batch.reset()[0]])

    first = run(7)
    np.testing.assert_array_equal(first, run(7))
    assert not np.array_equal(first, run(8))
    assert len(np.unique(first[[0, 2, 4, 6], :, 0])) == 8  # each episode is a new one
    assert not np.array_equal(run(None), run(None))


def test_outputs_belong_to_the_caller():
    batch = GymnasiumVectorEnv(endless(3), 2)
    obs, _ = batch.reset(seed=0)
    obs[:] = np.nan
    obs, reward, terminated, truncated, _ = batch.step(np.zeros((2, 1)))
    kept = obs.copy()
    for array in (reward, terminated, truncated):
        array[:] = 1
    batch.step(np.zeros((2, 1)))
    np.testing.assert_array_equal(obs, kept)
    np.testing.assert_array_equal(obs, np.ones((2, 1)))


def test_gymnasium_counts_the_episodes():
    batch = RecordEpisodeStatistics(GymnasiumVectorEnv(endless(3), 2))
    batch.reset(seed=0)
    for _ in range(6):
        *_, infos = batch.step(np.zeros((2, 1)))
    np.testing.assert_array_equal(infos["episode"]["r"], [3, 3])
    np.testing.assert_array_equal(infos["episode"]["l"], [3, 3])


def test_spaces_of_observations():
    image = observation_space(Spec((4, 4, 3), np.uint8, "image"))
    assert image == gymnasium.spaces.Box(0, 255, (4, 4, 3), np.uint8)
    both = observation_space({"a": Spec((2,)), "b": Spec((5, 3), kind="points")})
    assert both["b"] == gymnasium.spaces.Box(-np.inf, np.inf, (5, 3), np.float32)
    assert list(both.keys()) == ["a", "b"]


def test_misuse_is_refused():
    batch = GymnasiumVectorEnv(Walk(), 2)
    with pytest.raises(RuntimeError, match="call reset before step"):
        batch.step(np.zeros((2, 1)))
    with pytest.raises(ValueError, match="takes no options, got 'reset_mask'"):
        batch.reset(options={"reset_mask": np.ones(2, bool)})
    batch.reset()
    with pytest.raises(ValueError, match=r"shape \(2, 3\), expected \(2, 1\)"):
        batch.step(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        GymnasiumVectorEnv(Walk(), 0)


def test_what_to_install_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    monkeypatch.delitem(sys.modules, "jaxrobo.bridge.gymnasium")
    with pytest.raises(ImportError, match=r"pip install 'jaxrobo\[gymnasium\]'"):
        importlib.import_module("jaxrobo.bridge.gymnasium")
