import asyncio
import json
import shutil

import numcodecs
import numpy as np
import pytest
import zarr as zarr_library

from jaxrobo.data import (
    DataError,
    Metadata,
    fit,
    read,
    read_normaliser,
    take,
    write_normaliser,
    zarr,
)
from jaxrobo.physics.rotations import matrix_to_sixd, quat_to_matrix, rotvec_to_quat
from tests.data.samples import ABOUT, assert_same, sample

LAYOUTS = ("diffusion_policy", "robust_rearrangement")


LAYOUT_ENDS = {"diffusion_policy": "meta/episode_ends", "robust_rearrangement": "episode_ends"}


@pytest.fixture(params=LAYOUTS)
def layout(request):
    return request.param


@pytest.fixture
def store(tmp_path, layout):
    zarr.write(tmp_path / "x.zarr", sample(), layout)
    return tmp_path / "x.zarr"


def folder(store, layout, name="action"):
    """Where an array lies."""
    prefix = {"diffusion_policy": "data/", "robust_rearrangement": ""}[layout]
    return store / (prefix + ("action/pos" if (name, prefix) == ("action", "") else name))


def test_what_is_read_is_what_was_written(store):
    assert_same(zarr.read(store), sample())
    assert_same(read(store), sample())
    assert [p.name for p in store.parent.iterdir()] == ["x.zarr"]


def test_a_store_is_known_by_what_is_in_it(store, tmp_path):
    assert_same(read(store.rename(tmp_path / "demos")), sample())
    zarr_library.create_group(tmp_path / "newer", zarr_format=3)
    with pytest.raises(DataError, match="newer isn't a zarr 2 store"):
        read(tmp_path / "newer")


def test_appended_episodes_follow(tmp_path, layout):
    all_, path = sample((3, 1, 4, 2, 5)), tmp_path / "x.zarr"
    zarr.write(path, take(all_, [0, 1]), layout)
    zarr.append(path, take(all_, [2]))
    zarr.append(path, take(all_, [3, 4]))
    assert_same(zarr.read(path), all_)


def test_only_some_observations(store):
    got = zarr.read(store, obs=["robot_state"])
    assert got.obs.keys() == got.final_obs.keys() == {"robot_state"}
    with pytest.raises(DataError, match="'obs/depth' is missing; found"):
        zarr.read(store, obs=["depth"])


def test_large_rows_make_small_chunks(tmp_path):
    images = np.zeros((8, 240, 320, 3), np.uint8)
    trajectories = sample().replace(obs={"image": images}, final_obs={})
    zarr.write(tmp_path / "x.zarr", trajectories)
    root = zarr_library.open_group(tmp_path / "x.zarr", mode="r")
    assert root["data/image"].chunks == (8, 240, 320, 3)
    assert root["data/action"].chunks == (1000, 10)


class ReplayBuffer:
    """Reads as `ReplayBuffer.copy_from_path` of diffusion_policy does: every array, in one go."""

    def __init__(self, path):
        root = zarr_library.open(str(path), mode="r")
        self.meta = {k: np.array(v) if not v.shape else v[:] for k, v in root["meta"].arrays()}
        self.data = {k: v[:] for k, v in root["data"].arrays()}
        assert not [*root["meta"].groups(), *root["data"].groups()]
        for value in self.data.values():
            assert value.shape[0] == self.meta["episode_ends"][-1]

    def episode(self, i):
        ends = self.meta["episode_ends"]
        rows = slice(ends[i - 1] if i else 0, ends[i])
        return {k: v[rows] for k, v in self.data.items()}


def test_a_reader_of_diffusion_policy_finds_everything(tmp_path):
    zarr.write(tmp_path / "x.zarr", take(sample(), [0, 1]))
    zarr.append(tmp_path / "x.zarr", take(sample(), [2]))
    buffer = ReplayBuffer(tmp_path / "x.zarr")
    assert buffer.meta["episode_ends"].dtype == np.int64
    for i in range(3):
        expected = take(sample(), [i])
        for name in ("robot_state", "parts_poses", "image"):
            np.testing.assert_array_equal(buffer.episode(i)[name], expected.obs[name])
        np.testing.assert_array_equal(buffer.episode(i)["action"], expected.action)


def test_a_reader_of_robust_rearrangement_finds_everything(tmp_path):
    zarr.write(tmp_path / "x.zarr", sample(), "robust_rearrangement")
    root, expected = zarr_library.open(str(tmp_path / "x.zarr"), mode="r"), sample()
    assert root["episode_ends"].dtype == np.uint32
    assert root["success"].dtype == np.uint8
    end = root["episode_ends"][:2][-1]
    assert end == 4
    for name in ("robot_state", "parts_poses"):
        np.testing.assert_array_equal(root[name][:end], expected.obs[name][:4])
    np.testing.assert_array_equal(root["action/pos"][:end], expected.action[:4])
    np.testing.assert_array_equal(root["success"][:], [1, 1, 1])
    assert list(root["task"][:2]) == ["Toy", "Toy"]
    assert root["skill"].shape == root["augment_states"].shape == root["reward"].shape
    attributes = dict(root.attrs)
    assert attributes["rotation_mode"] == "rot_6d"
    counts = [attributes[k] for k in ("n_episodes", "n_timesteps", "mean_episode_length")]
    assert counts == [3, 8, 3]


