import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from envs.assembly import peg_hole
from envs.reacher.dofbot import Config, DofbotReacher
from jaxrobo.data import DataError, Metadata, check_settings, concatenate, describe, take
from tests.data.samples import ABOUT, assert_same, sample
from tests.tiny import Draw


def test_lengths_and_counts():
    trajectories = sample((3, 1, 4))
    assert (trajectories.episodes, trajectories.steps) == (3, 8)
    np.testing.assert_array_equal(trajectories.lengths, [3, 1, 4])


def test_taking_episodes_takes_their_rows():
    all_ = sample((3, 1, 4))
    some = take(all_, [2, 0])
    rows = [4, 5, 6, 7, 0, 1, 2]
    np.testing.assert_array_equal(some.action, all_.action[rows])
    np.testing.assert_array_equal(some.obs["image"], all_.obs["image"][rows])
    np.testing.assert_array_equal(some.poses["qpos"], all_.poses["qpos"][rows])
    np.testing.assert_array_equal(some.episode_ends, [4, 7])
    np.testing.assert_array_equal(some.episode, all_.episode[[2, 0]])
    np.testing.assert_array_equal(some.model["geom_size"], all_.model["geom_size"][[2, 0]])
    assert take(all_, []).steps == 0


def test_what_is_taken_apart_can_be_joined():
    all_ = sample((3, 1, 4))
    assert_same(concatenate([take(all_, [0]), take(all_, [1, 2])]), all_)
    assert_same(concatenate([all_]), all_)


def test_joined_sets_keep_the_settings_that_they_agree_on():
    joined = concatenate([sample(), sample(config={"randomness": "med"}, seed=4)])
    assert joined.metadata.config is None
    assert joined.metadata.env == "Toy"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.replace(poses={}), "set 2 has no 'poses/qpos', which the first set has"),
        (
            lambda t: t.replace(obs={**t.obs, "more": t.action}),
            "the first set has no 'obs/more', which set 2 has",
        ),
        (
            lambda t: t.replace(action=t.action[:, :8]),
            r"'action' is float32 \[8\] a row in set 2, expected float32 \[10\] a row as in",
        ),
        (lambda t: t.replace(reward=t.reward.astype(np.float64)), "'reward' is float64"),
    ],
)
def test_sets_of_other_arrays_are_not_joined(change, message):
    with pytest.raises(DataError, match=message):
        concatenate([sample(), change(sample())])


def test_an_array_is_shown_as_an_array():
    trajectories = sample()
    assert trajectories.observation is trajectories.obs
    array = trajectories.replace(obs={"obs": trajectories.action})
    assert array.observation is trajectories.action


def test_a_set_can_be_an_argument_of_a_jitted_function():
    total = jax.jit(lambda t: t.reward.sum())(sample())
    np.testing.assert_allclose(total, sample().reward.sum(), rtol=1e-6)
    assert hash(ABOUT) == hash(Metadata.from_dict(ABOUT.to_dict()))


def test_an_environment_is_described_by_its_settings():
    about = describe(DofbotReacher(Config(episode_steps=7), engine="native"), "test", 5)
    assert (about.env, about.split, about.seed, about.engine) == (
        "DofbotReacher",
        "test",
        5,
        "native",
    )
    assert about.config["episode_steps"] == 7
    assert about.dt == pytest.approx(1 / 60, rel=0.01)
    assert Metadata.from_dict(about.to_dict()) == about
    assert (describe(Draw()).env, describe(Draw()).config) == ("Draw", None)


@dataclasses.dataclass(frozen=True)
class Options:
    """Of a task, of how an episode ends, and of nothing in particular."""

    size: float = 0.5
    patience: int = dataclasses.field(default=3, metadata={"of_task": False})
    colour: str = dataclasses.field(default="red", metadata={"of_task": True, "unit": "none"})


class Optional(Draw):
    def __init__(self, **options):
        self.config = Options(**options)


def test_what_changes_nothing_about_a_demonstration_is_no_setting():
    about = describe(Optional(patience=9))
    assert about.config == {"size": 0.5, "colour": "red"}
    assert about.conditions == {"patience": 9}
    check_settings(about, describe(Optional(patience=1)), ("env", "config"))
    with pytest.raises(DataError, match=r"other settings: config.size is 0.5 there, 2.0 here$"):
        check_settings(about, describe(Optional(size=2.0, patience=9)))
    with pytest.raises(DataError, match=r"other settings: conditions.patience is 9 there, 1 here$"):
        check_settings(about, describe(Optional(patience=1)))  # not for one file


def test_demonstrations_of_an_assembly_suit_other_ends_and_disturbances():
    there, here = (
        peg_hole.Config(),
        peg_hole.Config(terminate_on_success=True, perturbation=0.01, episode_steps=50),
    )
    config = lambda c: describe(SimpleNamespace(unwrapped=SimpleNamespace(config=c))).config
    expected = {"action": "pos", "randomness": "low", "hole": "free", "observe_errors": False}
    assert config(there) == config(here) == expected


def test_metadata_of_another_version_is_refused():
    with pytest.raises(DataError, match="unknown fields: colour, smell"):
        Metadata.from_dict({"env": "Toy", "smell": 1, "colour": 2})
