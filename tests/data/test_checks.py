import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobo.data import DataError, Metadata, check, check_env, check_settings
from jaxrobo.env import Env, Spec
from tests.data.samples import ABOUT, sample


def spoilt(column, value):
    column = column.copy()
    column[5, 2] = value
    return column


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"action": spoilt(sample().action, np.nan)},
            r"file: 'action' is nan in row 5, expected a number",
        ),
        ({"obs": {"x": spoilt(sample().action, np.inf)}}, "'obs/x' is inf in row 5"),
        ({"episode_ends": np.array([3, 2, 8])}, "episode 1 ends at step 2, expected more than 3"),
        ({"episode_ends": np.array([0, 4, 8])}, "episode 0 ends at step 0, expected more than 0"),
        ({"episode_ends": np.array([3, 4, 7])}, "the last episode ends at step 7, but there are 8"),
        ({"episode_ends": np.array([3, 4, 9])}, "the last episode ends at step 9, but there are 8"),
        ({"episode_ends": np.array([3.0, 8.0])}, r"'episode_ends' is float64 \[2\], expected int"),
        ({"episode_ends": np.zeros(0, int)}, "there are no episodes"),
        ({"reward": np.zeros(7, np.float32)}, "'reward' has 7 rows, expected 8"),
        ({"success": np.zeros(2, bool)}, "'success' has 2 rows, expected 3"),
        ({"action": np.zeros(8, np.float32)}, r"'action' has shape \(8,\), expected \[N, A\]"),
    ],
)
def test_what_is_not_whole_is_refused(change, message):
    assert check(sample(), "file").steps == 8
    with pytest.raises(DataError, match=message):
        check(sample().replace(**change), "file")


class Toy(Env):
    config = None
    dt = 0.1
    action_size = 10
    observation_spec = {"robot_state": Spec((16,)), "parts_poses": Spec((7,))}  # noqa: RUF012

    def reset(self, key, model=None):
        raise NotImplementedError

    def step(self, state, action):
        raise NotImplementedError


def test_episodes_of_an_environment_are_taken():
    check_env(sample(), Toy())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metadata": Metadata(env="Other")}, "other settings: env is 'Other' there, 'Toy' here"),
        ({"metadata": Metadata(dt=0.2)}, "dt is 0.2 there, 0.1 here"),
        ({"obs": {"robot_state": sample().action}}, r"shape \(10,\), expected \(16,\) for Toy"),
        ({"obs": {}}, "there is no observation 'robot_state', which Toy shows"),
        ({"action": sample().action[:, :8]}, "the actions have width 8, expected 10 for Toy"),
    ],
)
def test_episodes_of_another_environment_are_refused(change, message):
    with pytest.raises(DataError, match=message):
        check_env(sample().replace(**change), Toy())


def test_all_settings_that_differ_are_named():
    other = {**ABOUT.to_dict(), "config": {"randomness": "med", "sizes": [1]}, "seed": 4}
    with pytest.raises(DataError) as error:
        check_settings(ABOUT, Metadata.from_dict(other))
    assert str(error.value).split(": ", 1)[1].split("; ") == [
        "config.randomness is 'low' there, 'med' here",
        "config.sizes is [1, 2.5] there, [1] here",
        "config.cap is None there, missing here",
        "seed is 3 there, 4 here",
    ]


def test_what_is_unknown_and_what_ran_it_is_not_compared():
    check_settings(Metadata(), ABOUT)
    check_settings(ABOUT, Metadata.from_dict({**ABOUT.to_dict(), "engine": "mjx", "versions": {}}))


def test_integers_are_always_finite():
    check(sample().replace(obs={"count": np.arange(8)}), "file")
    assert jnp.asarray(sample().obs["image"]).dtype == jnp.uint8