def published(path, actions, ends=(3, 4, 8)):
    """A store as robust-rearrangement's script makes it, in the format of zarr 2."""
    root = zarr_library.open_group(path, mode="w", zarr_format=2)
    options = {"compressors": numcodecs.Blosc(cname="lz4", clevel=5)}
    arrays = {
        "robot_state": sample().obs["robot_state"],
        "color_image1": np.zeros((8, 2, 2, 3), np.uint8),
        "parts_poses": sample().obs["parts_poses"],
        "reward": np.zeros(8, np.float32),
        "skill": np.zeros(8, np.float32),
        "augment_states": np.zeros(8, np.float32),
        "episode_ends": np.array(ends, np.uint32),
        "success": np.array([1, 1, 1], np.uint8),
    }
    for name, value in {**arrays, **{f"action/{k}": v for k, v in actions.items()}}.items():
        chunks = (1000, *value.shape[1:])
        root.create_array(name, data=value, chunks=chunks, **options)
    task = root.create_array("task", shape=(3,), chunks=(1000,), dtype=str, **options)
    task[:] = np.array(["one_leg"] * 3, object)
    # numcodecs' JSON codec of old stores; zarr 3 can't open it, so nothing may try.
    meta = json.loads((path / "task/.zarray").read_text())
    (path / "furniture").mkdir()
    meta["filters"] = [{"id": "json2"}]
    (path / "furniture/.zarray").write_text(json.dumps(meta))
    root.attrs["time_created"] = "2024-01-01"
    return path


def turns(angle):
    """Actions that turn by so much at each of 8 steps."""
    rotvec = np.zeros((8, 3), np.float32)
    rotvec[:, 2] = angle
    sixd = np.asarray(matrix_to_sixd(quat_to_matrix(rotvec_to_quat(rotvec))))
    return np.concatenate([np.zeros((8, 3), np.float32), sixd, np.ones((8, 1), np.float32)], 1)


def test_a_published_store_is_read_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_DIR_PROCESSED", str(tmp_path))
    path = zarr.processed_path("one_leg", "low")
    assert path == tmp_path / "processed/diffik/sim/one_leg/teleop/low/success.zarr"
    path.parent.mkdir(parents=True)
    got = zarr.read(published(path, {"pos": sample().action, "delta": turns(0.1)}))
    assert got.obs.keys() == {"robot_state", "parts_poses", "color_image1"}
    np.testing.assert_array_equal(got.action, sample().action)
    np.testing.assert_array_equal(got.episode_ends, [3, 4, 8])
    np.testing.assert_array_equal(np.flatnonzero(got.terminated), [2, 3, 7])
    assert not got.truncated.any()
    assert got.success.all()
    assert (got.metadata.action, got.metadata.env) == ("pos", None)
    np.testing.assert_array_equal(zarr.read(path, action="delta").action, turns(0.1))
    with pytest.raises(DataError, match="was written by others"):
        zarr.append(path, sample())


def test_rotations_that_were_scaled_down_are_refused(tmp_path):
    # Episodes of 3, 1 and 4 steps: the norm of the third is 0.175 * sqrt(4).
    actions = {"pos": sample().action, "delta": turns(0.175)}
    path = published(tmp_path / "x.zarr", actions)
    assert zarr.read(path).steps == 8
    with pytest.raises(DataError, match=r"scaled down to 0.35 rad an episode; use 'action/pos'"):
        zarr.read(path, action="delta")


def test_the_other_layout_of_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_DIR_PROCESSED", "/d")
    path = zarr.processed_path("lamp", "med", source="rollout", outcome="failure", suffix="a")
    assert str(path) == "/d/processed/diffik/sim/lamp/rollout/med/failure/a.zarr"
    monkeypatch.delenv("DATA_DIR_PROCESSED")
    with pytest.raises(DataError, match="DATA_DIR_PROCESSED isn't set"):
        zarr.processed_path("lamp", "med")


def edit(path, change):
    """Rewrites an array with other values."""
    array = zarr_library.open_array(path, mode="r", zarr_format=2)
    value = change(array[:])
    shutil.rmtree(path)
    zarr_library.create_array(path, data=value, zarr_format=2, chunks=value.shape)


