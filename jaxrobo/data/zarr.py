"""Episodes in zarr stores, as diffusion_policy and robust-rearrangement lay them out.

    diffusion_policy           robust_rearrangement
    data/<observation>         <observation>            [N, ...]
    data/action                action/pos, action/delta [N, A]
    data/reward                reward                   [N]
    meta/episode_ends          episode_ends             [E]
    meta/success               success                  [E]

(Chi et al., "Diffusion Policy", 2023, `common/replay_buffer.py` of real-stanford/diffusion_policy;
Ankile et al., "From Imitation to Refinement", 2024, `data_processing/process_pickles.py` of
ankile/robust-rearrangement.) Further arrays stand beside these, a field and a key joined by a dot:
`poses.qpos`, `final_obs.<observation>`. Attributes of the store hold the `Metadata` and the
normaliser. The format is zarr 2, which releases 2 and 3 of the library open.

A store appears whole or not at all. Appended episodes count once `episode_ends`, written last, says
so: a writer that is killed leaves the earlier episodes as they were.
"""

import itertools
import math
import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numcodecs
import numpy as np
import zarr

from jaxrobo._files import replacing
from jaxrobo.data import normaliser as normalisers
from jaxrobo.data._layouts import ENDS, LAYOUTS, Layout, columns_in, to_store
from jaxrobo.data.checks import check, check_ends, check_settings, require, select, without_text
from jaxrobo.data.normaliser import Normaliser
from jaxrobo.data.trajectories import (
    BOOLS,
    Columns,
    DataError,
    Metadata,
    Trajectories,
    check_same,
    complete,
    from_columns,
)
from jaxrobo.physics.rotations import matrix_to_quat, quat_to_rotvec, sixd_to_matrix

_OWN, _NORMALISER = "jaxrobo", "jaxrobo_normaliser"
"""Attributes: the metadata, and the normaliser."""

_COMPRESSOR = numcodecs.Blosc(cname="lz4", clevel=5)
_CHUNK_ROWS, _CHUNK_BYTES = 1000, 2_000_000

_CLIP = 0.35
"""Norm of an episode's rotation vectors, rad, to which robust-rearrangement scaled them down."""


def write(
    path: Path,
    trajectories: Trajectories,
    layout: Literal["diffusion_policy", "robust_rearrangement"] = "diffusion_policy",
) -> None:
    """Writes a new store.

    Args:
      path: where; nothing may be there.
      trajectories: what to write.
      layout: whose. robust-rearrangement's takes actions that are poses: "pos" or "delta".

    Raises:
      DataError: if something is there, the episodes aren't whole, or the layout can't hold them.
    """
    path = Path(path)
    if path.exists():
        raise DataError(f"{path} exists: choose another path, or append to it")
    steps, episodes, ends = to_store(LAYOUTS[layout], check(trajectories, "the new episodes"))
    with replacing(path) as temporary:
        root = zarr.create_group(temporary, zarr_format=2)
        for name, value in {**steps, **episodes, **ends}.items():
            _create(root, name, value)
        _extend(root, steps, episodes, ends, 0, 0)
        root.attrs[_OWN] = trajectories.metadata.to_dict()
        if LAYOUTS[layout].modes:
            root.attrs.update(time_created=_now(), rotation_mode="rot_6d", **_counts(ends))


def append(path: Path, trajectories: Trajectories) -> None:
    """Adds episodes to a store that `write` made.

    Raises:
      DataError: if there is no such store, or its arrays or settings are others.
    """
    path = Path(path)
    root, layout = _open(path, "r+")
    if _OWN not in root.attrs:
        raise DataError(f"{path} was written by others, expected a store of jaxrobo")
    about = _metadata(root)
    check_settings(about, trajectories.metadata)
    steps, episodes, ends = to_store(layout, check(trajectories, "the new episodes"))
    arrays = {**steps, **episodes}
    there = {k: root[v] for k, v in columns_in(layout, _paths(path), about.action).items()}
    here = {k: arrays[v] for k, v in columns_in(layout, arrays, about.action).items()}
    check_same(there, here, "the new episodes", str(path))
    old = _committed(root, layout)
    rows = int(old[-1]) if len(old) else 0
    ends[layout.ends] += rows
    _extend(root, steps, episodes, ends, rows, len(old))
    if layout.modes:
        root.attrs.update(_counts({layout.ends: np.append(old, ends[layout.ends])}))


