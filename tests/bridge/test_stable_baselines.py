"""Our environments under stable-baselines3, against a walk by hand and its own loop over them."""

import copy
import importlib
import sys

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize

import envs
from jaxrobo.bridge.gymnasium import GymnasiumEnv
from jaxrobo.bridge.stable_baselines import StableBaselinesVecEnv
from jaxrobo.env import TimeLimit
from tests.learning.diagnostic_envs import Aim, Walk, endless
from tests.test_rendering import Slide, needs_gl


def robot():
    return envs.make("DofbotReacher", engine="native", threads=1, episode_steps=2)


def loop(env, num_envs, render_mode=None):
    """The loop of stable-baselines3 over simulations, whose programs are compiled only once."""
    one = GymnasiumEnv(env, render_mode)
    return DummyVecEnv([lambda: Monitor(copy.copy(one))] * num_envs)


@pytest.mark.parametrize("make", [robot, Aim], ids=["robot", "dict"])
def test_stable_baselines_finds_nothing_wrong_with_one(make):
    check_env(GymnasiumEnv(make()))


@pytest.mark.parametrize("make", [lambda: TimeLimit(Walk(), 4), Aim], ids=["walk", "dict"])
def test_a_batch_is_its_loop_over_single_simulations(make):
    ours, theirs = StableBaselinesVecEnv(make(), 3), loop(make(), 3)
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    assert ours.metadata == theirs.metadata
    ours.action_space.seed(0)
    ended = 0
    for seed in (5, None):
        if seed is not None:
            assert ours.seed(seed) == theirs.seed(seed)
        assert_equal(ours.reset(), theirs.reset())
        for _ in range(12):
            actions = np.stack([ours.action_space.sample() for _ in range(3)])
            *seen, infos = ours.step(actions)
            *expected, expected_infos = theirs.step(actions)
            for a, b in zip(seen, expected, strict=True):
                assert_equal(a, b)
            for i in np.flatnonzero(seen[2]):
                ended += 1
                mine, other = infos[i], expected_infos[i]
                assert_equal(mine["terminal_observation"], other["terminal_observation"])
                assert mine["TimeLimit.truncated"] == other["TimeLimit.truncated"]
                assert mine["episode"]["l"] == other["episode"]["l"]
                np.testing.assert_allclose(mine["episode"]["r"], other["episode"]["r"], atol=1e-5)
    assert ended > 6


def assert_equal(a, b):
    """Equal arrays, or equal dicts of them."""
    if isinstance(b, dict):
        assert a.keys() == b.keys()
        for key in b:
            assert_equal(a[key], b[key])
    else:
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_a_walk_by_hand():
    """`x <- x + 0.5 a`, over beyond 1 and cut after 4 steps; the reward is x."""
    venv = StableBaselinesVecEnv(TimeLimit(Walk(), 4), 3)
    venv.seed(3)
    obs = venv.reset()
    rng = np.random.default_rng(0)
    kinds, length, total, moved = set(), np.zeros(3, int), np.zeros(3), np.zeros(3)
    for _ in range(12):
        actions = rng.uniform(-1, 1, (3, 1))
        x = obs[:, 0] + 0.5 * actions[:, 0]
        length, total, moved = length + 1, total + x, moved + np.abs(actions[:, 0])
        obs, rewards, dones, infos = venv.step(actions)
        np.testing.assert_allclose(rewards, x, rtol=1e-5)
        np.testing.assert_array_equal(dones, (np.abs(x) > 1) | (length == 4))
        for i, info in enumerate(infos):
            if not dones[i]:
                assert info == {}
                np.testing.assert_allclose(obs[i], [x[i], 1], rtol=1e-5)
                continue
            np.testing.assert_allclose(info["terminal_observation"], [x[i], 1], rtol=1e-5)
            assert info["TimeLimit.truncated"] is bool(np.abs(x[i]) <= 1)
            episode = info["episode"]
            assert episode["l"] == length[i]
            np.testing.assert_allclose(episode["r"], total[i], rtol=1e-4)
            np.testing.assert_allclose(episode["moved"], moved[i], rtol=1e-4)
            assert abs(obs[i, 0]) <= 0.5  # where episodes start
            kinds.add(info["TimeLimit.truncated"])
            length[i], total[i], moved[i] = 0, 0, 0
    assert kinds == {False, True}


