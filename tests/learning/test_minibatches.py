"""Samples as rows."""

import jax.numpy as jnp
import numpy as np

from jaxrobo.learning.minibatches import pack


def test_rows_hold_all_of_a_sample_in_order():
    samples = {"a": jnp.arange(3.0), "b": 10 + jnp.arange(12.0).reshape(3, 2, 2), "c": None}
    rows, unpack = pack(samples)
    np.testing.assert_array_equal(rows[1], [1, 14, 15, 16, 17])
    some = unpack(rows[jnp.array([2, 0])])
    np.testing.assert_array_equal(some["a"], [2, 0])
    np.testing.assert_array_equal(some["b"], samples["b"][jnp.array([2, 0])])
    assert some["c"] is None
