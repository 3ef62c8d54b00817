import json

import h5py
import numpy as np
import pytest

from jaxrobo.data import (
    DataError,
    concatenate,
    fit,
    hdf5,
    read,
    read_normaliser,
    take,
    write_normaliser,
)
from tests.data.samples import ABOUT, assert_same, sample


@pytest.fixture
def file(tmp_path):
    hdf5.write(tmp_path / "x.hdf5", sample())
    return tmp_path / "x.hdf5"


def test_what_is_read_is_what_was_written(file):
    assert_same(hdf5.read(file), sample())
    assert_same(read(file), sample())
    assert [p.name for p in file.parent.iterdir()] == ["x.hdf5"]


def test_appended_episodes_follow(tmp_path):
    all_, path = sample((1,) * 11 + (3,)), tmp_path / "x.hdf5"
    hdf5.write(path, take(all_, range(4)))
    hdf5.append(path, take(all_, [4]))
    hdf5.append(path, take(all_, range(5, 12)))
    assert_same(hdf5.read(path), all_)


def test_only_some_observations(file):
    got = hdf5.read(file, obs=["robot_state"])
    assert got.obs.keys() == got.final_obs.keys() == {"robot_state"}
    with pytest.raises(DataError, match="demo_0: 'obs/depth' is missing"):
        hdf5.read(file, obs=["depth"])


def test_episodes_without_extras(tmp_path):
    plain = sample().replace(final_obs={}, poses={}, model={})
    hdf5.write(tmp_path / "x.hdf5", plain)
    assert_same(hdf5.read(tmp_path / "x.hdf5"), plain)


def robomimic(path, mask=None):
    """Reads as `SequenceDataset` of robomimic does, cached in memory, with next observations."""
    with h5py.File(path, "r", swmr=True, libver="latest") as file:
        if mask is None:
            demos = list(file["data"].keys())
        else:
            demos = [name.decode("utf-8") for name in np.array(file[f"mask/{mask}"][:])]
        demos = [demos[i] for i in np.argsort([int(name[5:]) for name in demos])]
        found = {}
        for name in demos:
            demo = file[f"data/{name}"]
            keys = list(demo["obs"])
            found[name] = {
                "num_samples": demo.attrs["num_samples"],
                "obs": {k: demo[f"obs/{k}"][()] for k in keys},
                "next_obs": {k: demo[f"next_obs/{k}"][()] for k in keys},
                **{k: demo[k][()].astype("float32") for k in ("actions", "rewards", "dones")},
            }
        return found, json.loads(file["data"].attrs["env_args"]), file["data"].attrs["total"]


def test_a_reader_of_robomimic_finds_everything(file):
    demos, env_args, total = robomimic(file)
    assert list(demos) == ["demo_0", "demo_1", "demo_2"]
    assert env_args == {"env_name": "Toy", "type": 2, "env_kwargs": ABOUT.to_dict()["config"]}
    assert total == 8
    for i, demo in enumerate(demos.values()):
        expected = take(sample(), [i])
        assert demo["num_samples"] == expected.steps
        np.testing.assert_array_equal(demo["actions"], expected.action)
        np.testing.assert_array_equal(demo["rewards"], expected.reward)
        np.testing.assert_array_equal(demo["dones"], expected.terminated | expected.truncated)
        for key, value in expected.obs.items():
            np.testing.assert_array_equal(demo["obs"][key], value)
            following = np.concatenate([value[1:], expected.final_obs[key]])
            np.testing.assert_array_equal(demo["next_obs"][key], following)


def test_masks_tell_successes_from_failures(tmp_path):
    won, lost = sample((2,) * 11), sample((3, 1), success=False)
    path = tmp_path / "x.hdf5"
    hdf5.write(path, won)
    hdf5.append(path, lost)
    assert list(robomimic(path, "success")[0]) == [f"demo_{i}" for i in range(11)]
    assert list(robomimic(path, "failure")[0]) == ["demo_11", "demo_12"]
    assert_same(hdf5.read(path, mask="failure"), lost)
    assert_same(hdf5.read(path), concatenate([won, lost]))
    with pytest.raises(DataError, match="there is no mask 'train'; found failure, success"):
        hdf5.read(path, mask="train")