def nan(x):
    x[5, 2] = np.nan
    return x


def test_a_store_of_diffusion_policy_is_read(tmp_path):
    """With the arrays of its Push-T demonstrations, and the ends uncompressed."""
    root = zarr_library.open_group(tmp_path / "x.zarr", mode="w", zarr_format=2)
    rng = np.random.default_rng(0)
    arrays = {"action": (8, 2), "img": (8, 4, 4, 3), "keypoint": (8, 9, 2), "state": (8, 5)}
    arrays = {k: rng.normal(size=shape).astype(np.float32) for k, shape in arrays.items()}
    for name, value in arrays.items():
        root.create_array(f"data/{name}", data=value, chunks=(3, *value.shape[1:]))
    ends = np.array([3, 4, 8], np.int64)
    root.create_array("meta/episode_ends", data=ends, chunks=(2,), compressors=None)
    got = read(tmp_path / "x.zarr")
    for name in ("img", "keypoint", "state"):
        np.testing.assert_array_equal(got.obs[name], arrays[name])
    np.testing.assert_array_equal(got.action, arrays["action"])
    np.testing.assert_array_equal(got.episode_ends, ends)
    assert got.metadata == Metadata()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("action", nan, "'action' is nan in row 5"),
        ("robot_state", nan, "'obs/robot_state' is nan in row 5"),
        ("action", lambda x: x[:6], r"action.*has shape \[6, 10\], expected 8 rows: it's cut off"),
        ("reward", lambda x: x[:7], r"reward' has shape \[7\], expected 8 rows"),
        ("action", lambda x: x[:, 0], r"'action' has shape \(8,\), expected \[N, A\]"),
    ],
)
def test_a_bad_array_is_refused(store, layout, name, change, message):
    edit(folder(store, layout, name), change)
    with pytest.raises(DataError, match=message):
        zarr.read(store)


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ([3, 2, 8], "episode 1 ends at step 2, expected more than 3, where it starts"),
        ([0, 3, 8], "episode 0 ends at step 0"),
        ([3, 4, 9], "expected 9 rows: it's cut off"),
        ([3.0, 4.0, 8.0], "'episode_ends' is float64"),
        ([0, 0, 0], "there are no episodes"),
    ],
)
def test_ragged_ends_are_refused(store, layout, ends, message):
    prefix = "meta/" if layout == "diffusion_policy" else ""
    edit(store / f"{prefix}episode_ends", lambda x: np.array(ends))
    with pytest.raises(DataError, match=message):
        zarr.read(store)


def test_missing_arrays_are_refused(store, layout):
    shutil.rmtree(folder(store, layout))
    with pytest.raises(DataError, match=r"'action' is missing; found .*obs/image"):
        zarr.read(store)
    prefix = "meta/" if layout == "diffusion_policy" else ""
    shutil.rmtree(store / f"{prefix}episode_ends")
    with pytest.raises(DataError, match="'episode_ends' is missing"):
        zarr.read(store)


@pytest.mark.parametrize("name", ["action", "reward", "image"])
def test_a_store_that_was_copied_half_way_is_refused(store, layout, name):
    chunk = min(p for p in folder(store, layout, name).iterdir() if p.name[0] == "0")
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=f"{name}.*can't be read, it's damaged"):
        zarr.read(store)
    chunk.unlink()
    with pytest.raises(DataError, match=f"{name}.*lacks its chunk {chunk.name}: it's cut off"):
        zarr.read(store)


def test_what_is_no_store_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"isn't a zarr 2 store: expected a folder with .zgroup"):
        zarr.read(tmp_path)
    with pytest.raises(DataError, match="there is nothing at"):
        read(tmp_path / "none.zarr")


def test_writing_fails_over_something_and_leaves_it(store):
    with pytest.raises(DataError, match="exists: choose another path"):
        zarr.write(store, sample(seed=1))
    assert_same(zarr.read(store), sample())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (sample(config={"randomness": "med"}), "config.randomness is 'low' there, 'med' here"),
        (sample().replace(metadata=ABOUT, poses={}), "the new episodes has no 'poses/"),
        (
            sample().replace(action=sample().action[:, :8]),
            r"'action' is float32 \[8\] a row",
        ),
        (sample().replace(episode_ends=np.array([8, 8, 8])), "episode 1 ends at step 8"),
    ],
)
def test_other_episodes_are_not_appended(store, other, message):
    with pytest.raises(DataError, match=message):
        zarr.append(store, other)
    assert_same(zarr.read(store), sample())


def test_names_that_the_layout_needs_are_refused(tmp_path, layout):
    for name in ("reward", "episode_ends", "a.b", "a/b"):
        bad = sample().replace(obs={name: sample().action})
        with pytest.raises(DataError, match=f"can't call an observation '{name}'"):
            zarr.write(tmp_path / "x.zarr", bad, layout)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["poses", "model", "final_obs"])
