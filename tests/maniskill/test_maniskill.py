"""ManiSkill 3 itself, on a CPU: `make test-maniskill`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("mani_skill")

from jaxrobo import host, training
from jaxrobo.bridge.maniskill import without_renderer
from jaxrobo.bridge.vector import from_maniskill
from jaxrobo.learning import ppo
from jaxrobo.policy import uniform

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:mani_skill")

without_renderer()

import gymnasium  # noqa: E402
import mani_skill.envs  # noqa: E402, F401
import torch  # noqa: E402
from mani_skill.vector.wrappers.gymnasium import ManiSkillVectorEnv  # noqa: E402


def make(name):
    options = dict(obs_mode="state", sim_backend="physx_cpu", render_backend="none")
    inner = gymnasium.make(name, num_envs=1, reward_mode="normalized_dense", **options)
    return ManiSkillVectorEnv(inner)


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