def test_a_success_is_reported_where_that_is_what_counts():
    venv = StableBaselinesVecEnv(Aim(), 2)  # the best action is 0.6 x - 0.1 t
    obs = venv.reset()
    for _ in range(5):
        best = 0.6 * obs["place"] - 0.1 * obs["time"]
        obs, _, dones, infos = venv.step(best + np.array([[0.0], [0.2]]))
    assert dones.all()
    assert [info["is_success"] for info in infos] == [True, False]
    assert [info["episode"]["success"] for info in infos] == [1, 0]


@needs_gl
def test_pictures_are_tiles():
    env = Slide()
    ours, theirs = StableBaselinesVecEnv(env, 2, "rgb_array"), loop(env, 2, "rgb_array")
    pictures = []
    for venv in (ours, theirs):
        assert venv.render_mode == "rgb_array"
        assert venv.metadata["render_fps"] == pytest.approx(50)
        venv.seed(3)
        venv.reset()
        venv.step(np.array([[0.1], [-0.4]]))
        pictures.append(venv.render())
        venv.close()
    np.testing.assert_array_equal(*pictures)
    assert pictures[0].shape == (960, 640, 3)


def test_ppo_reports_the_episodes(tmp_path):
    venv = VecNormalize(StableBaselinesVecEnv(endless(3), 4))
    model = PPO("MlpPolicy", venv, n_steps=6, batch_size=24, n_epochs=1, device="cpu", seed=0)
    model.learn(48)
    assert len(model.ep_info_buffer) == 16
    assert all((e["r"], e["l"]) == (3.0, 3) for e in model.ep_info_buffer)


def test_policies_are_evaluated_by_whole_episodes():
    venv = StableBaselinesVecEnv(endless(5), 2)
    model = PPO("MlpPolicy", venv, n_steps=4, batch_size=8, device="cpu", seed=0)
    assert evaluate_policy(model, venv, n_eval_episodes=4) == (5.0, 0.0)


def test_what_simulations_share_and_what_they_lack():
    venv = StableBaselinesVecEnv(endless(5), 3)
    assert venv.get_attr("time_limit", [0, 2]) == [5, 5]
    assert venv.env_is_wrapped(Monitor) == [True] * 3
    assert venv.env_is_wrapped(VecMonitor, 0) == [False]
    assert not venv.has_attr("no_such_thing")
    with pytest.raises(NotImplementedError, match="'gravity'"):
        venv.set_attr("gravity", 0)
    with pytest.raises(NotImplementedError, match="'render'"):
        venv.env_method("render")
    with pytest.raises(RuntimeError, match="call reset before step"):
        venv.step(np.zeros((3, 1)))
    venv.set_options({"start": 1})
    with pytest.raises(ValueError, match="takes no options, got 'start'"):
        venv.reset()
    venv.reset()
    with pytest.raises(ValueError, match=r"shape \(2, 1\), expected \(3, 1\)"):
        venv.step(np.zeros((2, 1)))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        StableBaselinesVecEnv(endless(5), 0)
    with pytest.raises(ValueError, match="Walk can't be drawn"):
        StableBaselinesVecEnv(Walk(), 1, "rgb_array")


def test_what_to_install_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "stable_baselines3.common.monitor", None)
    monkeypatch.delitem(sys.modules, "jaxrobo.bridge.stable_baselines")
    with pytest.raises(ImportError, match=r"pip install 'jaxrobo\[benchmarks\]'"):
        importlib.import_module("jaxrobo.bridge.stable_baselines")
