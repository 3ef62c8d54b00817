"""Our environments under stable-baselines3, against a walk computed by hand."""

import importlib
import sys

import jax
import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

from jaxrobo.bridge.stable_baselines import StableBaselinesVecEnv
from jaxrobo.env import TimeLimit
from tests.learning.diagnostic_envs import Tasks, Walk, endless


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


def test_a_seed_fixes_every_episode():
    def run(seed):
        venv = StableBaselinesVecEnv(TimeLimit(Walk(), 2), 2)
        venv.seed(seed)
        seen = [venv.reset()] + [venv.step(np.zeros((2, 1)))[0] for _ in range(3)]
        return np.array([*seen, venv.reset()])

    np.testing.assert_array_equal(run(1), run(1))
    assert not np.array_equal(run(1), run(2))


def test_final_observations_of_a_dict():
    venv = StableBaselinesVecEnv(Tasks(), 4)
    assert set(venv.reset()) == {"x", "task"}
    _, _, dones, infos = venv.step(np.zeros((4, 1)))
    final = infos[int(np.argmax(dones))]["terminal_observation"]
    assert jax.tree.map(np.shape, final) == {"x": (1,), "task": (6,)}


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


def test_what_to_install_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "stable_baselines3.common.monitor", None)
    monkeypatch.delitem(sys.modules, "jaxrobo.bridge.stable_baselines")
    with pytest.raises(ImportError, match=r"pip install 'jaxrobo\[benchmarks\]'"):
        importlib.import_module("jaxrobo.bridge.stable_baselines")