def test_an_observation_may_be_called_like_a_field(tmp_path, layout, name):
    named = sample().replace(obs={name: sample().action}, final_obs={})
    zarr.write(tmp_path / "x.zarr", named, layout)
    assert_same(zarr.read(tmp_path / "x.zarr"), named)


def test_text_is_left_out(store, layout):
    path = folder(store, layout, "instruction").relative_to(store).as_posix()
    text = np.full(sample().steps, "insert it")
    array = zarr_library.open_group(store, mode="r+").create_array(path, data=text)
    assert array.dtype.kind in "UT"
    assert_same(zarr.read(store), sample())
    with pytest.raises(DataError, match="'obs/instruction' is of type <U9, expected numbers"):
        zarr.read(store, obs=("instruction",))


@pytest.mark.parametrize("content", ["{", "[]"])
def test_damaged_metadata_is_refused(store, content):
    (store / ".zattrs").write_text(content)
    with pytest.raises(DataError, match="its metadata is damaged"):
        zarr.read(store)


def test_ends_that_are_one_number_are_refused(store, layout):
    path = LAYOUT_ENDS[layout]
    root = zarr_library.open_group(store, mode="r+")
    del root[path]
    root.create_array(path, data=np.array(8))
    with pytest.raises(DataError, match=r"'episode_ends' is int64 \[\], expected integers \[E\]"):
        zarr.read(store)


def test_robust_rearrangement_takes_poses_only(tmp_path):
    with pytest.raises(DataError, match="takes actions of mode pos or delta, got joints"):
        zarr.write(tmp_path / "x.zarr", sample(action="joints"), "robust_rearrangement")
    zarr.write(tmp_path / "x.zarr", sample(action="delta"), "robust_rearrangement")
    assert (tmp_path / "x.zarr/action/delta/.zarray").exists()
    assert_same(zarr.read(tmp_path / "x.zarr"), sample(action="delta"))


class Killed(BaseException):
    pass


def test_a_writer_killed_anywhere_leaves_whole_episodes(tmp_path, layout, monkeypatch):
    """Stops an append before its first write, its second, and so on, until one gets through.

    Arrays have several chunks, and what is written at the same time arrives in the reverse order.
    """
    monkeypatch.setattr(zarr, "_CHUNK_ROWS", 2)
    bare = sample((1, 1, 1, 1))
    all_ = bare.replace(obs={"x": bare.action}, final_obs={}, poses={}, model={})
    first, more = take(all_, [0]), take(all_, [1, 2, 3])
    zarr.write(tmp_path / "first.zarr", first, layout)
    put = zarr_library.storage.LocalStore.set
    outcomes = []
    for survives in range(200):
        path, count, waiting = tmp_path / f"{survives}.zarr", 0, []

        async def counted(self, *arguments, limit=survives, waiting=waiting, **named):
            nonlocal count
            waiting.append((arguments, named))
            await asyncio.sleep(0)
            arguments, named = waiting.pop()
            if count == limit:
                raise Killed
            count += 1
            return await put(self, *arguments, **named)

        shutil.copytree(tmp_path / "first.zarr", path)
        with monkeypatch.context() as patch:
            patch.setattr(zarr_library.storage.LocalStore, "set", counted)
            try:
                zarr.append(path, more)
            except Killed:
                pass
            else:
                break
        found = zarr.read(path)
        assert_same(found, take(all_, range(found.episodes)))
        outcomes.append(found.episodes)
        if found.episodes < 4:
            zarr.append(path, take(all_, range(found.episodes, 4)))
            assert_same(zarr.read(path), all_)
    assert outcomes == sorted(outcomes)
    assert outcomes.count(1) > 10
    assert 2 in outcomes  # between chunks of the ends


def test_a_store_appears_whole_or_not_at_all(tmp_path, layout, monkeypatch):
    def fail(*arguments):
        raise Killed

    monkeypatch.setattr(zarr, "_extend", fail)
    with pytest.raises(Killed):
        zarr.write(tmp_path / "x.zarr", sample(), layout)
    assert not list(tmp_path.iterdir())


def test_the_normaliser_is_stored_with_its_episodes(store):
    with pytest.raises(DataError, match="there is no normaliser"):
        read_normaliser(store)
    normaliser = fit(sample())
    write_normaliser(store, normaliser)
    again = read_normaliser(store)
    for key, offset in normaliser.offset.items():
        np.testing.assert_array_equal(again.offset[key], offset)
        np.testing.assert_array_equal(again.scale[key], normaliser.scale[key])
    assert_same(zarr.read(store), sample())
    zarr.append(store, sample())
    with pytest.raises(DataError, match="fitted on 3 episodes, but there are 6"):
        read_normaliser(store)
