import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobo.env import Spec
from jaxrobo.networks import flatten_observation

X = jnp.arange(6.0).reshape(2, 3)


def test_observations_are_put_together_in_the_order_of_their_names():
    spec = {"b": Spec((2, 3)), "a": Spec(())}
    got = flatten_observation(spec, {"b": X, "a": jnp.array(7.0)})
    np.testing.assert_array_equal(got, [7, 0, 1, 2, 3, 4, 5])


@pytest.mark.parametrize("spec", [Spec((2, 3)), {"obs": Spec((2, 3))}, {"x": Spec((2, 3))}])
def test_an_array_is_the_only_entry(spec):
    """Episodes of a task that shows one entry don't say whether it's in a dict."""
    np.testing.assert_array_equal(flatten_observation(spec, X), range(6))
    if isinstance(spec, dict):
        np.testing.assert_array_equal(flatten_observation(spec, {min(spec): X}), range(6))
    with pytest.raises(ValueError, match="the observation is an array, expected a, b"):
        flatten_observation({"a": Spec((2, 3)), "b": Spec(())}, X)
