"""What a reacher task needs to know of a robot, and where its goals are."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np


@dataclasses.dataclass(frozen=True)
class Goals:
    """Where goals are.

    With every u uniform in (-1, 1): `x, y = a u + b sign(u)` and `z = |c u| + d`.

    Attributes:
      xy: a and b, m.
      z: c and d, m.
      all_around: whether in all four quadrants; if not, x and y are the magnitudes of the above.
    """

    xy: tuple[float, float]
    z: tuple[float, float]
    all_around: bool = True

    def sample(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """A goal position `[3]`, m, and an orientation `[4]`, wxyz.

        The orientation is a turn by `pi u` about x after one about y.
        """
        u = jax.random.uniform(key, (5,), minval=-1.0, maxval=1.0)
        xy = self.xy[0] * u[:2] + self.xy[1] * jnp.where(u[:2] < 0, -1.0, 1.0)
        xy = xy if self.all_around else jnp.abs(xy)
        pos = jnp.append(xy, jnp.abs(self.z[0] * u[2]) + self.z[1])
        cx, cy = jnp.cos(jnp.pi / 2 * u[3:])
        sx, sy = jnp.sin(jnp.pi / 2 * u[3:])
        return pos, jnp.stack([cx * cy, sx * cy, cx * sy, sx * sy])


@dataclasses.dataclass(frozen=True)
class Arm:
    """A robot and its task.

    Attributes:
      load: makes the robot's model from the highest speed of its joints, rad/s, or of each.
      max_speed: the robot's own velocity limits, rad/s. [n]
      hand: name of the body whose orientation the marker has.
      limits: between which the task moves each joint, rad. [n, 2]
      marker: where the marker is relative to the hand, in world axes at the zero pose, m. [3]
      goals: where goals are.
      cube: half the edge of the marker and of the goal, m.
      target: the point that pictures show in the middle, m.
      eye: where the camera is, m.
      pinned: the joint that the original's task doesn't let the policy command, if any.
      postures: given a goal `[3]`, the joint angles `[k, n]`, rad, from which the expert looks for
        one on the goal; if None, the current ones and some spread over the limits.
    """

    load: Callable[[Any], mujoco.MjSpec]
    max_speed: np.ndarray
    hand: str
    limits: np.ndarray
    marker: tuple[float, float, float]
    goals: Goals
    cube: float
    target: tuple[float, float, float]
    eye: tuple[float, float, float]
    pinned: int | None = 5
    postures: Callable[[jax.Array], jax.Array] | None = None

    @property
    def middle(self) -> np.ndarray:
        """The middle of each joint's range, rad. [n]."""
        return self.limits.mean(-1)

    @property
    def reach(self) -> np.ndarray:
        """How far each joint moves from the middle of its range, rad. [n]."""
        return 0.5 * np.diff(self.limits)[:, 0]