def read(
    path: Path, obs: Sequence[str] | None = None, action: Literal["pos", "delta"] = "pos"
) -> Trajectories:
    """Reads a store of either layout, without what a writer that was killed left unfinished.

    Of the stores that robust-rearrangement published, take `action="pos"`. When they were made, all
    rotations of an episode were scaled down together, until the norm over the episode was 0.35 rad,
    which leaves next to no rotation in "delta". "pos" starts anew from the measured pose at every
    step, so it still follows the path.

    Args:
      path: where it is.
      obs: which observations to read; all but text if None, images too.
      action: which actions to read from a store of others that has both.

    Raises:
      DataError: if there is no such store, it isn't whole, or `action` is "delta" and scaled.
    """
    path = Path(path)
    root, layout = _open(path, "r")
    own = _OWN in root.attrs
    metadata = _metadata(root) if own else Metadata(action=action if layout.modes else None)
    names = columns_in(layout, _paths(path), metadata.action)
    require(names, ("action",), str(path))
    names = select(names, obs, str(path))
    names = without_text(names, obs, lambda name: root[name].dtype.kind)
    ends = _committed(root, layout)
    check_ends(ends, ends[-1] if len(ends) else 0, str(path))
    found: Columns = {}
    for column, name in names.items():
        per_episode = column.partition("/")[0] in ("success", "episode", "final_obs", "model")
        rows = len(ends) if per_episode else int(ends[-1])
        # Others may leave out chunks of zeros. Neither actions nor a state are zero for long.
        motion = column == "action" or column.startswith("obs/")
        whole = own or (motion and root[name].dtype.kind == "f")
        value = _load(path, root[name], name, rows, whole)
        found[column] = value.astype(bool) if column in BOOLS else value
    if not own and metadata.action == "delta":
        _refuse_scaled(found["action"], ends, path)
    complete(found, ends)
    return check(from_columns(found, ends, metadata), str(path))


def write_normaliser(path: Path, normaliser: Normaliser) -> None:
    """Stores a normaliser with the episodes that it was fitted on, which are all of the store."""
    root, layout = _open(Path(path), "r+")
    episodes = len(_committed(root, layout))
    root.attrs[_NORMALISER] = normalisers.to_dict(normaliser, episodes)


def read_normaliser(path: Path) -> Normaliser:
    """The normaliser of a store.

    Raises:
      DataError: if there is none, or episodes were added since it was fitted.
    """
    root, layout = _open(Path(path), "r")
    found = root.attrs.get(_NORMALISER)
    return normalisers.from_dict(found, len(_committed(root, layout)), str(path))


def layout_of(path: Path) -> str:
    """Which layout of `write` a store has. Raises DataError if there is no such store."""
    _, layout = _open(Path(path), "r")
    return next(name for name, known in LAYOUTS.items() if known == layout)


def processed_path(
    task: str,
    randomness: str,
    *,
    controller: str = "diffik",
    domain: str = "sim",
    source: str = "teleop",
    outcome: str = "success",
    suffix: str | None = None,
) -> Path:
    """Where robust-rearrangement keeps a processed store, in the folder DATA_DIR_PROCESSED.

        read(processed_path("one_leg", "low"), obs=("robot_state", "parts_poses"))

    Raises:
      DataError: if the environment variable isn't set.
    """
    if not (root := os.environ.get("DATA_DIR_PROCESSED")):
        raise DataError("the environment variable DATA_DIR_PROCESSED isn't set, expected a folder")
    folder = Path(root, "processed", controller, domain, task, source, randomness)
    return folder / (f"{outcome}.zarr" if suffix is None else f"{outcome}/{suffix}.zarr")


def _open(path: Path, mode: Literal["r", "r+"]) -> tuple[zarr.Group, Layout]:
    if not (path / ".zgroup").is_file():
        raise DataError(f"{path} isn't a zarr 2 store: expected a folder with .zgroup")
    for layout in LAYOUTS.values():
        if (path / layout.ends / ".zarray").is_file():
            try:
                return zarr.open_group(path, mode=mode, zarr_format=2), layout
            except (ValueError, TypeError) as error:
                raise DataError(f"{path}: its metadata is damaged: {error}") from error
    found = ", ".join(_paths(path)) or "nothing"
    raise DataError(f"{path}: {ENDS!r} is missing, in the store and in meta; found {found}")


