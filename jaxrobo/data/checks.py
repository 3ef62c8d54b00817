"""Refuses data that isn't whole, or isn't an environment's."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from jaxrobo import rundir
from jaxrobo.data.trajectories import (
    DataError,
    Metadata,
    Trajectories,
    columns,
    describe,
    named,
)
from jaxrobo.env import Env

T = TypeVar("T")

_NUMBERS = "biuf"
"""What `dtype.kind` says of numbers."""

_OF_THE_TASK = ("env", "config", "action", "dt")
"""The metadata that an environment must agree with."""


def check(trajectories: Trajectories, where: str) -> Trajectories:
    """Checks that a set is whole, and returns it.

    Args:
      trajectories: what was read.
      where: what to call it in an error, such as its path.

    Raises:
      DataError: on no or ragged episodes, arrays of a wrong length or shape, NaN, infinity or text.
    """
    steps, episodes = columns(trajectories)
    check_ends(trajectories.episode_ends, len(trajectories.action), where)
    for expected, group in ((trajectories.steps, steps), (trajectories.episodes, episodes)):
        for name, value in group.items():
            if len(value) != expected:
                raise DataError(f"{where}: {name!r} has {len(value)} rows, expected {expected}")
    if trajectories.action.ndim != 2:
        raise DataError(f"{where}: 'action' has shape {trajectories.action.shape}, expected [N, A]")
    for name, value in {**steps, **episodes}.items():
        _check_finite(name, value, where)
    return trajectories


def check_ends(ends: np.ndarray, steps: int, where: str) -> None:
    """Checks that episode ends grow, and that the last of them is the number of steps."""
    if ends.ndim != 1 or not np.issubdtype(ends.dtype, np.integer):
        raise DataError(
            f"{where}: 'episode_ends' is {ends.dtype} {list(ends.shape)}, expected integers [E]"
        )
    if not len(ends):
        raise DataError(f"{where}: there are no episodes")
    lengths = np.diff(ends.astype(np.int64), prepend=0)
    if np.any(lengths < 1):
        e = int(np.argmax(lengths < 1))
        before = ends[e - 1] if e else 0
        raise DataError(
            f"{where}: episode {e} ends at step {ends[e]}, expected more than {before}, where it "
            "starts"
        )
    if ends[-1] != steps:
        raise DataError(f"{where}: the last episode ends at step {ends[-1]}, but there are {steps}")


def without_text(
    found: Mapping[str, T], obs: Sequence[str] | None, kind: Callable[[T], str]
) -> dict[str, T]:
    """Columns without observations of text, unless they were asked for: no policy reads them.

    Args:
      found: the columns.
      obs: the observations that were asked for; all if None.
      kind: the `dtype.kind` of a column.
    """
    shown = ("obs/", "final_obs/")
    keep = lambda name, v: obs is not None or not name.startswith(shown) or kind(v) in _NUMBERS
    return {name: v for name, v in found.items() if keep(name, v)}


def _check_finite(name: str, value: np.ndarray, where: str) -> None:
    if value.dtype.kind not in _NUMBERS:
        raise DataError(f"{where}: {name!r} is of type {value.dtype}, expected numbers")
    if np.issubdtype(value.dtype, np.floating) and not np.all(np.isfinite(value)):
        bad = tuple(int(i) for i in np.argwhere(~np.isfinite(value))[0])
        raise DataError(f"{where}: {name!r} is {value[bad]} in row {bad[0]}, expected a number")


def check_env(trajectories: Trajectories, env: Env) -> None:
    """Checks that episodes are of an environment: its settings, observations and actions.

    Raises:
      DataError: naming all settings that differ, with both values, or the array that does.
    """
    check_settings(trajectories.metadata, describe(env), _OF_THE_TASK)
    name = type(env.unwrapped).__name__
    spec = {k: tuple(v.shape) for k, v in named(env.observation_spec).items()}
    _check_widths(spec, {k: v.shape[1:] for k, v in trajectories.obs.items()}, name)
    width = trajectories.action.shape[1]
    if width != env.action_size:
        raise DataError(f"the actions have width {width}, expected {env.action_size} for {name}")


def check_settings(
    there: Metadata,
    here: Metadata,
    fields: tuple[str, ...] = (*_OF_THE_TASK, "conditions", "split", "seed", "failures"),
) -> None:
    """Compares the metadata of a file (`there`) with the wanted; the unknown isn't compared.

    Of the task alone, they may be used together; of all fields, they belong into one file.

    Raises:
      DataError: naming all fields that differ, with both values.
    """
    old, new = there.to_dict(), here.to_dict()
    known = [k for k in fields if old[k] is not None and new[k] is not None]
    pick = lambda values: {k: values[k] for k in known}
    if changes := rundir.differences(pick(old), pick(new)):
        raise DataError(f"the episodes are of other settings: {'; '.join(changes)}")


def _check_widths(spec: Mapping[str, tuple], found: Mapping[str, tuple], env: str) -> None:
    for name, shape in spec.items():
        if name not in found:
            raise DataError(f"there is no observation {name!r}, which {env} shows")
        if found[name] != shape:
            raise DataError(
                f"the observation {name!r} has shape {found[name]}, expected {shape} for {env}"
            )


def require(found: Mapping[str, Any], wanted: Sequence[str], where: str) -> None:
    """Raises DataError unless everything wanted is there."""
    for name in wanted:
        if name not in found:
            raise DataError(f"{where}: {name!r} is missing; found {', '.join(found) or 'nothing'}")


def select(found: Mapping[str, T], obs: Sequence[str] | None, where: str) -> dict[str, T]:
    """Columns with some of the observations; all if None. Raises DataError if one is missing."""
    if obs is None:
        return dict(found)
    require(found, [f"obs/{k}" for k in obs], where)
    drop = ("obs/", "final_obs/")
    return {k: v for k, v in found.items() if not k.startswith(drop) or k.partition("/")[2] in obs}
