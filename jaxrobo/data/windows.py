"""What chunked policies learn from: a few observations, and the actions that follow."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxrobo.data.trajectories import DataError, Trajectories
from jaxrobo.env import Observation


@struct.dataclass
class Windows:
    """Rows of W windows. A pytree.

    Attributes:
      obs: rows of the observations, the last of them at the window's own step. [W, obs_horizon]
      action: rows of the actions, from the window's own step on. [W, horizon]
    """

    obs: np.ndarray
    action: np.ndarray


def make_windows(
    episode_ends: np.ndarray, horizon: int, action_horizon: int, obs_horizon: int = 1
) -> Windows:
    """All windows of some episodes, in their order.

    A window stands at each step t of an episode of T steps that leaves `horizon` actions, of which
    up to `action_horizon - 1` may lie beyond the end: t <= T - horizon + action_horizon - 1. Beyond
    the end the last step is repeated, before the start the first. So do the data sets of
    diffusion_policy and robust-rearrangement; unlike there, an episode that is too short for a
    window still has the one at its first step.

    Args:
      episode_ends: see `Trajectories`. [E]
      horizon: actions a window.
      action_horizon: how many of them the policy will carry out before it plans anew.
      obs_horizon: observations a window.

    Raises:
      ValueError: unless 1 <= action_horizon <= horizon and 1 <= obs_horizon.
    """
    if not 1 <= action_horizon <= horizon:
        raise ValueError(f"action_horizon must be in 1 to horizon, {horizon}, got {action_horizon}")
    if obs_horizon < 1:
        raise ValueError(f"obs_horizon must be at least 1, got {obs_horizon}")
    ends = np.asarray(episode_ends, np.int64)
    lengths = np.diff(ends, prepend=0)
    count = np.maximum(lengths - horizon + action_horizon, 1)
    offset = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    start, last = np.repeat(ends - lengths, count)[:, None], np.repeat(ends - 1, count)[:, None]
    at = start + offset[:, None]
    rows = lambda first, length: np.clip(at + first + np.arange(length), start, last)
    windows = Windows(rows(1 - obs_horizon, obs_horizon), rows(0, horizon))
    return jax.tree.map(lambda x: x.astype(np.int32), windows)


def gather(
    trajectories: Trajectories, windows: Windows, index: jax.Array
) -> tuple[Observation, jax.Array]:
    """Some windows of a set; pure, so that it may be jitted.

    Args:
      trajectories: the set that the windows are of.
      windows: from `make_windows`.
      index: which of them. [B]

    Returns:
      Observations `[B, obs_horizon, ...]`, an array or a dict as the environment shows them, and
      actions `[B, horizon, action_size]`.
    """
    obs_rows = jnp.asarray(windows.obs)[index]
    obs = jax.tree.map(lambda x: jnp.asarray(x)[obs_rows], trajectories.observation)
    return obs, jnp.asarray(trajectories.action)[jnp.asarray(windows.action)[index]]


def split_episodes(episodes: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Episodes to learn from, and a random share of at least one to hold out, both in order.

    Raises:
      DataError: if there are fewer than two episodes.
    """
    if episodes < 2:
        raise DataError(f"{episodes} episode can't be split, expected at least 2")
    held = min(max(1, round(share * episodes)), episodes - 1)
    order = np.random.default_rng(seed).permutation(episodes)
    return np.sort(order[held:]), np.sort(order[:held])