def _metadata(root: zarr.Group) -> Metadata:
    return Metadata.from_dict(root.attrs[_OWN])


def _paths(path: Path) -> list[str]:
    """All arrays of a store. They aren't opened: a type that we don't read may not be known."""
    found = itertools.chain(path.glob("*/.zarray"), path.glob("*/*/.zarray"))
    return sorted(p.parent.relative_to(path).as_posix() for p in found)


def _committed(root: zarr.Group, layout: Layout) -> np.ndarray:
    """The ends of whole episodes; zeros at the end are of a writer that was killed."""
    ends = root[layout.ends][...]
    if ends.ndim != 1:
        raise DataError(f"{ENDS!r} is {ends.dtype} {list(ends.shape)}, expected integers [E]")
    return np.trim_zeros(ends, "b").astype(np.int64) if ends.dtype.kind in "iu" else ends


def _create(root: zarr.Group, name: str, value: np.ndarray) -> None:
    """Makes an empty array."""
    row = value.shape[1:]
    size = max(1, value.itemsize * math.prod(row))
    rows = min(_CHUNK_ROWS, max(1, _CHUNK_BYTES // size))
    root.create_array(
        name,
        shape=(0, *row),
        chunks=(rows, *(max(1, n) for n in row)),
        dtype=str if value.dtype == object else value.dtype,
        compressors=_COMPRESSOR,
        config={"write_empty_chunks": True},  # a missing chunk means that the store was cut off
    )


def _extend(
    root: zarr.Group, steps: Columns, episodes: Columns, ends: Columns, rows: int, count: int
) -> None:
    """Writes arrays from `rows` and `count` on, the episode ends last of all."""
    for first, group in ((rows, steps), (count, episodes), (count, ends)):
        for name, value in group.items():
            array = root[name].with_config({"write_empty_chunks": True})
            last, size = first + len(value), array.chunks[0]
            array.resize((last, *array.shape[1:]))
            # One chunk after the other: ends that lack one before the last can't be trimmed.
            for begin in range(first - first % size, last, size):
                low, high = max(begin, first), min(begin + size, last)
                array[low:high] = value[low - first : high - first]


def _counts(ends: Columns) -> dict[str, Any]:
    """What robust-rearrangement says about a store that is finished."""
    (values,) = ends.values()
    steps, episodes = int(values[-1]), len(values)
    mean = round(steps / episodes)
    about = {"n_episodes": episodes, "n_timesteps": steps, "mean_episode_length": mean}
    return about | {"time_finished": _now()}


def _load(path: Path, array: Any, name: str, rows: int, whole: bool) -> np.ndarray:
    """The first `rows` rows. With `whole`, no chunk may be missing: it would read as zeros."""
    if not array.ndim or array.shape[0] < rows:
        raise DataError(
            f"{path}: {name!r} has shape {list(array.shape)}, expected {rows} rows: it's cut off"
        )
    needed = (rows, *array.shape[1:])
    grid = [range(math.ceil(n / c)) for n, c in zip(needed, array.chunks, strict=True)]
    for chunk in itertools.product(*grid) if whole else ():
        file = path / name / array.metadata.encode_chunk_key(chunk)
        if not file.is_file():
            raise DataError(f"{path}: {name!r} lacks its chunk {file.name}: it's cut off")
    try:
        return array[:rows]
    except (RuntimeError, ValueError, OSError) as error:
        raise DataError(f"{path}: {name!r} can't be read, it's damaged: {error}") from error


def _refuse_scaled(action: np.ndarray, ends: np.ndarray, path: Path) -> None:
    rotvec = quat_to_rotvec(matrix_to_quat(sixd_to_matrix(action[:, 3:9])))
    for turns in np.split(np.asarray(rotvec), ends[:-1]):
        if abs(np.linalg.norm(turns) - _CLIP) < 1e-3:
            raise DataError(
                f"{path}: the rotations of 'action/delta' were scaled down to {_CLIP} rad an "
                "episode; use 'action/pos'"
            )


def _now() -> str:
    return datetime.now().astimezone().isoformat()
