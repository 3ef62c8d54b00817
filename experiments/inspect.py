"""Prints what is in a file of demonstrations, and films episodes.

    python -m experiments.inspect demos/reacher.zarr
    python -m experiments.inspect demos/reacher.zarr --video reacher.mp4

A film needs a file that was collected with `--states`.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import rich
import tyro
from rich.markup import escape
from rich.table import Table

import envs
from experiments import cli
from jaxrobo import data

_FILMED = 4
"""Episodes in a film, unless it's said which."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of an inspection.

    Attributes:
      path: a zarr store, an HDF5 file, a FurnitureBench pickle or a folder of these.
      video: films episodes into this `.mp4`.
      episodes: which, by their place in the file; the first four if None.
    """

    path: Annotated[Path, tyro.conf.Positional]
    video: Path | None = None
    episodes: tuple[int, ...] | None = None


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    argv = sys.argv[1:] if argv is None else argv
    o = cli.parse(Options, argv, "python -m experiments.inspect", __doc__)
    with cli.failing(data.DataError):
        demos = data.read(o.path)
    show(o.path, demos)
    if o.video is not None:
        from jaxrobo.rendering import RendererUnavailable

        with cli.failing(ValueError, OSError, RendererUnavailable):
            film(demos, o.video, o.episodes)
        print(o.video)


def show(path: Path, demos: data.Trajectories) -> None:
    """Prints counts, settings, and the range of every array."""
    lengths, ends = demos.lengths, demos.episode_ends
    returns = np.add.reduceat(np.asarray(demos.reward, np.float64), ends - lengths)
    about = Table("", "", title=escape(str(path)), show_header=False)
    about.add_row("episodes", f"{demos.episodes}")
    about.add_row("steps", f"{demos.steps:,}, {_range(lengths)} an episode")
    about.add_row("successful", f"{demos.success.sum()}")
    if demos.metadata.split is not None:
        about.add_row("tried", f"{demos.episode[-1] + 1}")
    about.add_row("return", _range(returns))
    for name, value in demos.metadata.to_dict().items():
        if value is not None:
            about.add_row(name, escape(value if isinstance(value, str) else json.dumps(value)))
    rich.print(about)
    arrays = Table("", "shape", "type", "range")
    for group, values in (("obs", demos.obs), ("poses", demos.poses), ("model", demos.model)):
        for name, value in values.items():
            arrays.add_row(escape(f"{group}/{name}"), str(value.shape[1:]), *_kind(value))
    arrays.add_row("action", str(demos.action.shape[1:]), *_kind(demos.action))
    rich.print(arrays)


def film(demos: data.Trajectories, path: Path, episodes: Sequence[int] | None) -> None:
    """Films some of the episodes side by side, in real time.

    Raises:
      DataError: if the episodes aren't there, or don't have what a film needs.
      OSError: if the video can't be written.
      RendererUnavailable: if this machine can't draw.
      ValueError: if their task is unknown.
    """
    from jaxrobo import rendering
    from jaxrobo.data.films import to_film

    about = demos.metadata
    if episodes is None:
        episodes = range(min(_FILMED, demos.episodes))
    for e in episodes:
        if not 0 <= e < demos.episodes:
            raise data.DataError(f"there is no episode {e}; valid: 0 to {demos.episodes - 1}")
    if not 1 <= len(episodes) <= rendering.MAX_TILES:
        raise data.DataError(
            f"1 to {rendering.MAX_TILES} episodes fit into a video, got {len(episodes)}"
        )
    trajectory = to_film(data.take(demos, episodes))
    options = {**(about.config or {}), **(about.conditions or {})}
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    env = envs.make(about.env, "native", **fields)
    rendering.film(env, trajectory, path)


def _range(values: np.ndarray) -> str:
    return f"{values.mean():.4g} ({values.min():.4g} to {values.max():.4g})"


def _kind(values: np.ndarray) -> tuple[str, str]:
    span = f"{values.min():.4g} to {values.max():.4g}" if values.size else "empty"
    return str(values.dtype), span


if __name__ == "__main__":
    cli.start(main)
