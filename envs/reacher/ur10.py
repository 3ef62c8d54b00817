"""UR10Reacher: goals all around a Universal Robots UR10."""

import dataclasses
import math

import numpy as np

from envs.reacher.arm import Arm, Goals
from envs.reacher.base import Reacher, ReacherConfig
from envs.robots import ur10

LIMITS = math.pi * np.array([[-2, 2], [-7 / 8, -1 / 8], [-7 / 8, 7 / 8], [-1, 0], [-1, 1], [-2, 2]])
"""The task moves each joint between these, rad."""

SAFE_LIMITS = np.deg2rad([[-135, 135], [-180, -60], [0, 180], [-180, 0], [-180, 0], [-180, 180]])
"""With `safety`, rad: the elbow stays up."""

GOALS = Goals(xy=(0.4, 0.5), z=(0.8, 0.1))

SAFE_GOALS = Goals(xy=(0.4 / 1.25, 0.5 / 1.25), z=(0.8, 0.1), all_around=False)
"""With `safety`: one quadrant, 1.25 times as near."""

REAL_GOALS = Goals(xy=(0.1, 0.35), z=(0.5, 0.3), all_around=False)
"""On the real robot."""

SAFE_REAL_GOALS = Goals(xy=(0.1 / 1.25, 0.35 / 1.25), z=(0.5, 0.3), all_around=False)


@dataclasses.dataclass(frozen=True)
class Config(ReacherConfig):
    """Options of `UR10Reacher`; the defaults are those of the original's `UR10Reacher.yaml`.

    Attributes:
      safety: narrower joint limits and goals in one quadrant, for a policy that is to move a real
        arm.
      real_goals: goals of the original's test on a real arm, in one quadrant. It divides the moving
        average by 5 there as well.
    """

    episode_steps: int = 600
    success_tolerance: float = 0.1
    distance_scale: float = -2.0
    moving_average: float = 0.1
    safety: bool = False
    real_goals: bool = False


class UR10Reacher(Reacher):
    """Reach goals around a UR10 with a marker 5 cm before its flange.

    The task of OmniIsaacGymEnvs-UR10Reacher (`tasks/ur10_reacher.py`, commit 8f3ea3f): six joints,
    29 numbers observed, targets smoothed to a tenth. The lag of the drives, 0.05 s, is a stand-in
    (see `envs.robots.ur10`).
    """

    def __init__(
        self, config: Config | None = None, engine: str = "auto", threads: int | None = None
    ) -> None:
        config = config or Config()
        goals = {
            (False, False): GOALS,
            (True, False): SAFE_GOALS,
            (False, True): REAL_GOALS,
            (True, True): SAFE_REAL_GOALS,
        }
        arm = Arm(
            load=ur10.load,
            max_speed=ur10.MAX_SPEED,
            hand="ee_link",
            limits=SAFE_LIMITS if config.safety else LIMITS,
            marker=(0.0, 0.05, 0.0),
            goals=goals[config.safety, config.real_goals],
            cube=0.025,
            target=(0.0, 0.0, 0.5),
            eye=(2.5, -1.5, 1.6),
        )
        super().__init__(arm, config, engine, threads)
