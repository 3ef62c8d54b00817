"""Policies: what they do with one observation; test_rollout shows them in environments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxrobo.policy import Policy, chunked, constant, gaussian, residual, scripted, uniform
from tests.learning.diagnostic_envs import Walk

KEY = jax.random.key(5)


def linear(params, obs):
    return params * obs[:2], jnp.array([0.0, -1.0])


def test_a_gaussian_policy_samples_what_it_says():
    policy = gaussian(linear)
    obs = jnp.array([0.5, -1.0, 9.0])
    carry = policy.init(obs, KEY)
    assert carry == ()
    assert policy.plan(3.0, carry, obs, KEY) == ()
    act = jax.jit(jax.vmap(lambda key: policy.act(3.0, carry, obs, key)))
    actions, _, aux = jax.device_get(act(jax.random.split(KEY, 4000)))
    for i, (mean, std) in enumerate([(1.5, 1.0), (-3.0, np.exp(-1.0))]):
        assert stats.kstest(actions[:, i], stats.norm(mean, std).cdf).pvalue > 0.01
    expected = stats.norm.logpdf(actions, aux["mean"], np.exp(aux["log_std"])).sum(1)
    np.testing.assert_allclose(aux["log_prob"], expected, rtol=1e-4, atol=1e-5)


def test_a_deterministic_gaussian_policy_acts_by_the_mean():
    action, _, aux = gaussian(linear, deterministic=True).act(2.0, (), jnp.array([1.0, 2.0]), KEY)
    np.testing.assert_array_equal(action, [2.0, 4.0])
    np.testing.assert_array_equal(aux["mean"], action)


def test_a_chunked_policy_applies_its_plan_in_order():
    plan = lambda params, obs, key: params + obs * jnp.arange(3.0)[:, None]
    policy = chunked(plan, horizon=3, action_size=2)
    assert policy.period == 3
    obs = jnp.array([1.0, 2.0])
    carry = policy.init(obs, KEY)
    for _ in range(2):  # a new plan starts from its beginning
        carry = policy.plan(0.5, carry, obs, KEY)
        for i in range(3):
            action, carry, aux = policy.act(0.5, carry, -obs, KEY)
            np.testing.assert_allclose(action, 0.5 + i * np.array([1.0, 2.0]))
            assert aux == {}
    with pytest.raises(ValueError, match="horizon must be at least 1, got 0"):
        chunked(plan, 0, 2)


def test_a_residual_policy_keeps_its_bases_carry_and_plan():
    base = chunked(lambda params, obs, key: params * jnp.ones((2, 1)), 2, 1)
    policy = residual(
        base, gaussian(lambda params, seen: (params * seen["base_action"], jnp.zeros(1)))
    )
    params = {"base": 2.0, "residual": 3.0, "scale": 0.5}
    seen = jnp.ones(1), jnp.zeros(1)  # what the base observes, and what the environment shows
    carry = policy.plan(params, policy.init(seen, KEY), seen, KEY)
    action, carry, aux = policy.act(params, carry, seen, KEY)
    assert (policy.period, int(carry.index)) == (2, 1)
    np.testing.assert_array_equal(aux["base_action"], [2.0])
    np.testing.assert_array_equal(aux["mean"], [6.0])
    np.testing.assert_allclose(action, 2 + 0.5 * aux["residual_action"])
    noise = aux["residual_action"] - 6
    assert aux["log_prob"] == pytest.approx(stats.norm.logpdf(noise).sum(), rel=1e-5)


def test_base_and_correction_draw_from_different_keys():
    base = gaussian(lambda params, obs: (jnp.zeros(1), jnp.zeros(1)))
    policy = residual(base, gaussian(lambda params, seen: (jnp.zeros(1), jnp.zeros(1))))
    params = {"base": (), "residual": (), "scale": 1.0}
    _, _, aux = policy.act(params, (), (jnp.ones(1), jnp.ones(1)), KEY)
    assert aux["base_action"] != aux["residual_action"]


def test_an_expert_reads_the_state_even_as_a_base():
    expert = scripted(lambda carry, state, key: (-state.data.x[None], carry))
    state = Walk().reset(KEY)
    action, _, aux = expert.act((), (), expert.observe(state), KEY)
    np.testing.assert_array_equal(action, -state.data.x[None])
    assert aux == {}
    correction = Policy(lambda params, carry, seen, key: (seen["obs"][1:], carry, {}))
    policy = residual(expert, correction)
    params = {"base": (), "residual": (), "scale": jnp.array([0.1])}
    action, _, _ = policy.act(params, (), policy.observe(state), KEY)
    np.testing.assert_allclose(action, -state.data.x[None] + 0.1)  # its edge is at 1


def test_constant_and_uniform_policies():
    state = Walk().reset(KEY)
    np.testing.assert_array_equal(
        constant([0.2, -1.0]).act((), (), state, KEY)[0], np.float32([0.2, -1.0])
    )
    act = lambda key: uniform(3).act((), (), state, key)[0]
    actions = np.asarray(jax.vmap(act)(jax.random.split(KEY, 2000)))
    assert stats.kstest(actions.ravel(), stats.uniform(-1, 2).cdf).pvalue > 0.01
