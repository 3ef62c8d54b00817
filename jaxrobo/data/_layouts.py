"""What each layout of a zarr store calls the columns of `Trajectories`."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from jaxrobo.control import POSE_MODES
from jaxrobo.data.trajectories import Columns, DataError, Trajectories, columns

ENDS = "episode_ends"

_STEPS = ("action", "reward", "terminated", "truncated")
_EPISODES = ("success", "episode")
_DICTS = ("poses", "final_obs", "model")
_UPSTREAM_STEPS, _UPSTREAM_EPISODES = ("skill", "augment_states"), ("task", "pickle_file")
_UPSTREAM_OLD = ("furniture", "failure_idx", "critical_state_id")
_RESERVED = {ENDS, *_STEPS, *_EPISODES, *_UPSTREAM_STEPS, *_UPSTREAM_EPISODES, *_UPSTREAM_OLD}


class Layout(NamedTuple):
    """A layout.

    Attributes:
      steps: the folder of the arrays with a row a step.
      episodes: the folder of the arrays with a row an episode.
      ends_type: the type of the episode ends.
      success_type: the type of success.
      modes: whether actions are in a folder, an array for each mode.
    """

    steps: str
    episodes: str
    ends_type: str
    success_type: str
    modes: bool

    @property
    def ends(self) -> str:
        """The path of the episode ends."""
        return self.episodes + ENDS


LAYOUTS = {
    "diffusion_policy": Layout("data/", "meta/", "i8", "?", modes=False),
    "robust_rearrangement": Layout("", "", "u4", "u1", modes=True),
}


def to_store(layout: Layout, trajectories: Trajectories) -> tuple[Columns, Columns, Columns]:
    """The arrays of a store by path: with a row a step, a row an episode, and the episode ends.

    Raises:
      DataError: on actions or names of observations that the layout doesn't have.
    """
    steps, episodes = columns(trajectories)
    for name in trajectories.obs:
        if name in _RESERVED or {".", "/"} & set(name):
            raise DataError(f"a store can't call an observation {name!r}")
    mode = trajectories.metadata.action
    check_mode(layout, mode)
    episodes = {**episodes, "success": episodes["success"].astype(layout.success_type)}
    if layout.modes:
        blank = np.zeros(trajectories.steps, np.float32)
        steps |= dict.fromkeys(_UPSTREAM_STEPS, blank)
        task = np.full(trajectories.episodes, trajectories.metadata.env or "", object)
        episodes |= {"task": task, "pickle_file": np.full_like(task, "")}
    ends = {layout.ends: trajectories.episode_ends.astype(layout.ends_type)}
    steps = {layout.steps + _local(k, layout, mode): v for k, v in steps.items()}
    return steps, {layout.episodes + _local(k, layout, mode): v for k, v in episodes.items()}, ends


def check_mode(layout: Layout, mode: str | None) -> None:
    """Raises DataError unless the layout holds actions of this meaning."""
    if layout.modes and mode not in POSE_MODES:
        raise DataError(f"the layout takes actions of mode {' or '.join(POSE_MODES)}, got {mode}")


def columns_in(layout: Layout, paths: Iterable[str], mode: str | None) -> dict[str, str]:
    """Which columns a store has, and the paths of their arrays.

    Args:
      layout: the store's.
      paths: all its arrays.
      mode: which actions, if it has several.
    """
    found = {}
    for path in paths:
        name = path.removeprefix(layout.steps)
        in_steps = path.startswith(layout.steps)
        if not in_steps:
            name = path.removeprefix(layout.episodes)
        field, _, key = name.partition(".")
        if layout.modes and path == f"action/{mode}":
            found["action"] = path
        elif name in (*_STEPS, *_EPISODES):
            found[name] = path
        elif field in _DICTS and key:
            found[f"{field}/{key}"] = path
        elif in_steps and name not in _RESERVED and "/" not in name:
            found[f"obs/{name}"] = path
    return found


def _local(column: str, layout: Layout, mode: str | None) -> str:
    """What a column is called in its folder."""
    if column == "action" and layout.modes:
        return f"action/{mode}"
    return column.removeprefix("obs/").replace("/", ".", 1)
