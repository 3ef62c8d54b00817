"""DofbotReacher: goals in four columns around a Dofbot, a desktop arm of five joints."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from envs.reacher.arm import Arm, Goals
from envs.reacher.base import Reacher, ReacherConfig
from envs.robots import dofbot

LIMITS = np.array([math.pi / 2, *[math.pi / 4] * 3, math.pi / 2, 0.1])
"""The task moves each joint within +- this, rad; narrower than the robot's own limits. The last is
the finger's."""

GOALS = Goals(xy=(0.05, 0.15), z=(0.2, 0.15))
"""Four columns of 5 x 5 x 20 cm."""


@dataclasses.dataclass(frozen=True)
class Config(ReacherConfig):
    """Options of `DofbotReacher`; the defaults are those of the original's `DofbotReacher.yaml`.

    Attributes:
      gripper: the arm with a sixth joint, a finger, and a quicker wrist, as in the original's USD
        mode; without, five joints, as in its URDF mode.
    """

    gripper: bool = False


class DofbotReacher(Reacher):
    """Reach goals around a Dofbot with a marker 10 cm beyond the wrist.

    The task of OmniIsaacGymEnvs-DofbotReacher in its URDF mode (five joints): 26 numbers are
    observed and 5 controlled; the original pads them to 29 and 6. Its drives have 1/100 of the
    original's gains (see `envs.robots.dofbot`).

    With `gripper`, six joints and 29 numbers, like its USD mode. What NVIDIA's `dofbot.usd` doesn't
    publish is the URDF's: where the marker is, and the masses. In the original the finger stays
    where it is (`upstream_quirks`); here it obeys, to no avail.
    """

    def __init__(
        self, config: Config | None = None, engine: str = "auto", threads: int | None = None
    ) -> None:
        config = config or Config()
        n = 6 if config.gripper else 5
        limits = np.stack([-LIMITS[:n], LIMITS[:n]], axis=-1)
        arm = Arm(
            load=functools.partial(dofbot.load, gripper=config.gripper),
            max_speed=np.full(n, dofbot.SERVO_SPEED),
            hand="link5",
            limits=limits,
            marker=(0.0, 0.015, 0.1),
            goals=GOALS,
            cube=0.0125,
            target=(0.0, 0.0, 0.18),
            eye=(0.78, -0.45, 0.5),
            pinned=5 if config.gripper else None,
            postures=_bent_towards,
        )
        super().__init__(arm, config, engine, threads)


def sample_goal(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A goal position `[3]` in one of the four columns, m, and an orientation `[4]`, wxyz."""
    return GOALS.sample(key)


def _bent_towards(pos: jax.Array) -> jax.Array:
    """Poses `[2, 5]` that bend at the wrist, and at the shoulder, towards a point.

    The arm bends forwards (-y) or, for what is behind it, over its back. From one of them descent
    finds a solution for nearly all goals that are within reach.
    """
    way = jnp.where(pos[1] < 0, 1.0, -1.0)
    base = jnp.arctan2(way * pos[0], jnp.abs(pos[1]))
    wrist = jnp.stack([base, 0.0, 0.0, 0.7 * way, 0.0])
    shoulder = jnp.stack([base, 0.7 * way, 0.0, 0.0, 0.0])
    return jnp.stack([wrist, shoulder])
