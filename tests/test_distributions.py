"""The diagonal Gaussian against scipy and numerical integration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from jaxrobo.distributions import normal_entropy, normal_kl, normal_log_prob

means = st.floats(-3, 3, width=32)
log_stds = st.floats(-2, 1.5, width=32)
log_prob, entropy, kl = map(jax.jit, (normal_log_prob, normal_entropy, normal_kl))


@given(x=st.floats(-5, 5, width=32), mean=means, log_std=log_stds)
def test_log_prob_equals_scipy(x, mean, log_std):
    x, mean, log_std = (np.array([v, 0.5 * v]) for v in (x, mean, log_std))
    expected = stats.norm.logpdf(x, mean, np.exp(log_std)).sum()
    np.testing.assert_allclose(log_prob(x, mean, log_std), expected, rtol=1e-4, atol=1e-4)


@given(log_std=log_stds)
def test_entropy_equals_scipy(log_std):
    expected = stats.norm(0, np.exp([log_std, -log_std])).entropy().sum()
    np.testing.assert_allclose(
        entropy(jnp.array([log_std, -log_std])), expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("p", "q"), [((0.3, -0.5), (-0.2, 0.4)), ((1.0, 0.7), (1.0, -0.3)), ((2.0, 0.1), (0.0, 0.1))]
)
def test_kl_equals_a_numerical_integral(p, q):
    """KL(p || q) = integral of p (log p - log q); the order of the arguments matters."""
    first, second = (stats.norm(mean, np.exp(log_std)) for mean, log_std in (p, q))
    integrand = lambda x: first.pdf(x) * (first.logpdf(x) - second.logpdf(x))
    expected, _ = integrate.quad(integrand, -20, 20)
    args = [jnp.array([v]) for v in (*p, *q)]
    np.testing.assert_allclose(kl(*args), expected, rtol=1e-5)
    assert abs(kl(*args[2:], *args[:2]) - expected) > 1e-3 or p[1] == q[1]


@given(mean=means, log_std=log_stds, other_mean=means, other_log_std=log_stds)
def test_kl_is_never_negative_and_zero_of_equals(mean, log_std, other_mean, other_log_std):
    p, q = (
        (np.array([mean]), np.array([log_std])),
        (np.array([other_mean]), np.array([other_log_std])),
    )
    assert kl(*p, *q) >= -1e-5
    assert kl(*p, *p) == 0


def test_the_last_axis_is_summed_and_the_others_are_kept():
    x, mean, log_std = jnp.zeros((4, 5, 3)), jnp.ones((5, 3)), jnp.zeros(3)
    each = -0.5 - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(
        normal_log_prob(x, mean, log_std), np.full((4, 5), 3 * each), rtol=1e-6
    )
    assert normal_entropy(jnp.zeros((4, 5, 3))).shape == (4, 5)
    np.testing.assert_allclose(normal_kl(x, log_std, mean, log_std), np.full((4, 5), 1.5))
