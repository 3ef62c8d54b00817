"""Episodes in HDF5 files, as robomimic lays them out.

    data                   attributes total (steps), env_args (JSON)
    data/demo_0            attributes num_samples, success, episode
    data/demo_0/obs/<key>, next_obs/<key>        [T, ...]
    data/demo_0/actions, rewards, dones          [T, A], [T], [T]
    mask/success, mask/failure                   names of demonstrations

(Mandlekar et al., "What Matters in Learning from Offline Human Demonstrations for Robot
Manipulation", 2021; ARISE-Initiative/robomimic, "Dataset contents and structure".) Beside these
stand `terminated` and `truncated`, which `dones` doesn't tell apart, and `poses/<key>` and
`model/<key>`; attributes of `data` and the data set `normaliser` hold the `Metadata` and the
normaliser, as JSON.

A file is replaced at once or not at all, when episodes are added, too.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from jaxrobo._files import replacing
from jaxrobo.data import normaliser as normalisers
from jaxrobo.data.checks import check, check_settings, require, select, without_text
from jaxrobo.data.normaliser import Normaliser
from jaxrobo.data.trajectories import (
    BOOLS,
    Columns,
    DataError,
    Metadata,
    Trajectories,
    check_same,
    columns,
    complete,
    from_columns,
    take,
)

_OWN, _NORMALISER = "jaxrobo", "normaliser"

_GYM = 2
"""robomimic's `EnvType.GYM_TYPE`, the nearest to what our environments are."""

_NAMES = {"action": "actions", "reward": "rewards"}
_PER_STEP = ("terminated", "truncated")


def write(path: Path, trajectories: Trajectories) -> None:
    """Writes a new file.

    Args:
      path: where; nothing may be there.
      trajectories: what to write.

    Raises:
      DataError: if something is there, or the episodes aren't whole.
    """
    path = Path(path)
    check(trajectories, "the new episodes")
    if path.exists():
        raise DataError(f"{path} exists: choose another path, or append to it")
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = 0
        data.attrs["env_args"] = json.dumps(_env_args(trajectories.metadata))
        data.attrs[_OWN] = json.dumps(trajectories.metadata.to_dict())
        _add(file, trajectories)


def append(path: Path, trajectories: Trajectories) -> None:
    """Adds episodes to a file that `write` made.

    Raises:
      DataError: if there is no such file, or its arrays or settings are others.
    """
    path = Path(path)
    check(trajectories, "the new episodes")
    with _open(path) as file:
        if _OWN not in file["data"].attrs:
            raise DataError(f"{path} was written by others, expected a file of jaxrobo")
        check_settings(_metadata(file), trajectories.metadata)
        there = _demo(file["data/demo_0"], path, None)
        steps, episodes = columns(trajectories)
        check_same(there, steps | episodes, "the new episodes", str(path))
    with replacing(path) as temporary:
        shutil.copyfile(path, temporary)
        with h5py.File(temporary, "r+") as file:
            _add(file, trajectories)


def read(path: Path, obs: Sequence[str] | None = None, mask: str | None = None) -> Trajectories:
    """Reads a file.

    Args:
      path: where it is.
      obs: which observations to read; all but text if None, images too.
      mask: reads the demonstrations that this mask names; all if None.

    Raises:
      DataError: if there is no such file or mask, or the file isn't whole.
    """
    path = Path(path)
    with _open(path) as file:
        names = _demos(file, path, mask)
        demos = [_demo(file["data"][name], path, obs) for name in names]
        own = _OWN in file["data"].attrs
        metadata = _metadata(file) if own else Metadata()
        lengths = [len(demo["action"]) for demo in demos]
        if own and mask is None and sum(lengths) != file["data"].attrs["total"]:
            total = file["data"].attrs["total"]
            raise DataError(f"{path}: there are {sum(lengths)} steps, expected {total}")
    for name, demo in zip(names[1:], demos[1:], strict=True):
        check_same(demos[0], demo, name, f"{names[0]} of {path}")
    values = {k: np.concatenate([demo[k] for demo in demos]) for k in demos[0]}
    ends = np.cumsum(lengths)
    complete(values, ends)
    return check(from_columns(values, ends, metadata), str(path))


def write_normaliser(path: Path, normaliser: Normaliser) -> None:
    """Stores a normaliser with the episodes that it was fitted on, which are all of the file."""
    path = Path(path)
    with _open(path) as file:
        fitted = normalisers.to_dict(normaliser, len(file["data"]))
    with replacing(path) as temporary:
        shutil.copyfile(path, temporary)
        with h5py.File(temporary, "r+") as file:
            if _NORMALISER in file:
                del file[_NORMALISER]
            file[_NORMALISER] = json.dumps(fitted)


def read_normaliser(path: Path) -> Normaliser:
    """The normaliser of a file.

    Raises:
      DataError: if there is none, or episodes were added since it was fitted.
    """
    with _open(Path(path)) as file:
        found = json.loads(file[_NORMALISER][()]) if _NORMALISER in file else None
        return normalisers.from_dict(found, len(file["data"]), str(path))


