"""Reads FurnitureBench's pickles, `.pkl` and `.pkl.xz`: one episode a file.

A file is a dict with `observations` (a list of T, or T + 1 in simulation, each with `robot_state`
and, in simulation, `parts_poses`), `actions` (T changes of the pose: translation, quaternion xyzw,
gripper), `rewards` and `success` (Heo et al., "FurnitureBench", RSS 2023;
clvrai/furniture-bench). It becomes what robust-rearrangement trains on, with 10 numbers an action.
"""

import lzma
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from jaxrobo.data.checks import check, require
from jaxrobo.data.trajectories import (
    Columns,
    DataError,
    Metadata,
    Trajectories,
    complete,
    concatenate,
    from_columns,
)
from jaxrobo.physics.rotations import (
    matrix_to_sixd,
    quat_multiply,
    quat_normalise,
    quat_to_matrix,
    quat_to_rotvec,
    rotvec_to_quat,
    xyzw_to_wxyz,
)

MAX_TRANSLATION = 0.025
"""Largest change of a coordinate in a step, m (`process_pickles.py` of robust-rearrangement)."""

MAX_ROTATION = 0.35
"""Largest rotation in a step, rad (ibid.)."""

_ROBOT_STATE = {"ee_pos": 3, "ee_quat": 4, "ee_pos_vel": 3, "ee_ori_vel": 3, "gripper_width": 1}
"""Entries of the robot's state and their widths, in the order of `ROBOT_STATES` of FurnitureBench;
the dict of a file has more."""

_IMAGES = ("color_image1", "color_image2")


def read(
    paths: Path | Sequence[Path],
    action: Literal["pos", "delta"] = "pos",
    images: bool = False,
) -> Trajectories:
    """Reads episodes.

    The observations are `robot_state` [N, 16]: position of the gripper, m, rotation as the first
    two rows of its matrix, linear and angular velocity, width of the gripper, m; and, where the
    files have them, `parts_poses` [N, 7 P], as they are. For the actions see `convert_actions`.

    Args:
      paths: files, or a folder with files in it or in folders within.
      action: "pos" or "delta".
      images: whether to read the two cameras as well, uint8.

    Raises:
      DataError: if there is no such file, or one is damaged, incomplete, or holds anything but
        numbers, text and containers.
      ValueError: on an unknown `action`.
    """
    if action not in ("pos", "delta"):
        raise ValueError(f"unknown action {action!r}; valid: pos, delta")
    parts = [_episode(file, images) for file in _files(paths)]
    raw = concatenate(parts)  # converted together, for JAX compiles anew for every length
    state = raw.obs["robot_state"]
    return raw.replace(
        obs={**raw.obs, "robot_state": _with_sixd(state)},
        action=convert_actions(raw.action, state[:, :3], state[:, 3:7], action),
        episode=np.arange(raw.episodes),
        metadata=Metadata(action=action),
    )


def convert_actions(
    actions: np.ndarray, ee_pos: np.ndarray, ee_quat: np.ndarray, mode: str
) -> np.ndarray:
    """Actions of 8 numbers as the 10 that `jaxrobo.control.pose_target` and the gripper take.

    The translation is clipped to +-2.5 cm a coordinate, the rotation to 0.35 rad, the gripper to
    its sign. "pos" is the measured pose, changed by the clipped action: p + dp, R dR. The
    rotation of each row is clipped by its own angle; robust-rearrangement takes one norm of the
    whole episode instead, which leaves next to nothing of any rotation.

    Args:
      actions: translation, m, quaternion xyzw, gripper. [T, 8]
      ee_pos: measured position of the gripper, m. [T, 3]
      ee_quat: its orientation, xyzw. [T, 4]
      mode: "pos" or "delta".

    Returns:
      Position or translation, m, rotation as the first two rows of its matrix, gripper. [T, 10]
    """
    pos = jnp.clip(actions[:, :3], -MAX_TRANSLATION, MAX_TRANSLATION)
    rotvec = quat_to_rotvec(xyzw_to_wxyz(actions[:, 3:7]))
    angle = jnp.linalg.norm(rotvec, axis=-1, keepdims=True)
    quat = rotvec_to_quat(rotvec * jnp.minimum(1.0, MAX_ROTATION / jnp.maximum(angle, 1e-6)))
    if mode == "pos":
        pos = ee_pos + pos
        quat = quat_multiply(quat_normalise(xyzw_to_wxyz(ee_quat)), quat)
    sixd = matrix_to_sixd(quat_to_matrix(quat))
    return np.asarray(jnp.concatenate([pos, sixd, jnp.sign(actions[:, 7:])], axis=-1), np.float32)


def _files(paths: Path | Sequence[Path]) -> list[Path]:
    if isinstance(paths, (str, Path)):
        folder = Path(paths)
        found = [*folder.rglob("*.pkl"), *folder.rglob("*.pkl.xz")]
        paths = sorted(found) if folder.is_dir() else [folder]
        if not paths:
            raise DataError(f"there are no .pkl or .pkl.xz files in {folder}")
    if not paths:
        raise DataError("there are no files in the list")
    return list(map(Path, paths))


