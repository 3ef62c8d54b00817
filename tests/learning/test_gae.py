"""Advantages against numbers worked out by hand, and against the sum that defines them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrobo.learning.gae import generalised_advantages

REWARDS = jnp.array([1.0, 2.0, 3.0, 4.0])
VALUES = jnp.array([0.5, 1.0, 1.5, 2.0])
NEXT = jnp.array([1.0, 1.5, 2.0, 2.5])
NO = jnp.zeros(4, bool)
SECOND = NO.at[1].set(True)


@pytest.mark.parametrize(
    ("terminated", "truncated", "expected"),
    # discount 0.5, decay 0.5: delta = r + 0.5 V' - V, A = delta + 0.25 A'
    [
        # deltas [1, 1.75, 2.5, 3.25]
        (NO, NO, [1.64453125, 2.578125, 3.3125, 3.25]),
        # deltas [1, 1, 2.5, 3.25]: nothing follows the second step
        (SECOND, NO, [1.25, 1.0, 3.3125, 3.25]),
        # deltas [1, 1.75, 2.5, 3.25]: what follows is worth V', but its advantages stay there
        (NO, SECOND, [1.4375, 1.75, 3.3125, 3.25]),
        (SECOND, SECOND, [1.25, 1.0, 3.3125, 3.25]),
        # deltas [1, 1.75, 2.5, 2]
        (NO.at[3].set(True), NO, [1.625, 2.5, 3.0, 2.0]),
    ],
    ids=["running", "terminated", "truncated", "both", "terminated at the end"],
)
def test_advantages_equal_those_by_hand(terminated, truncated, expected):
    advantages = generalised_advantages(REWARDS, VALUES, NEXT, terminated, truncated, 0.5, 0.5)
    np.testing.assert_array_equal(advantages, expected)


def test_the_limits_are_td_errors_and_monte_carlo_returns():
    td = generalised_advantages(REWARDS, VALUES, NEXT, NO, NO, 0.9, 0.0)
    np.testing.assert_allclose(td, REWARDS + 0.9 * NEXT - VALUES, rtol=1e-6)
    end = NO.at[3].set(True)
    consistent = jnp.append(VALUES[1:], 7.0)
    returns = generalised_advantages(REWARDS, VALUES, consistent, end, NO, 0.9, 1.0) + VALUES
    expected = [np.sum(0.9 ** np.arange(4 - t) * np.asarray(REWARDS[t:])) for t in range(4)]
    np.testing.assert_allclose(returns, expected, rtol=1e-6)


@given(
    seed=st.integers(0, 2**31 - 1),
    ends=st.lists(st.sampled_from(["", "terminated", "truncated"]), min_size=7, max_size=7),
    discount=st.floats(0, 1),
    decay=st.floats(0, 1),
)
def test_advantages_are_discounted_sums_of_td_errors(seed, ends, discount, decay):
    """A_t = sum over k of (discount decay)^k delta_{t+k}, up to the end of the episode."""
    rewards, values, following = np.random.default_rng(seed).standard_normal((3, 7)).astype("f")
    terminated, truncated = (
        np.array([e == kind for e in ends]) for kind in ("terminated", "truncated")
    )
    deltas = rewards + discount * following * ~terminated - values
    expected = []
    for t in range(7):
        last = next((k for k in range(t, 7) if ends[k]), 6)
        weights = (discount * decay) ** np.arange(last - t + 1)
        expected.append(np.sum(weights * deltas[t : last + 1]))
    advantages = _jitted(rewards, values, following, terminated, truncated, discount, decay)
    np.testing.assert_allclose(advantages, expected, rtol=1e-4, atol=1e-4)


_jitted = jax.jit(generalised_advantages)


def test_only_one_simulation_is_taken():
    with pytest.raises(ValueError, match="have one shape"):
        generalised_advantages(*(jnp.zeros((4, 2)) for _ in range(5)), 0.9, 0.9)
    with pytest.raises(ValueError, match="have one shape"):
        generalised_advantages(REWARDS, VALUES, NEXT[:3], NO, NO, 0.9, 0.9)
