"""KukaReacher: goals all around a KUKA KR120 R2500 Pro."""

import dataclasses

import numpy as np

from envs.reacher.arm import Arm, Goals
from envs.reacher.base import Reacher, ReacherConfig
from envs.robots import kr120

ARM = Arm(
    load=kr120.load,
    max_speed=kr120.MAX_SPEED,
    hand="tool0",
    limits=np.deg2rad(
        [[-185, 185], [-155, 35], [-130, 154], [-350, 350], [-130, 130], [-350, 350]]
    ),
    marker=(0.05, 0.0, 0.0),
    goals=Goals(xy=(0.5, 1.0), z=(1.3, 0.2)),
    cube=0.025,
    target=(0.0, 0.0, 0.9),
    eye=(4.6, -2.8, 2.8),
)


@dataclasses.dataclass(frozen=True)
class Config(ReacherConfig):
    """Options of `KukaReacher`; the defaults are those of the original's `KukaReacher.yaml`."""

    success_tolerance: float = 0.1
    distance_scale: float = -2.0


class KukaReacher(Reacher):
    """Reach goals around a KR120 with a marker 5 cm before its flange.

    The task of OmniIsaacGymEnvs-KukaReacher (commit 3c0cdf0): six joints, 29 numbers observed,
    drives with a lag of 1 s.
    """

    def __init__(
        self, config: Config | None = None, engine: str = "auto", threads: int | None = None
    ) -> None:
        super().__init__(ARM, config or Config(), engine, threads)
