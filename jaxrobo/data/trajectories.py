"""Episodes in memory: all steps one after another, and where each episode ends.

This is how zarr stores lay them out, and what training draws its windows from.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import struct

from jaxrobo import rundir
from jaxrobo.env import Env, Observation

ARRAY = "obs"
"""What the observation is called where the environment shows a single array."""

Columns = dict[str, np.ndarray]
"""Arrays by name; the entries of a dict in `Trajectories` are named `<field>/<key>`."""


class DataError(ValueError):
    """Data that can't be used; the message says what was expected and what was found."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metadata:
    """Where episodes come from. What isn't known is None, as in the data of others.

    Attributes:
      env: name of the environment.
      config: its options.
      conditions: those of its options that don't make another task of it: what disturbs it, how an
        episode ends.
      action: what an action means, such as "pos" or "delta" (`jaxrobo.control.POSE_MODES`).
      dt: seconds a control step lasts.
      split: the episodes' split (`jaxrobo.rollout.SPLITS`).
      seed: which draw of it.
      failures: whether failed episodes were kept.
      engine: what ran the physics.
      versions: of what the numbers depend on.
    """

    env: str | None = None
    config: Mapping[str, Any] | None = None
    conditions: Mapping[str, Any] | None = None
    action: str | None = None
    dt: float | None = None
    split: str | None = None
    seed: int | None = None
    failures: bool | None = None
    engine: str | None = None
    versions: Mapping[str, str] | None = None

    def __hash__(self) -> int:
        return hash(json.dumps(self.to_dict(), sort_keys=True))

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        return rundir.plain(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Metadata":
        """The inverse of `to_dict`. Raises DataError on fields that this version doesn't know."""
        if unknown := values.keys() - {f.name for f in dataclasses.fields(cls)}:
            raise DataError(f"the metadata has unknown fields: {', '.join(sorted(unknown))}")
        return cls(**values)


def describe(
    env: Env,
    split: str | None = None,
    seed: int | None = None,
    failures: bool | None = None,
) -> Metadata:
    """The metadata of episodes of an environment.

    What isn't part of the `Env` protocol is looked up by name: `config` (a dataclass, whose field
    `action` says what an action means, if it has one), `dt`, `engine`. A field of `config` with the
    metadata `{"of_task": False}` is one of the conditions.
    """
    inner = env.unwrapped
    config = getattr(inner, "config", None)
    return Metadata(
        env=type(inner).__name__,
        config=None if config is None else task_options(config),
        conditions=None if config is None else _options(config, of_task=False) or None,
        action=getattr(config, "action", None),
        dt=getattr(inner, "dt", None),
        split=split,
        seed=seed,
        failures=failures,
        engine=getattr(inner, "engine", None),
        versions=rundir.versions(),
    )


def task_options(config: Any) -> dict[str, Any]:
    """A task's options as plain values, without those that don't make another task of it.

    Their fields in `config`, a dataclass, have the metadata `{"of_task": False}`.
    """
    return _options(config, of_task=True)


def _options(config: Any, of_task: bool) -> dict[str, Any]:
    fields = dataclasses.fields(config)
    names = {f.name for f in fields if f.metadata.get("of_task", True) == of_task}
    return {k: v for k, v in rundir.plain(config).items() if k in names}


@struct.dataclass
class Trajectories:
    """E episodes of N steps in all. A pytree; arrays are numpy's until something moves them.

    Attributes:
      obs: what was observed before each step, by name; `{"obs": array}` where the environment shows
        an array. [N, ...]
      action: what was done, in [-1, 1]. [N, action_size]
      reward: [N]
      terminated: the task itself ended with this step, bool. [N]
      truncated: the episode was cut short after this step, bool. [N]
      episode_ends: one past the last row of each episode, growing. [E]
      success: whether the task's metric, summed over the episode, is above zero, bool. [E]
      episode: its number in the split: it started from
        `episode_key(metadata.split, metadata.seed, episode)`. Growing. [E]
      final_obs: what was observed after the last step; empty if unknown. [E, ...]
      poses: what a film needs, before each step: "qpos", "mocap_pos", "mocap_quat"; empty unless
        asked for. [N, ...]
      model: with `poses`, the model fields of each episode's own. [E, ...]
      metadata: where the episodes come from.
    """

    obs: Columns
    action: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    episode_ends: np.ndarray
    success: np.ndarray
    episode: np.ndarray
    final_obs: Columns = struct.field(default_factory=dict)
    poses: Columns = struct.field(default_factory=dict)
    model: Columns = struct.field(default_factory=dict)
    metadata: Metadata = struct.field(pytree_node=False, default=Metadata())

    @property
    def episodes(self) -> int:
        """How many episodes."""
        return len(self.episode_ends)

    @property
    def steps(self) -> int:
        """How many steps."""
        return len(self.action)

    @property
    def lengths(self) -> np.ndarray:
        """Steps of each episode. [E]."""
        return np.diff(self.episode_ends, prepend=0)

    @property
    def observation(self) -> Observation:
        """The observations as the environment shows them: an array, or a dict of arrays."""
        return self.obs[ARRAY] if self.obs.keys() == {ARRAY} else self.obs


def named(observation: Observation) -> dict[str, jax.Array]:
    """An observation as a dict; an array is called "obs"."""
    return dict(observation) if isinstance(observation, Mapping) else {ARRAY: observation}


def take(trajectories: Trajectories, episodes: Sequence[int] | np.ndarray) -> Trajectories:
    """Some of the episodes, in the order of `episodes`."""
    episodes = np.asarray(episodes, np.int64)
    ends, lengths = trajectories.episode_ends, trajectories.lengths
    rows = [np.arange(ends[e] - lengths[e], ends[e]) for e in episodes]
    rows = np.concatenate([np.zeros(0, np.int64), *rows])
    steps, per_episode = columns(trajectories)
    values = {k: v[rows] for k, v in steps.items()} | {
        k: v[episodes] for k, v in per_episode.items()
    }
    return from_columns(values, np.cumsum(lengths[episodes]), trajectories.metadata)


def concatenate(parts: Sequence[Trajectories]) -> Trajectories:
    """All episodes of several sets, in turn; of their metadata, what they agree on.

    Raises:
      DataError: if the sets don't have the same arrays.
    """
    fields = [f.name for f in dataclasses.fields(Metadata)]
    about = {k: [getattr(p.metadata, k) for p in parts] for k in fields}
    agreed = Metadata(**{k: v[0] for k, v in about.items() if all(v[0] == x for x in v)})
    flat = [steps | episodes for steps, episodes in map(columns, parts)]
    for other, values in enumerate(flat[1:], 2):
        check_same(flat[0], values, f"set {other}", "the first set")
    joined = {k: np.concatenate([values[k] for values in flat]) for k in flat[0]}
    starts = np.cumsum([0, *(p.steps for p in parts[:-1])])
    ends = [p.episode_ends + start for p, start in zip(parts, starts, strict=True)]
    return from_columns(joined, np.concatenate(ends), agreed)


def check_same(there: Columns, here: Columns, what: str, reference: str) -> None:
    """Raises DataError unless two sets of columns differ in their number of rows only."""
    for name in {**there, **here}:
        if name not in here or name not in there:
            lacking, having = (what, reference) if name in there else (reference, what)
            raise DataError(f"{lacking} has no {name!r}, which {having} has")
        old, new = ((v.dtype, v.shape[1:]) for v in (there[name], here[name]))
        if old != new:
            show = lambda t: f"{t[0]} {list(t[1])} a row"
            raise DataError(
                f"{name!r} is {show(new)} in {what}, expected {show(old)} as in {reference}"
            )


BOOLS = ("terminated", "truncated", "success")
"""Columns that formats without booleans have as 0 and 1."""

_STEPS = ("obs", "action", "reward", "terminated", "truncated", "poses")
_EPISODES = ("success", "episode", "final_obs", "model")


def columns(trajectories: Trajectories) -> tuple[Columns, Columns]:
    """The arrays with a row a step, and those with a row an episode but for `episode_ends`."""
    return _flat(trajectories, _STEPS), _flat(trajectories, _EPISODES)


def from_columns(values: Columns, episode_ends: np.ndarray, metadata: Metadata) -> Trajectories:
    """The inverse of `columns`, from both groups together."""
    fields: dict[str, Any] = {"obs": {}}
    for name, value in values.items():
        field, _, key = name.partition("/")
        if key:
            fields.setdefault(field, {})[key] = value
        else:
            fields[field] = value
    return Trajectories(**fields, episode_ends=episode_ends, metadata=metadata)


def _flat(trajectories: Trajectories, fields: Sequence[str]) -> Columns:
    flat = {}
    for field in fields:
        value = getattr(trajectories, field)
        flat |= (
            {f"{field}/{k}": v for k, v in value.items()}
            if isinstance(value, dict)
            else {field: value}
        )
    return flat


def complete(values: Columns, episode_ends: np.ndarray) -> None:
    """Adds what a file of others doesn't say about its episodes.

    They are demonstrations: successful, numbered in order, without rewards, and the last step of
    each is the end of the task, or of the time if it failed.
    """
    values.setdefault("success", np.ones(len(episode_ends), bool))
    values.setdefault("episode", np.arange(len(episode_ends)))
    last = np.zeros(episode_ends[-1], bool)
    last[episode_ends - 1] = True
    success = np.repeat(values["success"], np.diff(episode_ends, prepend=0))
    values.setdefault("reward", np.zeros(len(last), np.float32))
    values.setdefault("terminated", last & success)
    values.setdefault("truncated", last & ~success)
