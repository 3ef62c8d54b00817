"""Universal Robots UR10: an arm of six revolute joints that reaches 1.3 m.

Kinematics, limits, masses and inertias are those of `ur10.urdf.xacro`
(github.com/ros-industrial/universal_robot, branch kinetic). The masses are solid cylinders, which
are also its geometry. The zero pose points along +x.
"""

from pathlib import Path

import numpy as np

from envs.robots.drives import loader

JOINTS = (
    "shoulder_pan_joint",
    "shoulder_lift_joint",
    "elbow_joint",
    "wrist_1_joint",
    "wrist_2_joint",
    "wrist_3_joint",
)

STIFFNESS = 4e6
"""Position gain of each joint, N m / rad.

The gains of Isaac Sim's `ur10.usd` aren't published. `DAMPING / STIFFNESS` is the lag of 0.05 s of
Isaac Lab's UR10 (800 and 40); both gains are multiplied by 5000, so that the arm's inertia and
weight, which the real controller compensates, hardly show.
"""

DAMPING = 2e5
"""Damping of each joint, N m s / rad."""

MAX_SPEED = np.array([2.16, 2.16, 3.15, 3.2, 3.2, 3.2])
"""Velocity limits of the joints, rad/s."""

load = loader(Path(__file__).with_suffix(".xml"), JOINTS, STIFFNESS, DAMPING)
"""The arm with drives that lag by 0.05 s. Body `ee_link` is its flange.

See `envs.robots.drives.loader`."""
