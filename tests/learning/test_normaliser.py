"""Running statistics against numpy on everything seen so far."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrobo.learning.normaliser import denormalise, init_stats, normalise, update_stats

update = jax.jit(update_stats)


@given(
    seed=st.integers(0, 2**31 - 1),
    sizes=st.lists(st.sampled_from([1, 2, 50]), min_size=1, max_size=5),
    offset=st.sampled_from([0.0, 100.0, -3.0]),
)
def test_statistics_equal_numpy_on_the_concatenation(seed, sizes, offset):
    rng = np.random.default_rng(seed)
    batches = [rng.normal(offset + i, 1 + i, (n, 3)).astype("f") for i, n in enumerate(sizes)]
    stats = init_stats((3,))
    for batch in batches:
        stats = update(stats, batch)
    seen = np.concatenate(batches).astype(np.float64)
    assert stats.count == len(seen)
    np.testing.assert_allclose(stats.mean, seen.mean(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(stats.var, seen.var(0), rtol=1e-3, atol=1e-3)


@given(
    seed=st.integers(0, 2**31 - 1),
    kept=st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=4),
)
def test_samples_without_weight_are_as_if_they_weren_t_there(seed, kept):
    """Against numpy on those with a weight; the others are far away."""
    rng, stats = np.random.default_rng(seed), init_stats((2,))
    seen = np.zeros((0, 2))
    for flags in map(np.array, kept):
        batch = rng.normal(3, 2, (6, 2)).astype("f")
        seen = np.concatenate([seen, batch[flags]])
        batch[~flags] = 1e4
        stats = update(stats, batch, flags.astype("f"))
    assert stats.count == len(seen)
    mean, var = (seen.mean(0), seen.var(0)) if len(seen) else (np.zeros(2), np.ones(2))
    np.testing.assert_allclose(stats.mean, mean, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(stats.var, var, rtol=1e-3, atol=1e-4)


def test_precision_holds_over_millions_of_samples():
    """100 million samples in batches of 100,000: mean 1000, standard deviation 2."""
    batch = jnp.asarray(1000 + 2 * np.random.default_rng(0).standard_normal(100_000), jnp.float32)
    step = lambda stats, _: (update_stats(stats, batch), None)
    stats = jax.jit(lambda s: jax.lax.scan(step, s, length=1000)[0])(init_stats(()))
    assert stats.count == pytest.approx(1e8, rel=1e-5)
    assert stats.mean == pytest.approx(1000, rel=1e-4)
    assert stats.var == pytest.approx(4, rel=0.02)


def test_scalars_have_statistics_too():
    stats = update(init_stats(()), jnp.array([1.0, 2.0, 6.0]))
    assert (float(stats.mean), float(stats.count)) == (3.0, 3.0)
    assert stats.var == pytest.approx(14 / 3)


def test_nothing_seen_yet_changes_nothing():
    x = jnp.array([1.0, -2.0])
    np.testing.assert_allclose(normalise(init_stats((2,)), x), x, rtol=1e-5)


def test_normalised_samples_have_zero_mean_and_unit_variance():
    x = jnp.asarray(np.random.default_rng(1).normal(7, 3, (500, 2)), jnp.float32)
    y = normalise(update(init_stats((2,)), x), x)
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(y.std(0), 1, atol=1e-4)


def test_what_never_varies_is_clipped_not_divided_by_zero():
    stats = update(init_stats((1,)), jnp.full((10, 1), 5.0))
    assert normalise(stats, jnp.array([5.0])) == 0
    assert normalise(stats, jnp.array([6.0])) == 10
    assert normalise(stats, jnp.array([4.0]), clip=3.0) == -3


def test_denormalise_is_the_inverse():
    stats = update(init_stats((2,)), jnp.array([[0.0, 10.0], [4.0, 30.0]]))
    x = jnp.array([3.0, -15.0])
    np.testing.assert_allclose(denormalise(stats, normalise(stats, x)), x, rtol=1e-6)
    np.testing.assert_allclose(denormalise(stats, jnp.array([1.0, 1.0])), [4.0, 30.0], rtol=1e-5)
