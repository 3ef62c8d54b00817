import lzma
import os
import pickle

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from jaxrobo.data import DataError, pickles, read

PARTS = {"ee_pos": 3, "ee_quat": 4, "ee_pos_vel": 3, "ee_ori_vel": 3, "joint_positions": 7}


def rotations(n, angle, seed):
    """Rotations by so much about random axes."""
    axis = np.random.default_rng(seed).normal(size=(n, 3))
    return Rotation.from_rotvec(angle * axis / np.linalg.norm(axis, axis=1, keepdims=True))


def episode(steps=5, seed=0, flat=False, extra=1, **changes):
    """An episode in the documented form."""
    rng = np.random.default_rng(seed)
    observations = []
    for pose in rotations(steps + extra, 2.0, seed):
        state = {k: rng.normal(size=n).astype(np.float32) for k, n in PARTS.items()}
        state |= {"ee_quat": pose.as_quat().astype(np.float32), "gripper_width": np.float32(0.04)}
        names = ("ee_pos", "ee_quat", "ee_pos_vel", "ee_ori_vel", "gripper_width")
        array = np.concatenate([np.reshape(state[k], -1) for k in names])
        observations.append(
            {
                "color_image1": np.full((4, 6, 3), 7, np.uint8),
                "color_image2": np.full((4, 6, 3), 8, np.uint8),
                "robot_state": array if flat else state,
                "parts_poses": rng.normal(size=21).astype(np.float32),
            }
        )
    delta = rotations(steps, rng.uniform(0.1, 0.6, (steps, 1)), seed + 1).as_quat()
    move = rng.uniform(-0.05, 0.05, (steps, 3))
    actions = list(np.concatenate([move, delta, rng.normal(size=(steps, 1))], axis=1))
    data = {
        "observations": observations,
        "actions": actions,
        "rewards": [0.0] * (steps - 1) + [1.0],
        "skills": [0.0] * steps,
        "success": True,
        "furniture": "one_leg",
        "metadata": {"randomness": "low"},
    }
    return {**data, **changes}


def save(path, data, protocol=pickle.DEFAULT_PROTOCOL):
    opener = lzma.open if path.suffix == ".xz" else open
    with opener(path, "wb") as file:
        pickle.dump(data, file, protocol=protocol)
    return path


def expected(data, mode):
    """The conversion by SciPy, row by row."""
    rows = []
    for o, a in zip(data["observations"], data["actions"], strict=False):
        rotvec = Rotation.from_quat(a[3:7]).as_rotvec()
        angle = np.linalg.norm(rotvec)
        turn = Rotation.from_rotvec(rotvec * min(1, 0.35 / angle))
        move = np.clip(a[:3], -0.025, 0.025)
        if mode == "pos":
            state = o["robot_state"]
            move = state["ee_pos"] + move
            turn = Rotation.from_quat(state["ee_quat"]) * turn
        rows.append(np.concatenate([move, turn.as_matrix()[:2].ravel(), [np.sign(a[7])]]))
    return np.array(rows)


@pytest.mark.parametrize("mode", ["pos", "delta"])
@pytest.mark.parametrize("name", ["0.pkl", "0.pkl.xz"])
@pytest.mark.parametrize("protocol", [2, 5])
def test_actions_are_converted_row_by_row(tmp_path, mode, name, protocol):
    data = episode()
    got = pickles.read(save(tmp_path / name, data, protocol), mode)
    np.testing.assert_allclose(got.action, expected(data, mode), atol=2e-6)
    assert got.action.dtype == np.float32
    assert got.metadata.action == mode


def test_the_rotation_of_each_row_is_clipped_by_its_own_angle():
    quat = rotations(3, np.array([[0.1], [0.35], [3.0]]), 0).as_quat()
    actions = np.concatenate([np.zeros((3, 3)), quat, np.ones((3, 1))], axis=1)
    got = pickles.convert_actions(actions, None, None, "delta")
    x, y = got[:, 3:6], got[:, 6:9]
    matrix = np.stack([x, y, np.cross(x, y)], axis=1)
    angles = np.linalg.norm(Rotation.from_matrix(matrix).as_rotvec(), axis=1)
    np.testing.assert_allclose(angles, [0.1, 0.35, 0.35], atol=1e-5)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("extra", [0, 1])
