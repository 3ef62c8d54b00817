"""ManiSkill 3 itself, on a CPU: `make test-maniskill`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("mani_skill")

from benchmarks.maniskill import Make
from jaxrobo import host, training
from jaxrobo.bridge.maniskill import without_renderer
from jaxrobo.bridge.vector import from_gymnasium, from_maniskill
from jaxrobo.env import Metric
from jaxrobo.learning import ppo
from jaxrobo.policy import uniform

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:mani_skill")

without_renderer()

import gymnasium  # noqa: E402
import mani_skill.envs  # noqa: E402, F401
import torch  # noqa: E402
from gymnasium.vector import AsyncVectorEnv, AutoresetMode  # noqa: E402
from mani_skill.vector.wrappers.gymnasium import ManiSkillVectorEnv  # noqa: E402


def make(name, **wrapper):
    options = dict(obs_mode="state", sim_backend="physx_cpu", render_backend="none")
    inner = gymnasium.make(name, num_envs=1, reward_mode="normalized_dense", **options)
    return ManiSkillVectorEnv(inner, **wrapper)


@pytest.mark.parametrize(
    ("name", "size", "limit"), [("PickCube-v1", 42, 50), ("PegInsertionSide-v1", 43, 100)]
)
def test_a_rollout_is_what_maniskill_does(name, size, limit):
    """The same actions once more, step by step: the same rewards and observations.

    What the next episode starts from is drawn by ManiSkill, from what it has drawn before.
    """
    env = from_maniskill(make(name))
    assert (env.observation_spec.shape, env.action_size, env.time_limit) == ((size,), 8, limit)
    policy = uniform(8)
    state = host.start(env, policy, jax.random.key(0))
    _, batch = jax.device_get(host.rollout(env, policy, (), state, limit + 5))
    assert np.flatnonzero(batch.truncated).tolist() == [limit - 1]
    assert not batch.terminated.any()

    inner, seed = make(name), host._seed(state.key)
    obs, _ = inner.reset(seed=seed)
    for t in range(limit):
        np.testing.assert_allclose(batch.obs[t], obs, atol=1e-5)
        obs, reward, *_, info = inner.step(torch.tensor(batch.action[t]))
        np.testing.assert_allclose(batch.reward[t], reward, atol=1e-5)
    np.testing.assert_allclose(batch.next_obs[limit - 1], info["final_observation"], atol=1e-5)


@pytest.mark.parametrize("ignore", [False, True])
def test_a_success(ignore):
    """The goal is put where the cube lies: ends the episode, or counts once if ends are ignored."""
    inner = make("PickCube-v1", ignore_terminations=ignore)
    env = from_maniskill(inner)
    env.start(0)
    task = inner.base_env
    task.goal_site.set_pose(task.cube.pose)
    nothing = jnp.zeros((1, env.action_size))
    first, second = env.advance(nothing), env.advance(nothing)
    assert (bool(first.terminated[0]), bool(first.truncated[0])) == (not ignore, False)
    assert (first.metrics["success"][0], first.reward[0]) == (1, 1)
    assert (second.metrics["success"][0], bool(second.terminated[0])) == (0, False)
    np.testing.assert_allclose(first.final_obs[0, -3:], 0, atol=0.025)  # from the cube to the goal
    assert (abs(first.obs[0, -3:]).max() > 0.025) == (not ignore)  # another episode's


def test_processes_of_one_simulation_each():
    """As the benchmark has them: two, whose episodes all last their time."""
    options = dict(autoreset_mode=AutoresetMode.SAME_STEP, context="forkserver")
    processes = AsyncVectorEnv([Make("PickCube-v1")] * 2, **options)
    env = from_gymnasium(processes, 50, Metric("success"))
    policy = uniform(env.action_size)
    state = host.start(env, policy, jax.random.key(0))
    _, batch = jax.device_get(host.rollout(env, policy, (), state, 52))
    processes.close()
    assert np.argwhere(batch.truncated).tolist() == [[49, 0], [49, 1]]
    assert batch.live.all()
    assert not batch.terminated.any()
    np.testing.assert_allclose(batch.episode["reward"][49], batch.reward[:50].sum(0), rtol=1e-5)
    np.testing.assert_array_equal(batch.next_obs[:49], batch.obs[1:50])
    assert (abs(batch.next_obs[49] - batch.obs[50]).max(1) > 1e-3).all()  # new episodes
    assert abs(batch.obs[0, 0] - batch.obs[0, 1]).max() > 1e-3  # of different seeds


def test_observations_are_shared_and_stay_what_they_were():
    inner = make("PegInsertionSide-v1")
    env, shown = from_maniskill(inner), []
    env.start(0)
    step = inner.step
    inner.step = lambda action: shown.append(step(action)) or shown[-1]
    outcomes = [env.advance(jnp.full((1, 8), 0.5)) for _ in range(5)]
    copies = [np.array(o.obs) for o in outcomes]
    for outcome, (obs, *_) in zip(outcomes, shown, strict=True):
        assert outcome.obs.unsafe_buffer_pointer() == obs.data_ptr()
    env.advance(jnp.zeros((1, 8)))
    for outcome, copy in zip(outcomes, copies, strict=True):
        np.testing.assert_array_equal(outcome.obs, copy)
    assert len({copy.tobytes() for copy in copies}) == 5


def test_ppo_runs_and_evaluates(tmp_path):
    env = from_maniskill(make("PickCube-v1"))
    trainer = ppo.make(env, ppo.Config(num_envs=1, horizon=50, minibatches=2, discount=0.8))
    budget = dict(steps=200, evaluate_every=200, evaluation_episodes=1, test_episodes=2)
    result = training.run(trainer, tmp_path, **budget)
    assert result.steps == 200
    assert {"success", "reward", "length"} <= set(result.evaluation[0])
