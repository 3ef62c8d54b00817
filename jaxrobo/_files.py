"""Files that are either whole or not there."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


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


def obstacle(path: Path) -> str | None:
    """Why a file or folder can't be made, in words; None if it can."""
    parent = next(p for p in path.absolute().parents if p.exists())
    if not parent.is_dir():
        return f"{path} can't be made: {parent} isn't a folder"
    if not os.access(parent, os.W_OK):
        return f"{path} can't be made: {parent} may not be written to"
    return None
