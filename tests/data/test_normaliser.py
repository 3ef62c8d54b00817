import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobo.data import (
    DataError,
    Trajectories,
    denormalise,
    fit,
    normalise,
    normalise_observation,
)
from jaxrobo.data.normaliser import from_dict, to_dict
from tests.data.samples import sample


def data():
    """Columns 1, 3, 8; 5, 5, 5; -1, 0, 1."""
    x = np.array([[1, 5, -1], [3, 5, 0], [8, 5, 1]], np.float32)
    flags = np.zeros(3, bool)
    points = np.zeros((3, 4, 3), np.float32)
    obs = {"state": x, "points": points}
    return Trajectories(obs, x[:, :1], x[:, 0], flags, flags, np.array([3]), flags, flags)


def test_min_max_by_hand():
    normaliser = fit(data(), "min_max")
    assert normaliser.offset.keys() == {"state", "action"}
    np.testing.assert_array_equal(normaliser.offset["state"], [4.5, 5, 0])
    np.testing.assert_array_equal(normaliser.scale["state"], [3.5, 1, 1])
    scaled = normalise(normaliser, "state", data().obs["state"])
    np.testing.assert_allclose(scaled, [[-1, 0, -1], [-3 / 7, 0, 0], [1, 0, 1]], rtol=1e-6)


def test_standard_by_hand():
    normaliser = fit(data(), "standard")
    np.testing.assert_allclose(normaliser.offset["state"], [4, 5, 0])
    np.testing.assert_allclose(normaliser.scale["state"], [np.sqrt(26 / 3), 1, np.sqrt(2 / 3)])
    np.testing.assert_allclose(normalise(normaliser, "action", jnp.array([4.0])), [0])


@pytest.mark.parametrize("kind", ["min_max", "standard"])
def test_a_constant_becomes_zero_whatever_it_is(kind):
    column = np.full((1000, 1), 0.1, np.float32)
    constant = sample((1000,)).replace(obs={"x": column})
    normaliser = fit(constant, kind)
    assert normaliser.scale["x"] == 1
    np.testing.assert_array_equal(normalise(normaliser, "x", column), 0)


@pytest.mark.parametrize("kind", ["min_max", "standard"])
def test_what_hardly_varies_has_a_scale_of_a_hundredth(kind):
    """Columns that vary by +-1e-6, +-0.009 and +-0.02, as much by both measures."""
    column = np.tile(np.float32([-1, 1]), 500)[:, None] * np.float32([1e-6, 0.009, 0.02])
    normaliser = fit(sample((1000,)).replace(obs={"x": column}), kind)
    np.testing.assert_allclose(normaliser.scale["x"], [0.01, 0.01, 0.02], rtol=1e-5)
    scaled = np.abs(normalise(normaliser, "x", column))
    np.testing.assert_allclose(scaled, np.tile([1e-4, 0.9, 1], (1000, 1)), rtol=1e-3)


def test_observations_are_clipped_and_actions_are_not():
    """Offset 4.5 and scale 3.5: 22 and -13 are +-5."""
    normaliser = fit(data(), "min_max")
    seen = lambda x: float(
        normalise_observation(normaliser, {"state": jnp.array([x, 5.0, 0.0])})["state"][0]
    )
    assert [seen(x) for x in (1e3, 22.1, -12.9, -13.1)] == pytest.approx([5, 5, -17.4 / 3.5, -5])
    assert normalise(normaliser, "action", 1e3) == pytest.approx(995.5 / 3.5)


@pytest.mark.parametrize("kind", ["min_max", "standard"])
def test_the_inverse_and_leading_axes(kind):
    trajectories = sample((50, 50))
    normaliser = fit(trajectories, kind)
    action = jnp.asarray(trajectories.action).reshape(10, 10, 10)
    there = jax.jit(normalise, static_argnums=1)(normaliser, "action", action)
    np.testing.assert_allclose(denormalise(normaliser, "action", there), action, atol=1e-6)


def test_only_vectors_of_numbers_are_normalised_unless_named():
    trajectories = sample()
    normaliser = fit(trajectories)
    assert normaliser.offset.keys() == {"robot_state", "parts_poses", "action"}
    seen = normalise_observation(normaliser, {k: v[0] for k, v in trajectories.obs.items()})
    np.testing.assert_array_equal(seen["image"], trajectories.obs["image"][0])
    expected = normalise(normaliser, "robot_state", trajectories.obs["robot_state"][0])
    np.testing.assert_array_equal(seen["robot_state"], expected)
    assert fit(trajectories, keys=["parts_poses"]).scale.keys() == {"parts_poses", "action"}


def test_an_array_stays_an_array():
    trajectories = sample().replace(obs={"obs": sample().action})
    normaliser = fit(trajectories)
    seen = normalise_observation(normaliser, trajectories.observation)
    np.testing.assert_allclose([seen.min(), seen.max()], [-1, 1], rtol=1e-6)


def test_a_stored_normaliser_is_the_same():
    normaliser = fit(sample(), "standard")
    again = from_dict(to_dict(normaliser, 3), 3, "file")
    jax.tree.map(np.testing.assert_array_equal, again, normaliser)
    with pytest.raises(DataError, match=r"file: the normaliser was fitted on 3 episodes, .* 4"):
        from_dict(to_dict(normaliser, 3), 4, "file")
    with pytest.raises(DataError, match="file: there is no normaliser"):
        from_dict(None, 4, "file")


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="unknown kind 'max'; valid: min_max, standard"):
        fit(sample(), "max")
    with pytest.raises(DataError, match="no observation 'depth'; found parts_poses, robot_state"):
        fit(sample(), keys=["depth"])