def _add(file: h5py.File, trajectories: Trajectories) -> None:
    data = file["data"]
    first = len(data)
    for e in range(trajectories.episodes):
        _write_demo(data.create_group(f"demo_{first + e}"), take(trajectories, [e]))
    data.attrs["total"] += trajectories.steps
    success = {name: bool(demo.attrs["success"]) for name, demo in data.items()}
    for mask, wanted in (("success", True), ("failure", False)):
        if f"mask/{mask}" in file:
            del file[f"mask/{mask}"]
        names = sorted((n for n, s in success.items() if s == wanted), key=_number)
        if names:
            file[f"mask/{mask}"] = np.array(names, dtype="S")


def _write_demo(demo: h5py.Group, episode: Trajectories) -> None:
    """Writes one episode."""
    steps, _ = columns(episode)
    for column, value in steps.items():
        demo[_NAMES.get(column, column)] = value
    demo["dones"] = (episode.terminated | episode.truncated).astype(np.int64)
    for key, last in episode.final_obs.items():
        demo[f"next_obs/{key}"] = np.concatenate([episode.obs[key][1:], last])
    for key, value in episode.model.items():
        demo[f"model/{key}"] = value[0]
    demo.attrs["num_samples"] = episode.steps
    demo.attrs["success"] = bool(episode.success[0])
    demo.attrs["episode"] = int(episode.episode[0])


def _demo(demo: h5py.Group, path: Path, obs: Sequence[str] | None) -> Columns:
    """Reads one episode: its columns, those of the episode with a single row."""
    where = f"{path}, {demo.name.rpartition('/')[2]}"
    require(demo, ("actions", "obs"), where)
    found = {f"obs/{k}": v for k, v in _members(demo, "obs", where)}
    found |= {f"final_obs/{k}": v for k, v in _members(demo, "next_obs", where)}
    found |= {f"poses/{k}": v for k, v in _members(demo, "poses", where)}
    found |= {"action": demo["actions"]}
    found |= {"reward": demo["rewards"]} if "rewards" in demo else {}
    found |= {k: demo[k] for k in _PER_STEP if k in demo}
    found = select(found, obs, where)
    for column, array in found.items():
        if not isinstance(array, h5py.Dataset):
            raise DataError(f"{where}: {column!r} is a group, expected an array")
    expected = int(demo.attrs.get("num_samples", len(demo["actions"])))
    values = {}
    for column, array in without_text(found, obs, lambda a: a.dtype.kind).items():
        if not array.ndim or len(array) != expected:
            raise DataError(
                f"{where}: {array.name.rpartition('/')[2]!r} has shape {list(array.shape)}, "
                f"expected {expected} rows"
            )
        value = array[-1:] if column.startswith("final_obs/") else array[:]
        values[column] = value.astype(bool) if column in BOOLS else value
    values |= {f"model/{k}": v[()][None] for k, v in _members(demo, "model", where)}
    values |= {k: np.array([demo.attrs[k]]) for k in ("success", "episode") if k in demo.attrs}
    return values


def _members(demo: h5py.Group, name: str, where: str) -> Iterable[tuple[str, Any]]:
    """What a group in a demonstration holds; nothing if it isn't there."""
    group = demo.get(name, {})
    if isinstance(group, h5py.Dataset):
        raise DataError(f"{where}: {name!r} is an array, expected a group of arrays")
    return group.items()


def _demos(file: h5py.File, path: Path, mask: str | None) -> list[str]:
    """Names of demonstrations, in the order of their numbers."""
    if mask is None:
        names = list(file["data"])
    elif mask in file.get("mask", {}):
        names = [name.decode() for name in file["mask"][mask][:]]
    else:
        raise DataError(
            f"{path}: there is no mask {mask!r}; found {', '.join(file.get('mask', {}))}"
        )
    if not names:
        raise DataError(f"{path}: there are no demonstrations")
    require(file["data"], names, str(path))
    for name in names:
        if not isinstance(file["data"][name], h5py.Group):
            raise DataError(f"{path}: {name!r} is an array, expected the group of a demonstration")
    return sorted(names, key=_number)


def _number(name: str) -> int:
    number = name.removeprefix("demo_")
    if not number.isdecimal():
        raise DataError(f"a demonstration is called {name!r}, expected demo_<number>")
    return int(number)


def _env_args(metadata: Metadata) -> dict[str, Any]:
    kwargs = dict(metadata.config or {})
    return {"env_name": metadata.env or "", "type": _GYM, "env_kwargs": kwargs}


def _metadata(file: h5py.File) -> Metadata:
    try:
        return Metadata.from_dict(json.loads(file["data"].attrs[_OWN]))
    except (ValueError, TypeError) as error:
        raise DataError(f"{file.filename}: its settings are damaged: {error}") from error


@contextmanager
def _open(path: Path) -> Iterator[h5py.File]:
    """Opens a file that is there and has `data`."""
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"{path} isn't an HDF5 file, or was cut off: {error}") from error
    with file:
        require(file, ("data",), str(path))
        if not isinstance(file["data"], h5py.Group):
            raise DataError(f"{path}: 'data' is an array, expected a group of demonstrations")
        yield file