def test_observations_are_those_before_each_action(tmp_path, flat, extra):
    data = episode(flat=flat, extra=extra)
    got = pickles.read(save(tmp_path / "0.pkl", data))
    assert got.obs.keys() == {"robot_state", "parts_poses"}
    assert got.obs["robot_state"].shape == (5, 16)
    for t, o in enumerate(data["observations"][:5]):
        state = o["robot_state"]
        state = state if flat else np.concatenate([state[k].ravel() for k in [*PARTS][:4]])
        row = got.obs["robot_state"][t]
        np.testing.assert_array_equal(row[:3], state[:3])
        sixd = Rotation.from_quat(state[3:7]).as_matrix()[:2].ravel()
        np.testing.assert_allclose(row[3:9], sixd, atol=1e-6)
        np.testing.assert_array_equal(row[9:15], state[7:13])
        assert row[15] == np.float32(0.04)
        np.testing.assert_array_equal(got.obs["parts_poses"][t], o["parts_poses"])
    np.testing.assert_array_equal(got.reward, [0, 0, 0, 0, 1])
    np.testing.assert_array_equal(got.terminated, [0, 0, 0, 0, 1])


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path):
    (tmp_path / "success").mkdir()
    save(tmp_path / "success/b.pkl", episode(3, success="partial_success"))
    save(tmp_path / "success/a.pkl.xz", episode(4))
    save(tmp_path / "success/c.pkl", episode(2, success=False))
    got = read(tmp_path)
    np.testing.assert_array_equal(got.lengths, [4, 3, 2])
    np.testing.assert_array_equal(got.success, [True, True, False])
    np.testing.assert_array_equal(got.truncated[-2:], [False, True])
    np.testing.assert_array_equal(got.episode, [0, 1, 2])


def test_images_are_read_if_asked_for(tmp_path):
    got = pickles.read(save(tmp_path / "0.pkl", episode()), images=True)
    np.testing.assert_array_equal(got.obs["color_image2"], np.full((5, 4, 6, 3), 8, np.uint8))


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/evil",)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"success": Evil()}, "refers to posix.system, expected numpy arrays and builtins"),
        ({"success": print}, "refers to builtins.print"),
        ([1], "holds a list, expected a dict"),
        ({"actions": []}, "'observations' is missing; found actions"),
        (episode(actions=np.zeros((5, 7))), r"'actions' has shape \[5, 7\], expected \[T, 8\]"),
        (episode(actions=[[1], [1, 2]]), "'actions' isn't an array of numbers"),
        (episode(extra=0, actions=episode(4)["actions"]), "'reward' has 5 rows, expected 4"),
        (episode(actions=episode(3)["actions"]), "6 observations, expected 3 or one more"),
        (episode(rewards=[np.nan] * 5), "'reward' is nan in row 0"),
        (episode(observations=[{}] * 5), "'robot_state' is missing"),
        (episode(observations=[{"robot_state": {}}] * 5), "robot_state: 'ee_pos' is missing"),
        (
            episode(observations=[{"robot_state": np.zeros(13)}] * 5),
            r"'robot_state' has shape \[13\], expected \[14\]",
        ),
        (episode(0, actions=np.zeros((0, 8))), "there are no actions"),
        (episode(observations=5), "'observations' is a int, expected dicts"),
        (episode(observations=[1] * 5), "'observations' is a list, expected dicts"),
        (episode(success=[True, False]), r"'success' is \[True, False\], expected one value"),
        (episode(actions=np.zeros((5, 8))), "the quaternion of 'action' is zero in step 0"),
        (
            episode(observations=[{"robot_state": np.zeros(14)}] * 5),
            "the quaternion of 'ee_quat' is zero in step 0",
        ),
    ],
)
def test_bad_pickles_are_refused(tmp_path, data, message):
    path = save(tmp_path / "0.pkl", data)
    with pytest.raises(DataError, match=message):
        pickles.read(path)
    assert not os.path.exists("/tmp/evil")


@pytest.mark.parametrize("name", ["0.pkl", "0.pkl.xz"])
def test_damaged_pickles_are_refused(tmp_path, name):
    path = save(tmp_path / name, episode())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="is damaged or cut off"):
        pickles.read(path)


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"there are no .pkl or .pkl.xz files"):
        pickles.read(tmp_path)
    with pytest.raises(DataError, match="there is no file"):
        pickles.read(tmp_path / "0.pkl")
    with pytest.raises(ValueError, match="unknown action 'relative'; valid: pos, delta"):
        pickles.read(tmp_path, "relative")
