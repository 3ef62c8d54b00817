"""HiwinReacher: goals all around a HIWIN RA620-1621."""

import dataclasses

import numpy as np

from envs.reacher.arm import Arm, Goals
from envs.reacher.base import Reacher, ReacherConfig
from envs.robots import ra620

ARM = Arm(
    load=ra620.load,
    max_speed=ra620.MAX_SPEED,
    hand="tool0",
    limits=np.deg2rad([[-90, 90], [-135, 100], [-80, 190], [-200, 200], [-130, 130], [-180, 180]]),
    marker=(0.05, 0.0, 0.0),
    goals=Goals(xy=(0.6, 0.5), z=(0.9, 0.2)),
    cube=0.025,
    target=(0.0, 0.0, 0.7),
    eye=(3.2, -2.0, 2.0),
)


@dataclasses.dataclass(frozen=True)
class Config(ReacherConfig):
    """Options of `HiwinReacher`; the defaults are those of the original's `HiwinReacher.yaml`."""

    success_tolerance: float = 0.1
    distance_scale: float = -2.0


class HiwinReacher(Reacher):
    """Reach goals around an RA620-1621 with a marker 5 cm beside its tool.

    The task of OmniIsaacGymEnvs-HiwinReacher (commit 5346a61): six joints, 29 numbers observed,
    drives with a lag of 1 s. The waist turns by +-90 degrees only: for goals behind it the arm
    bends over its back.
    """

    def __init__(
        self, config: Config | None = None, engine: str = "auto", threads: int | None = None
    ) -> None:
        super().__init__(ARM, config or Config(), engine, threads)
