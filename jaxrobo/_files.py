"""Files that are either whole or not there."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import filelock


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` that takes its place if the block succeeds.

    Makes the folder. The temporary path has the same suffix, which encoders go by.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.stem}-", dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        yield temporary
        os.replace(temporary, path)


@contextlib.contextmanager
def claimed(path: Path, lock: Path, error: type[ValueError]) -> Iterator[None]:
    """Keeps other processes that claim it too from writing a file or folder.

    Args:
      path: what is written.
      lock: an empty file that stays; its folder is made.
      error: raised on entry, if another process writes there, or nobody may.
    """
    held = filelock.FileLock(lock, timeout=0)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        held.acquire()
    except filelock.Timeout:
        raise error(f"another process is writing {path}") from None
    except OSError as problem:
        raise error(f"{path} can't be written to: {problem}") from problem
    try:
        yield
    finally:
        held.release()


def obstacle(path: Path) -> str | None:
    """Why a file or folder can't be made, in words; None if it can."""
    parent = next(p for p in path.absolute().parents if p.exists())
    if not parent.is_dir():
        return f"{path} can't be made: {parent} isn't a folder"
    if not os.access(parent, os.W_OK):
        return f"{path} can't be made: {parent} may not be written to"
    return None