def test_a_file_of_robomimic_is_read(tmp_path):
    with h5py.File(tmp_path / "low_dim.hdf5", "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = 5
        data.attrs["env_args"] = "{}"
        for name, length in (("demo_10", 2), ("demo_2", 3)):
            demo = data.create_group(name)
            demo.attrs["num_samples"] = length
            demo["actions"] = np.full((length, 7), length, np.float64)
            demo["dones"] = np.ones(length, np.int64)
            demo["states"] = np.zeros((length, 32))
            demo["obs/object"] = np.zeros((length, 10))
        file["mask/valid"] = np.array([b"demo_10"])
    got = hdf5.read(tmp_path / "low_dim.hdf5")
    np.testing.assert_array_equal(got.action[:, 0], [3, 3, 3, 2, 2])
    np.testing.assert_array_equal(got.episode_ends, [3, 5])
    np.testing.assert_array_equal(got.terminated, [0, 0, 1, 0, 1])
    assert got.success.all()
    assert hdf5.read(tmp_path / "low_dim.hdf5", mask="valid").steps == 2
    with pytest.raises(DataError, match="was written by others"):
        hdf5.append(tmp_path / "low_dim.hdf5", sample())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("actions", None, "demo_1: 'actions' is missing; found dones"),
        ("obs", None, "demo_1: 'obs' is missing"),
        ("actions", np.full((1, 10), np.nan, np.float32), "'action' is nan in row 3"),
        (
            "actions",
            np.zeros((2, 10), np.float32),
            r"'actions' has shape \[2, 10\], expected 1",
        ),
        ("actions", np.zeros((1, 8), np.float32), r"'action' is float32 \[8\] a row in demo_1"),
        ("rewards", np.zeros(0, np.float32), r"'rewards' has shape \[0\], expected 1 rows"),
        ("obs/robot_state", None, "demo_1 has no 'obs/robot_state', which demo_0"),
    ],
)
def test_a_bad_demonstration_is_refused(file, key, value, message):
    with h5py.File(file, "r+") as f:
        del f[f"data/demo_1/{key}"]
        if value is not None:
            f[f"data/demo_1/{key}"] = value
    with pytest.raises(DataError, match=message):
        hdf5.read(file)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data", np.zeros(3), "'data' is an array, expected a group of demonstrations"),
        ("data/demo_1", np.zeros(3), "'demo_1' is an array, expected the group"),
        ("data/demo_1/obs", np.zeros(3), "demo_1: 'obs' is an array, expected a group of arrays"),
        ("data/demo_1/obs/robot_state", {"q": 1}, "demo_1: 'obs/robot_state' is a group, expected"),
    ],
)
def test_another_structure_is_refused(file, key, value, message):
    with h5py.File(file, "r+") as f:
        del f[key]
        if isinstance(value, dict):
            f.create_group(key)
        else:
            f[key] = value
    with pytest.raises(DataError, match=message):
        hdf5.read(file)


def test_text_is_left_out(file):
    with h5py.File(file, "r+") as f:
        for demo in f["data"].values():
            demo["obs/instruction"] = np.full(len(demo["actions"]), b"insert it")
    assert_same(hdf5.read(file), sample())
    with pytest.raises(DataError, match=r"'obs/instruction' is of type \|S9, expected numbers"):
        hdf5.read(file, obs=("instruction",))


def test_damaged_settings_are_refused(file):
    with h5py.File(file, "r+") as f:
        f["data"].attrs["jaxrobo"] = "{"
    with pytest.raises(DataError, match=r"x.hdf5: its settings are damaged"):
        hdf5.read(file)


def test_a_missing_demonstration_is_refused(file):
    with h5py.File(file, "r+") as f:
        del f["data/demo_1"]
    with pytest.raises(DataError, match="there are 7 steps, expected 8"):
        hdf5.read(file)
    with pytest.raises(DataError, match="'demo_1' is missing"):
        hdf5.read(file, mask="success")
    with h5py.File(file, "r+") as f:
        f.create_group("data/other")
    with pytest.raises(DataError, match="'other', expected demo_<number>"):
        hdf5.read(file)


def test_a_file_that_was_cut_off_is_refused(file):
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="isn't an HDF5 file, or was cut off"):
        hdf5.read(file)
    with h5py.File(file, "w"):
        pass
    with pytest.raises(DataError, match="'data' is missing; found nothing"):
        hdf5.read(file)
    with h5py.File(file, "w") as f:
        f.create_group("data")
    with pytest.raises(DataError, match="there are no demonstrations"):
        hdf5.read(file)
    with pytest.raises(DataError, match="there is no file"):
        hdf5.read(file.parent / "none.hdf5")


def test_writing_fails_over_something_and_leaves_it(file):
    with pytest.raises(DataError, match="exists: choose another path"):
        hdf5.write(file, sample(seed=1))
    assert_same(hdf5.read(file), sample())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (sample(config={"randomness": "med"}), "config.randomness is 'low' there, 'med' here"),
        (sample().replace(poses={}), "the new episodes has no 'poses/"),
        (
            sample().replace(action=sample().action[:, :8]),
            r"'action' is float32 \[8\] a row",
        ),
    ],
)
def test_other_episodes_are_not_appended(file, other, message):
    with pytest.raises(DataError, match=message):
        hdf5.append(file, other)
    assert_same(hdf5.read(file), sample())


def test_a_writer_that_fails_leaves_the_file_as_it_was(file, monkeypatch):
    add = hdf5._add

    def fails(*arguments):
        add(*arguments)
        raise KeyboardInterrupt

    before = file.read_bytes()
    monkeypatch.setattr(hdf5, "_add", fails)
    with pytest.raises(KeyboardInterrupt):
        hdf5.append(file, sample())
    assert file.read_bytes() == before
    assert [p.name for p in file.parent.iterdir()] == ["x.hdf5"]


def test_the_normaliser_is_stored_with_its_episodes(file):
    with pytest.raises(DataError, match="there is no normaliser"):
        read_normaliser(file)
    normaliser = fit(sample())
    for _ in range(2):
        write_normaliser(file, normaliser)
    np.testing.assert_array_equal(read_normaliser(file).scale["action"], normaliser.scale["action"])
    assert_same(hdf5.read(file), sample())
    hdf5.append(file, sample())
    with pytest.raises(DataError, match="fitted on 3 episodes, but there are 6"):
        read_normaliser(file)
