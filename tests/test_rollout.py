"""Rollouts against the environments' dynamics written out by hand, for every kind of policy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobo.env import TimeLimit
from jaxrobo.policy import Policy, chunked, constant, gaussian, residual, scripted
from jaxrobo.rollout import (
    SPLITS,
    episode_key,
    rollout,
    run_episode,
    split_key,
    start,
)
from tests.learning.diagnostic_envs import Corridor, Endless, Walk, endless

WALK = TimeLimit(Walk(), 6)
NOISY = gaussian(lambda params, obs: (params * jnp.ones(1), jnp.log(0.4) * jnp.ones(1)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def begin(env, policy, keys):
    return jax.vmap(lambda key: start(env, policy, key))(keys)


@functools.partial(jax.jit, static_argnums=(0, 1, 4, 5))
def go(env, policy, params, states, steps, auto_reset=True):
    """Rollouts of a batch, `[n, steps, ...]`."""
    return jax.vmap(lambda s: rollout(env, policy, params, s, steps, auto_reset))(states)


def play(env, policy, params, keys, steps, auto_reset=True):
    return go(env, policy, params, begin(env, policy, keys), steps, auto_reset)


def keys(n):
    return jax.random.split(jax.random.key(3), n)


def assert_trees_close(a, b):
    plain = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    close = lambda a, b: np.testing.assert_allclose(plain(a), plain(b), rtol=1e-5, atol=1e-6)
    jax.tree.map(close, a, b)


@pytest.fixture(scope="module")
def walk():
    """Six fresh simulations, and 24 steps of each."""
    states = begin(WALK, NOISY, keys(6))
    return states, go(WALK, NOISY, 0.5, states, 24)


def test_transitions_equal_a_loop_by_hand(walk):
    """Walks of at most 6 steps beyond an edge at 1; all but the noise is recomputed in numpy."""
    batch = jax.device_get(walk[1][1])
    ends = {"terminated": 0, "truncated": 0}
    for i in range(6):
        starts, length, total, moved = [], 0, 0.0, 0.0
        for t in range(24):
            x, edge = batch.obs[i, t]
            if length == 0:
                starts.append(x)
                assert -0.5 <= x <= 0.5
            else:
                assert x == pytest.approx(position, abs=1e-6)  # noqa: F821
            applied = np.clip(batch.action[i, t, 0], -1, 1)
            position, length = x + 0.5 * applied, length + 1
            total, moved = total + position, moved + abs(applied)
            terminated = abs(position) > edge
            truncated = length == 6 and not terminated
            np.testing.assert_allclose(batch.next_obs[i, t], [position, 1], atol=1e-6)
            assert batch.reward[i, t] == pytest.approx(position, abs=1e-6)
            assert (batch.terminated[i, t], batch.truncated[i, t]) == (terminated, truncated)
            assert batch.live[i, t]
            sums = {"reward": total, "length": length, "moved": moved}
            for name, value in sums.items():
                assert batch.episode[name][i, t] == pytest.approx(value, abs=1e-5)
            if terminated or truncated:
                ends["terminated"] += terminated
                ends["truncated"] += truncated
                length, total, moved = 0, 0.0, 0.0
        assert len(set(starts)) == len(starts)  # a key of its own for every episode
    assert min(ends.values()) >= 2
    assert np.abs(batch.action).max() > 1  # recorded before it's clipped
    noise = (batch.action - 0.5) / 0.4
    assert len(np.unique(noise)) == noise.size
    np.testing.assert_allclose(
        batch.aux["log_prob"],
        -0.5 * noise[..., 0] ** 2 - np.log(0.4 * np.sqrt(2 * np.pi)),
        rtol=1e-4,
    )


def test_a_rollout_goes_on_where_another_ended(walk):
    states, whole = walk
    middle, first = go(WALK, NOISY, 0.5, states, 12)
    end, second = go(WALK, NOISY, 0.5, middle, 12)
    joined = jax.tree.map(lambda a, b: jnp.concatenate([a, b], 1), first, second)
    assert_trees_close((end, joined), whole)


def test_results_dont_depend_on_the_batch_or_on_the_nesting_of_vmap(walk):
    states, whole = walk
    fold = lambda tree: jax.tree.map(lambda x: x.reshape(2, 3, *x.shape[1:]), tree)
    nested = jax.vmap(lambda s: go(WALK, NOISY, 0.5, s, 24))(fold(states))
    assert_trees_close(nested, fold(whole))
    one = lambda tree: jax.tree.map(lambda x: x[4:5], tree)
    assert_trees_close(go(WALK, NOISY, 0.5, one(states), 24), one(whole))


def test_a_chunked_policy_plans_once_a_block_and_idles_after_the_end():
    """Episodes of 4 steps under plans of 3: three steps, then one and two idle ones."""

    def predict(params, obs, key):
        del key
        return (params * obs[0] + jnp.arange(3.0))[:, None] / 10

    policy = chunked(predict, horizon=3, action_size=1)
    state, batch = jax.device_get(play(Corridor(4), policy, 2.0, keys(2), 12))
    for i in range(2):
        np.testing.assert_array_equal(batch.live[i], [1, 1, 1, 1, 0, 0] * 2)
        np.testing.assert_array_equal(batch.obs[i, :, 0], [0, 1, 2, 3, 4, 4] * 2)
        np.testing.assert_array_equal(batch.next_obs[i, :, 0], [1, 2, 3, 4, 4, 4] * 2)
        np.testing.assert_array_equal(batch.reward[i], [0, 0, 0, 1, 0, 0] * 2)
        np.testing.assert_array_equal(batch.terminated[i], [0, 0, 0, 1, 1, 1] * 2)
        np.testing.assert_array_equal(batch.episode["length"][i], [1, 2, 3, 4, 4, 4] * 2)
        planned_at_0_and_3 = [0.0, 0.1, 0.2, 0.6]
        np.testing.assert_allclose(batch.action[i, :4, 0], planned_at_0_and_3, atol=1e-6)
    assert not state.env.done.any()  # the last block ended with a reset
    assert not state.env.data.any()
    assert not state.episode["reward"].any()


def test_every_block_plans_with_noise_of_its_own():
    policy = chunked(lambda params, obs, key: jax.random.uniform(key, (2, 1)), 2, 1)
    _, batch = play(Endless(), policy, (), keys(2), 8)
    assert len(np.unique(batch.action)) == batch.action.size


def test_without_auto_reset_a_finished_simulation_idles():
    state, batch = play(Corridor(3), constant(jnp.zeros(1)), (), keys(1), 5, auto_reset=False)
    np.testing.assert_array_equal(batch.live[0], [1, 1, 1, 0, 0])
    np.testing.assert_array_equal(batch.reward[0], [0, 0, 1, 0, 0])
    np.testing.assert_array_equal(batch.next_obs[0, :, 0], [1, 2, 3, 3, 3])
    np.testing.assert_array_equal(batch.episode["length"][0], [1, 2, 3, 3, 3])
    assert (state.env.done[0], state.env.data[0]) == (1, 3)


def test_a_residual_policy_corrects_its_base():
    """The base moves by a plan of two steps, the correction reads what the base does."""
    base = chunked(lambda params, obs, key: params * jnp.array([[1.0], [2.0]]), 2, 1)

    def correct(params, carry, seen, key):
        del key
        delta = params + 10 * seen["base_action"] + seen["obs"][:1]
        return delta, carry, {"seen": seen["obs"]}

    policy = residual(base, Policy(correct))
    assert policy.period == 2
    params = {"base": 0.1, "residual": jnp.array([3.0]), "scale": 0.1}
    _, batch = play(Corridor(4), policy, params, keys(1), 4)
    position, base_action = np.arange(4.0), np.array([0.1, 0.2, 0.1, 0.2])
    delta = 3 + 10 * base_action + position
    np.testing.assert_allclose(batch.aux["base_action"][0, :, 0], base_action, rtol=1e-6)
    np.testing.assert_allclose(batch.aux["residual_action"][0, :, 0], delta, rtol=1e-6)
    np.testing.assert_allclose(batch.action[0, :, 0], base_action + 0.1 * delta, rtol=1e-6)
    np.testing.assert_allclose(batch.aux["seen"][0, :, 0], position)


def test_a_scripted_policy_restarts_with_its_simulation():
    """The expert counts its own steps; it reads the state that the observation leaves out."""

    def act(count, state, key):
        del key
        return jnp.stack([0.1 * count + state.info["steps"]]), count + 1

    policy = scripted(act, init=lambda state, key: state.info["steps"].astype(jnp.float32))
    _, batch = play(endless(3), policy, (), keys(1), 7)
    np.testing.assert_allclose(batch.action[0, :, 0], [0, 1.1, 2.2, 0, 1.1, 2.2, 0], atol=1e-6)


@pytest.mark.parametrize("period", [1, 4])
def test_run_episode_sums_one_episode(period):
    if period == 1:
        policy = constant(jnp.array([0.3]))
    else:
        policy = chunked(lambda params, obs, key: jnp.full((4, 1), 0.3), 4, 1)
    run = jax.jit(jax.vmap(lambda key: run_episode(WALK, policy, (), key)))
    sums = jax.device_get(run(keys(8)))
    first = jax.device_get(begin(WALK, policy, keys(8)).env.data.x)
    lengths = set()
    for i in range(8):
        x, length, total = first[i], 0, 0.0
        while length < 6 and abs(x) <= 1:
            x, length = x + 0.15, length + 1
            total += x
        expected = {"length": length, "reward": total, "moved": 0.3 * length}
        assert sums.keys() == expected.keys()
        for name, value in expected.items():
            assert sums[name][i] == pytest.approx(value, abs=1e-5)
        lengths.add(length)
    assert len(lengths) > 1


def test_wrong_arguments_are_named():
    policy = chunked(lambda params, obs, key: jnp.zeros((3, 1)), 3, 1)
    for steps in (0, 4):
        with pytest.raises(ValueError, match=f"positive multiple of 3, got {steps}"):
            rollout(WALK, policy, (), start(WALK, policy, keys(1)[0]), steps)
    with pytest.raises(ValueError, match="wrap the environment in TimeLimit"):
        run_episode(Walk(), policy, (), keys(1)[0])
    with pytest.raises(ValueError, match="unknown split 'dev'; valid: train, validation, test"):
        split_key("dev", 0)


def test_episodes_of_all_splits_and_seeds_start_from_keys_of_their_own():
    seen = {
        tuple(np.asarray(jax.random.key_data(episode_key(split, seed, i))).tolist())
        for split in SPLITS
        for seed in range(3)
        for i in range(4)
    }
    assert len(seen) == 36
    again = jax.vmap(lambda i: episode_key("test", 2, i))(jnp.arange(4))
    assert again[3] == episode_key("test", 2, 3)
