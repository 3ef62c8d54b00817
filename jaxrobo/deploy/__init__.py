"""From a trained policy to a robot: exports, robot clients, and the loop that streams.

`runner` and `arm_server` are files to be copied to a robot's computer.
"""

from jaxrobo.deploy.dofbot import Dofbot
from jaxrobo.deploy.export import (
    Network,
    extract,
    load_npz,
    predict,
    restore,
    save_npz,
    save_stablehlo,
)
from jaxrobo.deploy.robot import Robot, RobotError
from jaxrobo.deploy.stream import Deployment, Lost, Timing, follow, pace, ramp
from jaxrobo.deploy.twin import Twin
from jaxrobo.deploy.ur10 import Ur10

__all__ = [
    "Deployment",
    "Dofbot",
    "Lost",
    "Network",
    "Robot",
    "RobotError",
    "Timing",
    "Twin",
    "Ur10",
    "extract",
    "follow",
    "load_npz",
    "pace",
    "predict",
    "ramp",
    "restore",
    "save_npz",
    "save_stablehlo",
]
