"""Any stored format behind one name: which it is follows from the path."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

from jaxrobo import _files
from jaxrobo.data import hdf5, pickles, zarr
from jaxrobo.data._layouts import LAYOUTS, check_mode
from jaxrobo.data.normaliser import Normaliser
from jaxrobo.data.trajectories import DataError, Metadata, Trajectories

FORMATS: dict[str, Callable[[Path, Trajectories], None]] = {
    "zarr": zarr.write,
    "robust_rearrangement": lambda path, t: zarr.write(path, t, "robust_rearrangement"),
    "hdf5": hdf5.write,
}
"""What writes a new file, by the name of the format."""


class _Store(NamedTuple):
    read: Callable
    append: Callable
    write_normaliser: Callable
    read_normaliser: Callable


_ZARR = _Store(zarr.read, zarr.append, zarr.write_normaliser, zarr.read_normaliser)
_HDF5 = _Store(hdf5.read, hdf5.append, hdf5.write_normaliser, hdf5.read_normaliser)


def read(path: Path, obs: Sequence[str] | None = None) -> Trajectories:
    """Reads a zarr store, an HDF5 file, a FurnitureBench pickle or a folder of these.

    Args:
      path: where it is.
      obs: which observations to read; all if None. Of pickles, all but images.

    Raises:
      DataError: if there is nothing, or it isn't whole.
    """
    path = Path(path)
    if path.name.endswith((".pkl", ".pkl.xz")) or (path.is_dir() and not _is_zarr(path)):
        return pickles.read(path)
    return _store(path).read(path, obs=obs)


def claimed(path: Path) -> AbstractContextManager[None]:
    """Keeps other processes that claim it too from adding to a store; makes its folder.

    Beside it stays an empty hidden file.

    Raises:
      DataError: on entry, if another process writes it, or nobody may.
    """
    return _files.claimed(path, path.with_name(f".{path.name}.lock"), DataError)


def check_format(format_: str, metadata: Metadata) -> None:
    """Raises DataError unless a format of `FORMATS` can hold such episodes."""
    if format_ in LAYOUTS:
        check_mode(LAYOUTS[format_], metadata.action)


def format_of(path: Path) -> str:
    """In which format of `FORMATS` a file is. Raises DataError if it's in none."""
    if _store(Path(path)) is _HDF5:
        return "hdf5"
    layout = zarr.layout_of(path)
    return layout if layout in FORMATS else "zarr"


def extend(path: Path, trajectories: Trajectories, format_: str) -> None:
    """Adds episodes to a file, which is made in a format of `FORMATS` if it isn't there.

    What is there keeps its format.

    Raises:
      DataError: if what is there is of another kind or settings.
    """
    path = Path(path)
    if path.exists():
        _store(path).append(path, trajectories)
    else:
        FORMATS[format_](path, trajectories)


def write_normaliser(path: Path, normaliser: Normaliser) -> None:
    """Stores a normaliser with the episodes that it was fitted on, which are all of the file."""
    _store(Path(path)).write_normaliser(path, normaliser)


def read_normaliser(path: Path) -> Normaliser:
    """The normaliser of a file.

    Raises:
      DataError: if there is none, or episodes were added since it was fitted.
    """
    return _store(Path(path)).read_normaliser(path)


def _is_zarr(path: Path) -> bool:
    """Whether a folder is a store by its name, or by what is in it."""
    return path.suffix == ".zarr" or any((path / k).is_file() for k in (".zgroup", "zarr.json"))


def _store(path: Path) -> _Store:
    if not path.exists():
        raise DataError(f"there is nothing at {path}")
    return _ZARR if path.is_dir() else _HDF5
