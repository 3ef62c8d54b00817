"""MuJoCo Playground itself under our algorithms: `make test-playground`."""

import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("mujoco_playground")

from mujoco_playground import registry, wrapper

from jaxrobo import policy, training
from jaxrobo.bridge import from_brax
from jaxrobo.bridge.from_brax import FromBrax
from jaxrobo.env import Spec, vectorise
from jaxrobo.evaluation import evaluate
from jaxrobo.learning import ppo
from jaxrobo.rendering import record

pytestmark = [
    pytest.mark.filterwarnings("ignore:Brax System:UserWarning"),
    pytest.mark.filterwarnings("ignore:Accessing .* directly from `Data`:DeprecationWarning"),
]

KEY = jax.random.key(0)
LIMIT = 7


@pytest.fixture(scope="module")
def cartpole():
    """Needs no file from elsewhere."""
    return registry.load("CartpoleBalance", config_overrides={"impl": "jax"})


def test_steps_and_ends_are_those_of_playground(cartpole):
    """The same actions in a loop around its own functions, anew from the next key at each end."""
    env = FromBrax(cartpole, LIMIT)
    assert (env.observation_spec, env.action_size) == (Spec((5,)), 1)
    assert (env.dt, env.mj_model.nq) == (0.01, 2)
    batch, keys = vectorise(env, 2), jax.random.split(KEY, 2)
    step, alone = jax.jit(batch.step), jax.jit(cartpole.step)
    begin = jax.jit(lambda key: cartpole.reset(jax.random.key_data(key)))
    draw = lambda key: jax.random.split(key)
    state, actions = jax.jit(batch.reset)(KEY), jax.random.uniform(KEY, (20, 2, 1), minval=-1.0)
    keys = [draw(key) for key in keys]
    theirs = [begin(key) for _, key in keys]
    for t, action in enumerate(actions):
        state = step(state, action)
        for i in range(2):
            theirs[i] = alone(theirs[i], action[i])
            close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
            close(state.reward[i], theirs[i].reward)
            close(state.info["final_obs"][i], theirs[i].obs)
            for name, value in theirs[i].metrics.items():
                close(state.metrics[name][i], value)
            assert (state.terminated[i], state.truncated[i]) == (False, t % LIMIT == LIMIT - 1)
            if state.truncated[i]:
                keys[i] = draw(keys[i][0])
                theirs[i] = begin(keys[i][1])
            close(state.obs[i], theirs[i].obs)
            close(state.data.qpos[i], theirs[i].data.qpos)
    assert step._cache_size() == 1


def test_its_wrappers_are_refused(cartpole):
    with pytest.raises(ValueError, match="wrapped in BraxAutoResetWrapper: give it bare"):
        FromBrax(wrapper.wrap_for_brax_training(cartpole), LIMIT)


def test_films(cartpole):
    env = FromBrax(cartpole, LIMIT)
    seen = record(env, policy.constant(jnp.ones(1)), (), KEY)
    assert seen.qpos.shape == (1, LIMIT + 1, 2)
    assert (np.diff(seen.qpos[0, :, 0]) > 0)[1:].all()  # pushed to the right


def test_ppo_learns_and_resumes_bit_for_bit(cartpole, tmp_path):
    """200 steps upright, in the middle, at rest, are worth 200; those of a falling pole 135."""
    env = FromBrax(cartpole, 200)
    config = ppo.Config(
        num_envs=256, horizon=32, discount=0.98, gae_decay=0.98, schedule="constant"
    )
    trainer = ppo.make(env, config)
    options = dict(evaluate_every=10**6, evaluation_episodes=32, test_episodes=64)
    before = evaluate(env, *trainer.policy(trainer.init(KEY, ())), episodes=32)
    half, all_of = 25 * config.steps_per_iteration, 50 * config.steps_per_iteration
    result = training.run(trainer, tmp_path / "whole", steps=all_of, **options)
    assert result.evaluation[0]["reward"].low > 190 > 150 > before["reward"].high
    training.run(trainer, tmp_path / "parts", steps=half, **options)
    parts = training.run(trainer, tmp_path / "parts", steps=all_of, resume=True, **options)
    keyless = lambda s: jax.tree.map(
        lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x, s
    )
    jax.tree.map(np.testing.assert_array_equal, keyless(parts.state), keyless(result.state))


def test_the_example_learns_the_inverted_pendulum():
    blocks = from_brax.__doc__.split("\n\n")
    example = [b for b in blocks if all(line.startswith("    ") for line in b.splitlines())]
    names = {"print": lambda *args: names.update(printed=args)}
    exec(textwrap.dedent("\n".join(example)), names)
    assert names["printed"][0].mean > 90  # of 100