def _episode(path: Path, images: bool) -> Trajectories:
    """An episode with the robot's state and the actions as they are in the file."""
    data = _load(path)
    require(data, ("observations", "actions", "success"), str(path))
    actions = _array(data["actions"], "actions", path)
    if actions.ndim != 2 or actions.shape[1] != 8:
        raise DataError(
            f"{path}: 'actions' has shape {list(actions.shape)}, expected [T, 8]: translation, "
            "quaternion xyzw, gripper"
        )
    steps, seen = len(actions), data["observations"]
    if not steps:
        raise DataError(f"{path}: there are no actions")
    if not isinstance(seen, (list, tuple, np.ndarray)) or not all(
        isinstance(o, Mapping) for o in seen
    ):
        raise DataError(f"{path}: 'observations' is a {type(seen).__name__}, expected dicts")
    if len(seen) not in (steps, steps + 1):
        raise DataError(f"{path}: {len(seen)} observations, expected {steps} or one more")
    seen = seen[:steps]  # simulation keeps what follows the last action, too
    states = np.stack([_robot_state(o, path) for o in seen])
    _check_rotations(actions[:, 3:7], "action", path)
    _check_rotations(states[:, 3:7], "ee_quat", path)
    values: Columns = {"obs/robot_state": states}
    for name in (*(("parts_poses",) if "parts_poses" in seen[0] else ()), *(_IMAGES * images)):
        for o in seen:
            require(o, (name,), str(path))
        values[f"obs/{name}"] = _array([o[name] for o in seen], name, path)
    values["action"] = actions
    if "rewards" in data:
        values["reward"] = _array(data["rewards"], "rewards", path)
    if np.size(data["success"]) != 1:
        raise DataError(f"{path}: 'success' is {data['success']!r}, expected one value")
    values["success"] = np.array([bool(data["success"])])  # "partial_success" counts, as upstream
    ends = np.array([steps])
    complete(values, ends)
    return check(from_columns(values, ends, Metadata()), str(path))


def _check_rotations(quats: np.ndarray, name: str, path: Path) -> None:
    """Raises DataError if one of some quaternions `[T, 4]` is zero."""
    zero = np.linalg.norm(quats, axis=-1) < 1e-6
    if zero.any():
        raise DataError(f"{path}: the quaternion of {name!r} is zero in step {np.argmax(zero)}")


def _array(value: Any, name: str, path: Path) -> np.ndarray:
    """Numbers in single precision, images as they are."""
    try:
        array = np.asarray(value)
        return array if array.dtype == np.uint8 else array.astype(np.float32)
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: {name!r} isn't an array of numbers: {error}") from error


def _robot_state(observation: Mapping[str, Any], path: Path) -> np.ndarray:
    """The 14 numbers of the robot's state, which is a dict or an array."""
    require(observation, ("robot_state",), str(path))
    state = observation["robot_state"]
    if isinstance(state, Mapping):
        require(state, tuple(_ROBOT_STATE), f"{path}, robot_state")
        state = np.concatenate([np.reshape(state[k], -1) for k in _ROBOT_STATE])
    state, width = _array(state, "robot_state", path), sum(_ROBOT_STATE.values())
    if state.shape != (width,):
        raise DataError(f"{path}: 'robot_state' has shape {list(state.shape)}, expected [{width}]")
    return state


def _with_sixd(state: np.ndarray) -> np.ndarray:
    """The robot's state with 6 numbers for the rotation. [T, 14] -> [T, 16]."""
    quat = quat_normalise(xyzw_to_wxyz(state[:, 3:7]))
    sixd = np.asarray(matrix_to_sixd(quat_to_matrix(quat)))
    return np.concatenate([state[:, :3], sixd, state[:, 7:]], axis=1).astype(np.float32)


_ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
    ("_codecs", "encode"),  # how protocol 2 writes bytes
    ("collections", "OrderedDict"),
    ("builtins", "set"),
    ("builtins", "frozenset"),
    ("builtins", "bytearray"),
    ("builtins", "complex"),
    ("builtins", "slice"),
    ("builtins", "range"),
}


class _Unpickler(pickle.Unpickler):
    """Loads numbers, text and containers only: a pickle may otherwise run any code."""

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core", "numpy._core")
        if (module, name) not in _ALLOWED:
            raise DataError(f"it refers to {module}.{name}, expected numpy arrays and builtins")
        return super().find_class(module, name)


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    opener = lzma.open if path.suffix == ".xz" else open
    try:
        with opener(path, "rb") as file:
            data = _Unpickler(file).load()
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    # Damaged pickles fail in many ways: the opcodes are garbage.
    except Exception as error:
        raise DataError(f"{path} is damaged or cut off: {error}") from error
    if not isinstance(data, dict):
        raise DataError(f"{path} holds a {type(data).__name__}, expected a dict")
    return data
